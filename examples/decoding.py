"""Decoding: a search that can only emit items, whatever the model says; samples, branches and slates of it."""

import torch
from torch import Tensor

from tesserec.data import history_requests
from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.sampling import stochastic_beam_search
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.semantic_ids import build_semantic_ids

codes_NL = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 0], [2, 1], [2, 2]])
trie = Trie.build(build_semantic_ids(codes_NL, (3, 3), "by hand", collisions="bucket"))


def high_codes_first(  # noqa: PLR0917  # the search calls it, by position
    cache: None, level: int, parents_BM: Tensor | None, nodes_BM: Tensor, children_BMC: Tensor, codes_BMC: Tensor
) -> tuple[None, Tensor]:
    """A model without weights: it likes high codes, and knows legal children only."""
    return None, codes_BMC.float().masked_fill(children_BMC < 0, -torch.inf).log_softmax(-1)


requests = history_requests([[5], [4, 3]], exclude_history=True)
mask = TrieMask.of(trie, requests)
beams = beam_search(high_codes_first, None, trie, num_requests=len(requests), num_beams=4, mask=mask)
print("best:", beams_to_items(beams, trie, 3, mask).items_BK.tolist())

branch = torch.tensor([[0], [0]])
beams = beam_search(high_codes_first, None, trie, num_requests=2, num_beams=4, mask=mask, prompts_Bl=branch)
print("in the branch of code 0:", beams_to_items(beams, trie, 3, mask).items_BK.tolist())

sample = stochastic_beam_search(
    high_codes_first, None, trie, num_requests=2, num_beams=2, mask=mask, generator=torch.Generator().manual_seed(0)
)
print("drawn:", beams_to_items(sample, trie, 2, mask).items_BK.tolist(), "with", sample.inclusion_BM)

slate = []
for _ in range(3):
    beams = beam_search(high_codes_first, None, trie, num_requests=2, num_beams=1, mask=mask)
    slate.append(beams_to_items(beams, trie, 1, mask).items_BK[:, 0])
    mask = mask.excluding(torch.arange(2), slate[-1])
print("slates, item by item:", torch.stack(slate, 1).tolist())
