"""Shared settings of the tests: one torch thread, so that runs side by side do not fight over cores."""

import torch

torch.set_num_threads(1)
