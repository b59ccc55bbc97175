"""Random tries, models and filters, and exhaustive search, to hold the beam search against.

Dimensions: B requests · M beams · C children · N items · L levels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.decoding.beam_search import Beams, beam_search, beams_to_items
from tesserec.decoding.top_k import allowed_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.decoding.trie_updates import with_items, without_items
from tesserec.types import Candidates, Filters, History, Ragged, Requests, SemanticIds

__all__ = [
    "MISTAKES",
    "TableModel",
    "count_mistakes",
    "exhaustive",
    "random_requests",
    "random_semantic_ids",
    "updated_at_random",
]

MISTAKES = ("illegal", "repeated", "filtered", "useless_beams")
"""Ways in which a result may be wrong; a beam is useless that leads to nothing allowed."""
NUM_REQUESTS = 64
"""Of a random search."""


@dataclass(frozen=True)
class TableModel:
    """A step whose log-probabilities are read from a table: one number a request and node.

    Its cache is the beams so far, reordered by ``parents_BM`` as a model reorders its keys and values: it checks that
    they are the ancestors of the nodes that it is asked about.
    """

    trie: Trie
    tables: tuple[Tensor, ...]
    """For each depth 1 … L, log-probabilities [B, nodes]."""

    @classmethod
    def random(cls, trie: Trie, num_requests: int, generator: torch.Generator, ties: bool = False) -> TableModel:
        """Independent numbers below 0; whole ones, of which many are equal, where ``ties``."""
        tables = []
        for depth in range(1, trie.num_levels + 1):
            values = torch.rand(num_requests, trie.num_nodes(depth), generator=generator, device=generator.device) * -4
            tables.append(values.round() if ties else values)
        return cls(trie, tuple(tables))

    def __call__(  # noqa: PLR0917  # the protocol
        self,
        cache: tuple[Tensor, ...],
        level: int,
        parents_BM: Tensor | None,
        nodes_BM: Tensor,
        children_BMC: Tensor,
        codes_BMC: Tensor,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The protocol of ``tesserec.decoding.beam_search.Step``."""
        assert (parents_BM is None) == (level == 0)
        if parents_BM is not None:
            cache = tuple(nodes.gather(1, parents_BM) for nodes in cache)
            above_BMC, _ = self.trie.children(level - 1, cache[-1])
            assert bool(((above_BMC == nodes_BM[..., None]).any(2) | (nodes_BM < 0)).all())
        flat_BX = children_BMC.clamp(min=0).flatten(1)
        return (*cache, nodes_BM), self.tables[level].gather(1, flat_BX).view(children_BMC.shape)

    def item_scores(self) -> Tensor:
        """The log-probability of each item's tuple, [B, N], added up in the order in which the search adds."""
        scores_BN = torch.zeros(len(self.tables[0]), self.trie.num_items, device=self.trie.device)
        for level, table in enumerate(self.tables):
            scores_BN = scores_BN + table[:, self.trie.paths_NL[:, level]]
        return scores_BN


def exhaustive(model: TableModel, requests: Requests, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The best ``k`` allowed items and their scores, sorted: ties by code tuple, then by place in the bucket."""
    place_N = torch.argsort(model.trie.items)
    allowed_BN = allowed_items(requests, model.trie.num_items).tolist()
    found, values = [], []
    for row, scores in enumerate(model.item_scores().tolist()):
        legal = [item for item, allowed in enumerate(allowed_BN[row]) if allowed]
        best = sorted(legal, key=lambda item: (-scores[item], int(place_N[item])))[:k]
        found.append(best)
        values.append([scores[item] for item in best])
    return found, values


def random_semantic_ids(num_items: int, codebook_sizes: tuple[int, ...], generator: torch.Generator) -> SemanticIds:
    """Code tuples drawn at random, collisions included."""
    columns = [torch.randint(size, (num_items,), generator=generator) for size in codebook_sizes]
    return SemanticIds(torch.stack(columns, 1), codebook_sizes, "random")


def random_requests(num_requests: int, num_items: int, generator: torch.Generator) -> Requests:
    """Random histories and filters of every kind, some of which leave little or nothing."""

    def rows(longest: int) -> Ragged:
        lengths = torch.randint(longest + 1, (num_requests,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return Ragged(offsets, torch.randint(num_items, (int(offsets[-1]),), generator=generator))

    histories, excluded, allowed = rows(num_items), rows(2 * num_items), rows(2 * num_items)
    share, choice, listing = torch.rand(3, generator=generator).tolist()
    available_N = torch.rand(num_items, generator=generator) < share
    filters = Filters(
        choice < 0.7,
        excluded if choice > 0.4 else None,
        available_N if choice < 0.9 else None,
        allowed if listing < 0.3 else None,
    )
    return Requests(History(histories.offsets, histories.values), filters=filters)


def updated_at_random(
    semantic_ids: SemanticIds, num_rounds: int, generator: torch.Generator
) -> tuple[Trie, SemanticIds]:
    """A trie after rounds of insertion and removal, and the table of all items that were ever in it."""
    trie = Trie.build(semantic_ids)
    for _ in range(num_rounds):
        num_new = int(torch.randint(6, (1,), generator=generator))
        new = random_semantic_ids(num_new, semantic_ids.codebook_sizes, generator)
        trie = with_items(trie, new.codes_NL)
        semantic_ids = dataclasses.replace(semantic_ids, codes_NL=torch.cat([semantic_ids.codes_NL, new.codes_NL]))
        gone_N = torch.rand(trie.num_items, generator=generator) < torch.rand(1, generator=generator)
        trie = without_items(trie, gone_N.nonzero().squeeze(1))
    return trie, semantic_ids


def count_mistakes(target: int) -> dict[str, int]:
    """Results of random searches until there are ``target``, and how many of them are wrong in each way.

    Every search has a trie, a model, filters, beams and k of its own, drawn from its number.
    """
    counts = dict.fromkeys(("results", *MISTAKES, "runs"), 0)
    while counts["results"] < target:
        trie, requests, beams, found = _generated(counts["runs"])
        given_BK = found.items_BK >= 0
        rows, items = given_BK.nonzero()[:, 0], found.items_BK[given_BK]
        in_catalog = items < trie.num_items
        leaves = trie.paths_NL[items.clamp(max=trie.num_items - 1), -1:]
        allowed_BN = allowed_items(requests, trie.num_items)
        useful_BP = torch.zeros(len(requests), trie.num_nodes(trie.num_levels), dtype=torch.bool)
        useful_BP[allowed_BN.nonzero()[:, 0], trie.paths_NL[allowed_BN.nonzero()[:, 1], -1]] = True
        is_beam = beams.leaves_BM >= 0
        counts["results"] += len(items)
        counts["illegal"] += int((~in_catalog | ~(beams.leaves_BM[rows] == leaves).any(1)).sum())
        counts["repeated"] += len(items) - len(torch.unique(rows * trie.num_items + items))
        counts["filtered"] += int((~allowed_BN[rows, items]).sum())
        counts["useless_beams"] += int((~useful_BP[is_beam.nonzero()[:, 0], beams.leaves_BM[is_beam]]).sum())
        counts["runs"] += 1
    return counts


def _generated(seed: int) -> tuple[Trie, Requests, Beams, Candidates]:
    """(trie, requests, beams, candidates) of a random model on a random trie with random filters."""
    generator = torch.Generator().manual_seed(seed)
    num_levels, num_items, num_beams, k = (
        int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((1, 5), (1, 400), (1, 41), (1, 41))
    )
    sizes = tuple(torch.randint(1, 13, (num_levels,), generator=generator).tolist())
    trie = Trie.build(random_semantic_ids(num_items, sizes, generator))
    requests = random_requests(NUM_REQUESTS, num_items, generator)
    step = TableModel.random(trie, NUM_REQUESTS, generator, ties=seed % 4 == 0)
    mask = TrieMask.of(trie, requests)
    beams = beam_search(step, (), trie, num_requests=NUM_REQUESTS, num_beams=num_beams, mask=mask)
    return trie, requests, beams, beams_to_items(beams, trie, k, mask)
