"""Shared settings of the tests: one torch thread, so that runs side by side do not fight over cores, and the same
examples of hypothesis in every run, with no limit on the time of one (a busy machine is not a failure)."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tesserec", derandomize=True, deadline=None)
settings.load_profile("tesserec")
