"""Decoding: a beam search that can only emit items, whatever the model says."""

import torch
from torch import Tensor

from tesserec.data import history_requests
from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.trie import Trie, TrieMask
from tesserec.semantic_ids import build_semantic_ids

codes_NL = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 0], [2, 1], [2, 2]])
trie = Trie.build(build_semantic_ids(codes_NL, (3, 3), "by hand", collisions="bucket"))


def high_codes_first(  # noqa: PLR0917  # the search calls it, by position
    cache: None, level: int, parents_BM: Tensor | None, nodes_BM: Tensor, children_BMC: Tensor, codes_BMC: Tensor
) -> tuple[None, Tensor]:
    """A model without weights: it likes high codes, and knows legal children only."""
    return None, codes_BMC.float().masked_fill(children_BMC < 0, -torch.inf).log_softmax(-1)


requests = history_requests([[5], [4, 3]], exclude_history=True)
beams = beam_search(
    high_codes_first, None, trie, num_requests=len(requests), num_beams=4, mask=TrieMask.of(trie, requests)
)
print(beams_to_items(beams, trie, requests, k=3).items_BK)
