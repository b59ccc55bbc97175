"""Shared settings of the tests: one torch thread, so that runs side by side do not fight over cores, and the same
examples of hypothesis in every run, with no limit on the time of one (a busy machine is not a failure). For mutants it
is enough that an example fails, so "mutants" does not look for the smallest."""

import torch
from hypothesis import Phase, settings

torch.set_num_threads(1)
settings.register_profile("tesserec", derandomize=True, deadline=None)
settings.register_profile("mutants", settings.get_profile("tesserec"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("tesserec")
