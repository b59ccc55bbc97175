"""What takes long to make and is never changed is made once a test run, by the first of its workers that needs it."""

import os
from collections.abc import Callable
from pathlib import Path

from tesserec.serving.durable import locked

FOLDER = "TESSEREC_TESTS_FOLDER"
"""The environment variable that names the folder of the run."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder ``name``, which ``make`` puts in place as a whole; not to be changed."""
    folder = Path(os.environ[FOLDER])
    with locked(folder / f"{name}.lock"):
        if not (folder / name).exists():
            make(folder / name)
    return folder / name
