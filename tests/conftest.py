"""Shared settings of the tests: one torch thread, so that runs side by side do not fight over cores, and the same
examples of hypothesis in every run, with no limit on the time of one (a busy machine is not a failure). For mutants it
is enough that an example fails, so "mutants" does not look for the smallest. The workers of a run share a folder, in
which ``shared`` makes once what all of them need."""

import gc
import os
import tempfile

import pytest
import torch
from hypothesis import Phase, settings

from shared import FOLDER

torch.set_num_threads(1)
settings.register_profile("tesserec", derandomize=True, deadline=None)
settings.register_profile("mutants", settings.get_profile("tesserec"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("tesserec")


def pytest_configure(config: pytest.Config) -> None:
    if FOLDER not in os.environ:  # workers inherit it
        folder = tempfile.TemporaryDirectory(prefix="tesserec_tests_")
        os.environ[FOLDER] = folder.name
        config.add_cleanup(lambda: os.environ.pop(FOLDER))
        config.add_cleanup(folder.cleanup)


def pytest_collection_finish() -> None:
    """Libraries and test modules are here to stay: that the collector of garbage looks at them again, as at every
    measurement of memory, is most of the time of a small fit."""
    gc.collect()
    gc.freeze()
