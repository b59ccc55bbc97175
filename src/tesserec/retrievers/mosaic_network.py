"""The network of Mosaic: item vectors, a causal trunk over steps, a dense and a generative head.

Dimensions: B windows · T positions · S labelled states · P (state, target) pairs · N items · F content · D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.data.batches import Windows, next_step_labels, step_starts
from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.beginnings import Beginnings, Future
from tesserec.decoding.frontier import Generation
from tesserec.decoding.tree_softmax import NodeRows, TreeSoftmax
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.nn.growth import load_grown
from tesserec.nn.items import ItemEncoder, KeepsVectors
from tesserec.nn.losses import NegativeSampler, catalog_log_probs, sampled_softmax_loss
from tesserec.nn.repeats import RepeatBonus
from tesserec.nn.transformer import TransformerConfig, Trunk, distance_buckets
from tesserec.types import NEVER, NO_TIME, PAD, Candidates, ComponentState, Requests

__all__ = ["INPUTS", "HeadsConfig", "Input", "MosaicNetwork"]

Input = Literal["codes", "content", "own", "times"]
INPUTS: tuple[Input, ...] = ("codes", "content", "own", "times")
"""What the trunk sees of an event, beside its kind: the codes and the content of its item, the item's own vector, and
the time since the step before."""

NUM_GAPS = 12
"""Buckets of the time between two steps: the same time, and doubling from a day up to more than 512 days."""
UNTIMED_SHARE = 0.2
"""Share of the windows that are trained on without their times."""


@component
class HeadsConfig:
    """The two heads and what they are trained on."""

    scale: Annotated[float, Field(gt=0)] = 20.0
    """Factor on cosines at the start, 1 / temperature; learnt from there."""
    generative_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the generative loss beside the dense one."""
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the generative loss that follows the dense head's probabilities instead of what came next; only where
    the dense head's softmax runs over the whole catalog."""
    max_pairs: Annotated[int, Field(ge=1)] = 1024
    """(state, target) pairs a step on which the generative head is trained, drawn from all."""
    num_negatives: Annotated[int, Field(ge=1)] | None = None
    """Items drawn a step for the dense head's softmax; None: the whole catalog up to 50,000 items, else 4,096."""
    future_discount: Annotated[float, Field(ge=0)] | None = None
    """What is taken in training off the logits of items whose first event came after what is to be predicted: the
    larger, the less they are negatives, which they could not be chosen as. None: they are negatives like all others."""
    num_beams: Annotated[int, Field(ge=1)] = 50
    """Beams of a request."""
    num_candidates: Annotated[int, Field(ge=1)] = 100
    """Items that each source proposes to the fusion, content left out."""
    num_content_candidates: Annotated[int, Field(ge=1)] | None = None
    """Items that content proposes, the nearest to what the user had, so that those without events are answered, which
    other sources seldom propose; compares all items' vectors with each request. None: none."""


@dataclass(frozen=True)
class Encoded:
    """What both heads need of histories."""

    states_SD: Tensor
    bonus_SN: Tensor | None
    """What repeats add to the dense logits; None where the network has no repeats."""
    level_bonuses: list[Tensor] | None
    """What they add to the logits of each level of the tree, [S, nodes]."""


class MosaicNetwork(KeepsVectors):
    """States of histories, and what both heads make of them."""

    def __init__(  # noqa: PLR0917  # parts that the component has at hand
        self,
        config: TransformerConfig,
        items: ItemEncoder,
        trie: Trie,
        nodes: NodeRows,
        num_kinds: int,
        repeats: bool,
        nodes_of_items: bool,
        scale: float = 20.0,
        reads_times: bool = True,
    ) -> None:
        """``nodes_of_items``: the tree is made of the vectors of all items too; with ``all_units`` in every step."""
        super().__init__()
        self._reads_times = reads_times
        self.items = items
        self.kinds = nn.Embedding(max(num_kinds, 1), config.width)
        self.gaps = nn.Embedding(NUM_GAPS + 1, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.trunk = Trunk(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.tree = TreeSoftmax(trie, nodes, config.width, scale, nodes_of_items)
        self.repeats = RepeatBonus(config.width, 1 + trie.num_levels) if repeats else None
        nn.init.zeros_(self.kinds.weight)
        nn.init.zeros_(self.gaps.weight)

    @property
    def num_items(self) -> int:
        """Items of the catalog."""
        return len(self.items.row_N)

    def units(self, items: Tensor) -> Tensor:
        """Vectors [X, D] of items [X], scaled to length 1."""
        return F.normalize(self.items(items), dim=-1)

    def all_units(self) -> Tensor:
        """``units`` of the whole catalog, [N, D]; outside of training they are kept until ``train`` or ``eval``.

        The nodes of the tree are made of them from here on.
        """

        def units() -> Tensor:
            units_ND = F.normalize(self.items.table(), dim=-1)
            if self.tree.share is not None:
                self.tree.place(units_ND)
            return units_ND

        return self.kept(units)

    def forward(self, windows: Windows) -> Tensor:
        """States [B, T, D]; events of one step see each other, and the steps before."""
        valid_BT, steps_BT = windows.valid_BT, windows.steps_BT
        x_BTD = self.norm(self.items(windows.items_BT.clamp(min=0))) + self.kinds(windows.kinds_BT)
        if self._reads_times:
            told_BT = ~windows.gaps_BT.isnan()
            if self.training:  # requests may come without times: they must not be a surprise
                told_BT = told_BT & (torch.rand(len(told_BT), 1, device=told_BT.device) >= UNTIMED_SHARE)
            x_BTD = x_BTD + self.gaps(gap_buckets(windows)) * told_BT[..., None]
        allowed_BTT = (steps_BT[:, None, :] >= steps_BT[:, :, None]) & valid_BT[:, None, :]
        distance_BTT = (steps_BT[:, None, :] - steps_BT[:, :, None]).clamp(min=0)
        states: Tensor = self.trunk(x_BTD, allowed_BTT, distance_buckets(distance_BTT))
        return states

    def encode(self, windows: Windows, position_S: Tensor | None = None) -> Encoded:
        """The states of steps that end at flat positions b * T + t (of each window's last where None), and bonuses.

        A step's state is the mean over its events, so that their order in the file says nothing.
        """
        batch, length = windows.items_BT.shape
        if position_S is None:
            position_S = torch.arange(1, batch + 1, device=windows.items_BT.device) * length - 1
        rows_B1 = torch.arange(batch, device=position_S.device)[:, None] * length
        step_X = (rows_B1 + step_starts(windows)).flatten()
        states_XD = self.forward(windows).flatten(0, 1)
        valid_X = windows.valid_BT.flatten()
        sums_XD = torch.zeros_like(states_XD).index_add(0, step_X[valid_X], states_XD[valid_X])
        counts_X = torch.bincount(step_X[valid_X], minlength=batch * length)
        states_SD = sums_XD[step_X[position_S]] / counts_X[step_X[position_S], None].clamp(min=1)
        if self.repeats is None:
            return Encoded(states_SD, None, None)
        trie, strengths = self.tree.trie, self.repeats.strengths(windows, position_S)
        levels = [
            self.repeats(1 + level, strengths, trie.paths_NL[:, level], trie.num_nodes(level + 1), states_SD)
            for level in range(trie.num_levels)
        ]
        return Encoded(states_SD, self.repeats(0, strengths, None, self.num_items, states_SD), levels)

    def loss(
        self, windows: Windows, heads: HeadsConfig, sampler: NegativeSampler, beginnings: Beginnings | None = None
    ) -> Tensor:
        """Dense cross-entropy plus the weighted generative one; the targets of one step share a weight of 1.

        ``beginnings`` are those of the log, for ``heads.future_discount``.
        """
        positions_P, targets_P = next_step_labels(windows)
        position_S, state_P = torch.unique(positions_P, return_inverse=True)
        encoded = self.encode(windows, position_S)
        weight_P = 1 / torch.bincount(state_P).float()[state_P]
        future: Future | None = None
        if beginnings is not None and heads.future_discount is not None:
            # A basket may last: no target is of its own future.
            first_P = beginnings.items_N[targets_P]
            time_S = times_after(windows, position_S).scatter_reduce(0, state_P, first_P, "amax")
            future = Future(beginnings, time_S, heads.future_discount)
        query_SD = F.normalize(encoded.states_SD, dim=-1) * self.log_scale.exp()
        teacher_SN: Tensor | None = None
        if sampler.num_negatives is None:
            bonus_SN = encoded.bonus_SN
            if future is not None:
                later_SN = future.of_items(torch.arange(len(position_S))[:, None], torch.arange(self.num_items))
                bonus_SN = later_SN if bonus_SN is None else bonus_SN + later_SN
            log_probs_SN = catalog_log_probs(query_SD, self.all_units(), bonus_SN)
            dense = -(log_probs_SN[state_P, targets_P] * weight_P).sum() / weight_P.sum()
            teacher_SN = log_probs_SN.detach() if heads.distillation else None
        else:
            later = None if future is None else partial(future.of_items, state_P[:, None])
            dense = sampled_softmax_loss(query_SD, self.units, state_P, targets_P, sampler, weight_P, later)
        dense = dense + self.items.alignment(targets_P)
        if not heads.generative_weight:
            return dense
        drawn_P = torch.randperm(len(targets_P))[: heads.max_pairs]
        pairs = encoded.states_SD, state_P[drawn_P], targets_P[drawn_P]
        if teacher_SN is None:
            gain_P = self.tree.path_log_probs(*pairs, encoded.level_bonuses, future)
        else:
            hard_P, soft_P = self.tree.distilled(*pairs, teacher_SN, encoded.level_bonuses, future)
            gain_P = (1 - heads.distillation) * hard_P + heads.distillation * soft_P
        generative = -(gain_P * weight_P[drawn_P]).sum() / weight_P[drawn_P].sum()
        return dense + heads.generative_weight * generative

    def dense_log_probs(self, encoded: Encoded) -> Tensor:
        """Log-softmax of the scaled cosines with all items, and the bonus of repeats, [B, N]."""
        query_SD = F.normalize(encoded.states_SD, dim=-1) * self.log_scale.exp()
        return catalog_log_probs(query_SD, self.all_units(), encoded.bonus_SN)

    def item_log_probs(self, encoded: Encoded, items_BX: Tensor, generated: Candidates | None = None) -> Tensor:
        """The generative head's log-probability of each item's code tuple, [B, X]; 0 at ``PAD``.

        What was ``generated`` for the same states is not worked out again.
        """
        self._place_nodes()
        size = self.num_items + 1  # the last column is that of PAD
        known_BN = torch.full((len(items_BX), size), torch.nan)
        if generated is not None:
            known_BN.scatter_(1, generated.items_BK.remainder(size), generated.scores_BK)
        known_BN[:, PAD] = 0
        log_probs_BX = known_BN.gather(1, items_BX.remainder(size))
        rows, columns = log_probs_BX.isnan().nonzero(as_tuple=True)
        log_probs_BX[rows, columns] = self.tree.path_log_probs(
            encoded.states_SD, rows, items_BX[rows, columns], encoded.level_bonuses
        )
        return log_probs_BX

    def generate(self, encoded: Encoded, requests: Requests, num_beams: int, k: int) -> Candidates:
        """Items by beam search over the tree, at most ``k`` a request."""
        read = self.generation(encoded, requests)
        beams = beam_search(read.step, None, read.trie, num_requests=len(requests), num_beams=num_beams, mask=read.mask)
        return beams_to_items(beams, read.trie, k, read.mask)

    def generation(self, encoded: Encoded, requests: Requests) -> Generation[None]:
        """What searches over the tree need."""

        def step(  # noqa: PLR0917  # the protocol
            cache: None,
            level: int,
            parents_BM: Tensor | None,
            nodes_BM: Tensor,
            children_BMC: Tensor,
            codes_BMC: Tensor,
        ) -> tuple[None, Tensor]:
            bonus_BG = None if encoded.level_bonuses is None else encoded.level_bonuses[level]
            with torch.no_grad():
                return None, self.tree.children_log_probs(level, encoded.states_SD, nodes_BM, children_BMC, bonus_BG)

        self._place_nodes()
        return Generation(step, None, self.tree.trie, TrieMask.of(self.tree.trie, requests), len(requests))

    def _place_nodes(self) -> None:
        if self.tree.share is not None:
            self.all_units()

    @classmethod
    def restored(
        cls,
        tensors: Mapping[str, Tensor],
        config: TransformerConfig,
        items: ItemEncoder,
        trie: Trie,
        reads_times: bool = True,
    ) -> MosaicNetwork:
        """The network of a state dict, for a catalog of at least the items that it was trained with."""
        nodes = NodeRows(tensors["tree.row_depth"], tensors["tree.row_key"])
        num_kinds, repeats, of_items = (
            len(tensors["kinds.weight"]),
            "repeats.weight" in tensors,
            "tree.share" in tensors,
        )
        network = cls(config, items, trie, nodes, num_kinds, repeats, of_items, reads_times=reads_times)
        load_grown(network, tensors, growing=("items.row_N", "items.events_N"))
        return network.eval()

    def load_earlier(self, earlier: ComponentState) -> None:
        """Start from another fit's weights: those of every item and prefix with an own vector in both.

        Raises ``VersionMismatchError`` for a fit of other settings, or of a larger catalog. A fit that saw no repeats
        says nothing of them.
        """
        self.items.load_earlier(earlier.part("items").tensors)
        tensors, of_this_fit = earlier.tensors, ["items.", "tree.row"]
        if self.repeats is None or "repeats.weight" not in tensors:
            of_this_fit.append("repeats.")
        kept = {name: value for name, value in tensors.items() if not name.startswith(tuple(of_this_fit))}
        own = {name: value for name, value in self.state_dict().items() if name.startswith(tuple(of_this_fit))}
        load_grown(self, {**kept, **own})
        nodes = NodeRows(self.tree.row_depth, self.tree.row_key)
        before = NodeRows(tensors["tree.row_depth"], tensors["tree.row_key"])
        with torch.no_grad():
            self.tree.rows.weight.copy_(nodes.moved(before, tensors["tree.rows.weight"]))


def times_after(windows: Windows, position_S: Tensor) -> Tensor:
    """When the step began that follows each of the flat positions b * T + t, [S] int64; the latest where unknown."""
    time_S = windows.times_BT.flatten()[position_S + 1]
    return time_S.masked_fill(time_S == NO_TIME, NEVER - 1)


def gap_buckets(windows: Windows) -> Tensor:
    """Bucket in [0, NUM_GAPS] of the time since the step before, [B, T]: 0 for none before, 1 for the same time."""
    gaps_BT = windows.gaps_BT.nan_to_num()
    buckets_BT = torch.log2(gaps_BT.clamp(min=0) + 1).ceil().long() + 1
    return buckets_BT.clamp(max=NUM_GAPS).masked_fill(gaps_BT < 0, 0)
