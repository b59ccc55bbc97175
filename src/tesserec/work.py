"""The work folder: finished stages of a fit, kept so that a run that was stopped goes on where it stopped.

A folder belongs to one key (a digest of recipe and data). Opened with another key it starts empty. A stage is a value
that is made once: its files appear under their final name only when they are complete.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tesserec.bundle import load_state, save_state
from tesserec.errors import BundleError
from tesserec.types import ComponentState

__all__ = ["Work"]

T = TypeVar("T")


class Work:
    """A folder of finished stages; without a folder nothing is kept.

    Raises ``BundleError`` where ``folder`` holds something else: it would be deleted.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = folder
        self.resumed = False
        """Whether an earlier run of the same key left something here."""
        if folder is None:
            return
        marker = folder / "key.json"
        self.resumed = marker.is_file() and json.loads(marker.read_text()) == {"key": key}
        if not marker.is_file() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BundleError(f"{folder} is needed for unfinished work and holds something else: move it away")
        if not self.resumed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            marker.write_text(json.dumps({"key": key}))

    def stage(self, name: str, make: Callable[[], T], save: Callable[[Path, T], None], load: Callable[[Path], T]) -> T:
        """The value of stage ``name``: read where it was made before, else made and kept.

        ``save`` and ``load`` are given a folder of the stage's own.
        """
        if self.folder is None:
            return make()
        place = self.folder / name
        if place.is_dir():
            return load(place)
        value = make()
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial, value)
        partial.rename(place)
        return value

    def state(self, name: str, make: Callable[[], ComponentState]) -> ComponentState:
        """A stage whose value is one component state."""
        return self.stage(
            name,
            make,
            lambda place, state: save_state(place / "state.safetensors", state),
            lambda place: load_state(place / "state.safetensors"),
        )

    def checkpoints(self, name: str) -> Path | None:
        """Where training of ``name`` may write checkpoints."""
        if self.folder is None:
            return None
        folder = self.folder / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove(self) -> None:
        """Delete the folder: the fit is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
