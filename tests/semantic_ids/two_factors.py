"""Items with a loud factor that says nothing of behaviour and a quiet one by which they are bought.

A quantizer of few codes that only reconstructs spends them on the loud factor; one that knows of behaviour finds the
quiet one.
"""

import torch

from tesserec.testing.data import catalog_of_size, interactions_of
from tesserec.types import SideInformation

NUM_ITEMS, NUM_LOUD, NUM_QUIET = 240, 4, 4


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features():
    """[N, 8]: the first four features are loud, the others quiet."""
    loud_N, quiet_N = torch.arange(NUM_ITEMS) % NUM_LOUD, quiet()
    parts = [3 * torch.eye(NUM_LOUD)[loud_N], 0.7 * torch.eye(NUM_QUIET)[quiet_N]]
    return torch.cat(parts, 1) + 0.05 * randn(NUM_ITEMS, NUM_LOUD + NUM_QUIET)


def quiet():
    """The quiet group of each item."""
    return torch.arange(NUM_ITEMS) // NUM_LOUD % NUM_QUIET


def side(seed=0, num_users=120, length=8):
    """A log in which each user takes items of one quiet group only."""
    generator = torch.Generator().manual_seed(7)
    users = []
    for user in range(num_users):
        own = (quiet() == user % NUM_QUIET).nonzero().squeeze(1)
        users.append([[item] for item in own[torch.randperm(len(own), generator=generator)[:length]].tolist()])
    train = interactions_of(users, NUM_ITEMS)
    return SideInformation(seed=seed, train=train, catalog=catalog_of_size(NUM_ITEMS))


def purity(codes_N, groups_N):
    """Share of items whose group is the most frequent one of their code."""
    counts = torch.zeros(int(codes_N.max()) + 1, int(groups_N.max()) + 1)
    counts.index_put_((codes_N, groups_N), torch.ones(len(codes_N)), accumulate=True)
    return float(counts.max(1).values.sum() / len(codes_N))
