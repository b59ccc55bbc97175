"""Mosaic: one causal trunk, a generative and a dense head on the same state, fused with what counting knows.

Paper: none; tesserec's default. The heads' ancestors are TIGER (arXiv 2305.05065) and SASRec (arXiv 1808.09781).
Adds: one position an item in place of one a code; a softmax over the tree that is decoded; baskets as steps that are
    predicted as sets; log-linear fusion of generation, dense scores, co-occurrence, content, personal frequency and
    popularity, with weights by how many training events an item has.
Differs: from TIGER by a trunk that trains all targets of a user in one pass, and by a depth decoder without attention;
    from SASRec by content and codes in the item vectors, cosine scores and steps in place of events.
Checked: tests/retrievers/test_mosaic.py (planted chain and baskets; path scores equal exhaustive search).

Dimensions: B requests · T positions · P labelled pairs · S sources · G groups of items ·
X candidates · N items · D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.config import Field, component, fresh, settings_of
from tesserec.data.batches import (
    Windows,
    history_of,
    next_step_labels,
    shuffled_batches,
    training_windows,
    windows_of,
)
from tesserec.decoding.beginnings import Beginnings
from tesserec.decoding.frontier import Generation
from tesserec.decoding.top_k import MAX_SCORES, top_k
from tesserec.decoding.tree_softmax import NodeRows
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_file import kept_trie
from tesserec.errors import DataError, RecipeError
from tesserec.nn.items import GateConfig, ItemEncoder, earlier_rows, merges_for, own_rows
from tesserec.nn.losses import NegativeSampler
from tesserec.nn.sid_features import SIDKeys
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.content_knn import closeness, profile_cosines
from tesserec.retrievers.cooccurrence import CHUNK_EVENTS, Cooccurrence
from tesserec.retrievers.evidence import require_fitted
from tesserec.retrievers.fusion import FLOOR, NUM_GROUPS, fit_weights, fused, groups_of, union
from tesserec.retrievers.mosaic_network import (
    INPUTS,
    Encoded,
    HeadsConfig,
    Input,
    MosaicNetwork,
)
from tesserec.retrievers.personal_frequency import PersonalFrequency
from tesserec.training.estimate import estimate_training, few_requests, validation_ratio
from tesserec.training.loop import Job, TrainingConfig, seeded, train_model
from tesserec.training.measure import Measured
from tesserec.training.validation import validation_ndcg
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    ComponentState,
    Estimate,
    FitContext,
    History,
    Holdout,
    Interactions,
    Requests,
    SemanticIds,
)

__all__ = ["HeadsConfig", "Mosaic", "RowsConfig"]

Source = Literal["generative", "dense", "cooccurrence", "content", "personal", "popularity"]
SOURCES: tuple[Source, ...] = ("generative", "dense", "cooccurrence", "content", "personal", "popularity")
PRIOR = (0.5, 0.5, 0.25, 0.1, 0.25, 0.1)
"""Weights of the sources in the fusion until they are fitted, the same for all groups of items."""


@component
class RowsConfig:
    """Which items and prefixes have a vector of their own beside codes and content."""

    min_events: Annotated[int, Field(ge=1)] = 5
    """Training events an item, or targets below a prefix, at least."""
    max_rows: Annotated[int, Field(ge=0)] = 200_000
    """Rows of either table at most, the most frequent first."""


@component
class Mosaic:
    """Generates items as code tuples from a causal trunk, and fuses them with dense and counted evidence."""

    model: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    """Shape of the trunk."""
    max_length: Annotated[int, Field(ge=2)] = 128
    """Events of a history that are read, the last ones; a pair at least, or there is nothing to learn."""
    rows: RowsConfig = dataclasses.field(default_factory=RowsConfig)
    """Items and prefixes with vectors of their own."""
    heads: HeadsConfig = dataclasses.field(default_factory=HeadsConfig)
    """Losses and search."""
    targets: Literal["steps", "events"] = "steps"
    """What a state predicts: the next step (basket) as a set, or the next event of the file's order."""
    inputs: tuple[Input, ...] = INPUTS
    """What the trunk sees of an event: see ``tesserec.retrievers.mosaic_network.INPUTS``."""
    keys: SIDKeys | None = None
    """Which keys of its codes an item's vector is made of, beside content and its own row; None: a row a code."""
    gate: GateConfig | None = None
    """How an item's own vector and that of its codes and content are mixed; None: they are added."""
    answer: Literal["fused", "generative", "dense"] = "fused"
    """What ``retrieve`` answers with: a fusion, or one head alone."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = SOURCES
    """What the fusion listens to; the other sources weigh nothing in it, and only propose."""
    weights: Literal["shared"] | None = None
    """Whether all items share the weights of the fusion; None: they go by an item's training events."""
    cooccurrence: Cooccurrence = dataclasses.field(default_factory=Cooccurrence)
    """Counted evidence; its popularity answers requests without a history."""
    personal: PersonalFrequency = dataclasses.field(default_factory=PersonalFrequency)
    """Counted evidence of repeats."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """How the trunk and its heads are trained."""

    def __post_init__(self) -> None:
        if set(self.inputs) <= {"times"}:
            raise ValueError('inputs name nothing of an item: add "codes", "content" or "own"')
        if self.keys is not None and "codes" not in self.inputs:
            raise ValueError('keys are made of codes, which inputs leave out: add "codes", or leave out keys')
        if self.gate is not None and ("own" not in self.inputs or not {"codes", "content"} & set(self.inputs)):
            raise ValueError('a gate mixes an item\'s own vector with codes or content: inputs need "own" and either')
        self._network: MosaicNetwork | None = None
        self._weights_GS = _by_group(torch.tensor(PRIOR))
        self._group_N = torch.zeros(0, dtype=torch.uint8)
        self.training_log: list[dict[str, float]] = []

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Count, train both heads, and fit the weights of the fusion, where it is asked for, on ``context.validation``.

        Without ``context.validation``, and for one head alone, the weights are those of a warm start or the prior.
        """
        self._count(train, catalog, context)
        fitted = dataclasses.replace(self)
        fitted._group_N = self._group_N
        log = train_model(fitted.job(train, catalog, context), self.training, context)
        if context.validation is not None and self.answer == "fused":
            fitted._weights_GS = fitted._fitted_weights(require_fitted(fitted._network, fitted), context.validation)
        self._network, self._weights_GS, self.training_log = fitted._network, fitted._weights_GS, log

    def estimate(self, train: Interactions, catalog: Catalog, context: FitContext) -> Estimate:
        """Time and memory of ``fit`` with the same arguments, from a part of each of its stages."""
        probe = fresh(self)
        counting = probe.cooccurrence.estimate(train, catalog, context)
        probe._count(train.select(torch.arange(min(len(train), CHUNK_EVENTS))), catalog, context)
        training = estimate_training(partial(probe.job, train, catalog), self.training, context)
        few = few_requests(context)
        with Measured() as fusing:
            if few.validation is not None and self.answer == "fused":
                probe._fitted_weights(require_fitted(probe._network, probe), few.validation)
        seconds = counting.seconds + training.seconds + fusing.seconds * validation_ratio(context)
        kept = probe.cooccurrence.pair_bytes(len(train), len(catalog))
        return Estimate(seconds, max(counting.peak_bytes, training.peak_bytes + kept, fusing.peak_rss_bytes + kept))

    def job(self, train: Interactions, catalog: Catalog, context: FitContext) -> Job[Windows]:
        """What ``fit`` trains: a new network, which takes the place of an earlier one."""
        network = self._network = self._new_network(train, catalog, context)
        if context.warm_start is not None:
            network.load_earlier(context.warm_start.part("network"))
            self._weights_GS = _by_group(context.warm_start.tensors["fusion"])
        windows = training_windows(self._read(history_of(train)), self.max_length)
        events = train.positives()
        sampler = NegativeSampler(events.item_counts(), self._num_negatives(network.num_items))
        discounts = self.heads.future_discount is not None
        beginnings = Beginnings.of(events.first_times(), network.tree.trie) if discounts else None
        size = self.training.batch_size

        def validate() -> float:
            assert context.validation is not None
            return validation_ndcg(lambda requests, k: self._answer(network, requests, k, "dense"), context.validation)

        return Job(
            "Mosaic",
            network,
            lambda generator: (b for b in shuffled_batches(windows, size, generator) if len(next_step_labels(b)[0])),
            -(-len(windows) // size),
            lambda batch: network.loss(batch, self.heads, sampler, beginnings),
            None if context.validation is None else validate,
            settings_of(self) | {"windows": len(windows), "items": network.num_items},
            lambda batch: batch.items_BT.numel(),
        )

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow, with the weighted log-evidence of each source as trace.

        A request without a history is answered by popularity.
        """
        network = require_fitted(self._network, self)
        size = _num_at_once(network)
        if len(requests) <= size:
            return self._answer(network, requests, k, self.answer)
        parts = [self._answer(network, requests.take(rows), k, self.answer) for rows in requests.batches(size)]
        return Candidates.concatenate(parts)

    def answering(self, answer: Literal["fused", "generative", "dense"]) -> Mosaic:
        """The same fitted system with another ``answer``; weights and counts are shared, so it costs nothing."""
        other = dataclasses.replace(self, answer=answer)
        other._network, other.training_log = self._network, self.training_log
        other._weights_GS, other._group_N = self._weights_GS, self._group_N
        return other

    @torch.no_grad()
    def generation(self, requests: Requests) -> Generation[None]:
        """The requests, read all at once by the generative head, for searches with options of their own.

        Raises ``DataError`` for a request without a history: ``retrieve`` answers those by popularity.
        """
        network = require_fitted(self._network, self)
        empty = (requests.history.lengths == 0).nonzero()
        if len(empty):
            raise DataError(f"request {int(empty[0])} has no history, so nothing can be generated: ask retrieve for it")
        encoded = network.encode(windows_of(self._read(requests.history), self.max_length))
        return network.generation(encoded, requests)

    def state(self) -> ComponentState:
        """Weights of the network and of the fusion, and the counts."""
        network = require_fitted(self._network, self)
        return ComponentState.merged(
            ComponentState(dict(network.state_dict())).under("network"),
            self.cooccurrence.state().under("cooccurrence"),
            self.personal.state().under("personal"),
            ComponentState({"fusion": self._weights_GS, "group": self._group_N}),
        )

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``; items added since are reached through their codes and content."""
        self.cooccurrence.restore(state.part("cooccurrence"), catalog, context)
        self.personal.restore(state.part("personal"), catalog, context)
        earlier, trie = state.part("network"), self._trie(_semantic_ids(context), context)
        row_N = earlier_rows(earlier.part("items").tensors)
        row_N = F.pad(row_N, (0, len(catalog) - len(row_N)), value=-1)
        items = self._encoder(row_N, torch.zeros(len(catalog)), context, earlier)
        self._network = MosaicNetwork.restored(earlier.tensors, self.model, items, trie, "times" in self.inputs)
        self._weights_GS = _by_group(state.tensors["fusion"])
        group_N = state.tensors.get("group", torch.zeros(0, dtype=torch.uint8))
        self._group_N = F.pad(group_N, (0, len(catalog) - len(group_N)))

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Make items beyond the fitted ones answerable, through their codes and content."""
        self.restore(self.state(), catalog, context)

    def _new_network(self, train: Interactions, catalog: Catalog, context: FitContext) -> MosaicNetwork:
        semantic_ids = _semantic_ids(context)
        counts_N = train.positives().item_counts()
        least, most = self.rows.min_events, self.rows.max_rows
        trie = self._trie(semantic_ids, context)
        nodes = NodeRows.chosen(trie, counts_N, least, most)
        whole = self._num_negatives(len(catalog)) is None
        earlier = None if context.warm_start is None else context.warm_start.part("network")
        with seeded(context.seed):
            return MosaicNetwork(
                self.model,
                self._encoder(own_rows(counts_N, least, most), counts_N, context, earlier),
                trie,
                nodes,
                len(train.kinds),
                repeats=whole and _repeat_share(train) > 0.01,
                nodes_of_items=whole,
                scale=self.heads.scale,
                reads_times="times" in self.inputs,
            )

    def _encoder(
        self, row_N: Tensor, events_N: Tensor, context: FitContext, earlier: ComponentState | None
    ) -> ItemEncoder:
        """Item vectors of what ``inputs`` name; ``earlier`` is a network's state."""
        semantic_ids = _semantic_ids(context)
        items = None if earlier is None else earlier.part("items").tensors
        return ItemEncoder(
            semantic_ids if "codes" in self.inputs else None,
            _content(context) if "content" in self.inputs else None,
            row_N if "own" in self.inputs else torch.full_like(row_N, -1),
            self.model.width,
            keys=self.keys,
            merges_M2=merges_for(self.keys, semantic_ids, events_N, items),
            gate=self.gate,
            events_N=events_N,
        )

    def _read(self, history: History) -> History:
        """The history as the trunk reads it: without steps, each event is one of its own."""
        if self.targets == "steps":
            return history
        return dataclasses.replace(history, columns={k: v for k, v in history.columns.items() if k != "step"})

    def _trie(self, semantic_ids: SemanticIds, context: FitContext) -> Trie:
        """The trie of a table; popular items of a bucket come first."""
        popularity_N = self.cooccurrence.popularity.state().tensors["score"]
        return kept_trie(context.derived_folder, semantic_ids, popularity_N)

    def _count(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        self.cooccurrence.fit(train, catalog, context)
        self.personal.fit(train, catalog, context)
        events_N = train.positives().item_counts()
        self._group_N = groups_of(events_N * (self.weights != "shared")).to(torch.uint8)

    def _num_negatives(self, num_items: int) -> int | None:
        return self.heads.num_negatives or (4096 if num_items > 50_000 else None)

    def _answer(self, network: MosaicNetwork, requests: Requests, k: int, answer: str) -> Candidates:
        """Lists of one batch; requests without a history get popular items."""
        empty_B = requests.history.lengths == 0
        if bool(empty_B.all()):
            return _untraced(self.cooccurrence.popularity.retrieve(requests, k), answer)
        if bool(empty_B.any()):
            rows = [empty_B.nonzero().squeeze(1), (~empty_B).nonzero().squeeze(1)]
            parts = [self._answer(network, requests.take(some), k, answer) for some in rows]
            order = torch.cat(rows).argsort()
            return _reordered(Candidates.concatenate(parts), order)
        with torch.no_grad():
            encoded = network.encode(windows_of(self._read(requests.history), self.max_length))
            if answer == "dense":
                return top_k(network.dense_log_probs(encoded), requests, k)
            if answer == "generative":
                generated = network.generate(encoded, requests, max(self.heads.num_beams, k), k)
                return dataclasses.replace(generated, trace={})
            weights_GS = self._weights_GS * self._listens_S
            items_BX, evidence_BXS = self._evidence(network, encoded, requests, k, weights_GS.any(0))
        weights_BXS = weights_GS[self._group_N[items_BX.clamp(min=0)].long()]
        return fused(items_BX, evidence_BXS, weights_BXS, SOURCES, k)

    def _evidence(
        self, network: MosaicNetwork, encoded: Encoded, requests: Requests, k: int, heard_S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The candidates of all sources [B, X], and each source's log-probability of each of them [B, X, S].

        A source that is not heard is not asked what it gives them; 0 stands for it.
        """
        most = max(self.heads.num_candidates, k)
        dense_BN = network.dense_log_probs(encoded)
        counted = [source.shares(requests) for source in (self.cooccurrence, self.personal, self.personal.popularity)]
        generated = network.generate(encoded, requests, max(self.heads.num_beams, k), most)
        proposed = [
            generated.items_BK,
            top_k(dense_BN, requests, most).items_BK,
            *(shares.best(requests, most) for shares in counted),
        ]
        if self.heads.num_content_candidates and heard_S[SOURCES.index("content")]:
            cosines_BN = profile_cosines(network.items.content_NF, requests.history)
            near = top_k(cosines_BN, requests, self.heads.num_content_candidates)
            proposed.append(near.items_BK.masked_fill(near.scores_BK <= 0, PAD))
        items_BX = union(proposed)
        evidence: dict[Source, Callable[[], Tensor]] = {
            "generative": lambda: network.item_log_probs(encoded, items_BX, generated),
            "dense": lambda: dense_BN.gather(1, items_BX.clamp(min=0)),
            "cooccurrence": lambda: _log(counted[0].at(items_BX)),
            "content": lambda: _log(closeness(network.items.content_NF, requests.history, items_BX)),
            "personal": lambda: _log(counted[1].at(items_BX)),
            "popularity": lambda: _log(counted[2].at(items_BX)),
        }
        nothing_BX = torch.zeros(items_BX.shape)
        told = [evidence[name]() if heard_S[s] else nothing_BX for s, name in enumerate(SOURCES)]
        return items_BX, torch.stack(told, -1)

    def _fitted_weights(self, network: MosaicNetwork, validation: Holdout) -> Tensor:
        known = validation.take((validation.requests.history.lengths > 0).nonzero().squeeze(1))
        parts = []
        with torch.no_grad():
            for rows in known.requests.batches(_num_at_once(network)):
                requests = known.requests.take(rows)
                encoded = network.encode(windows_of(self._read(requests.history), self.max_length))
                parts.append(self._evidence(network, encoded, requests, 10, self._listens_S > 0))
        if not parts:
            return self._weights_GS
        return fit_weights(parts, known.relevant, torch.tensor(PRIOR) * self._listens_S, self._group_N.long())

    @property
    def _listens_S(self) -> Tensor:
        """1 for each source that the fusion listens to, else 0."""
        return torch.tensor([float(name in self.sources) for name in SOURCES])


def _by_group(weights: Tensor) -> Tensor:
    """Weights [G, S]: of earlier versions, which had [S], the same for all groups."""
    return weights if weights.ndim > 1 else weights.expand(NUM_GROUPS, -1).clone()


def _log(share_BX: Tensor) -> Tensor:
    return (share_BX + FLOOR).log()


def _num_at_once(network: MosaicNetwork) -> int:
    """Requests that are answered at once."""
    return min(256, max(1, MAX_SCORES // network.num_items))


def _semantic_ids(context: FitContext) -> SemanticIds:
    if context.semantic_ids is None:
        raise RecipeError("Mosaic generates Semantic IDs and was given none: add a [semantic_ids] table to the recipe")
    return context.semantic_ids


def _repeat_share(train: Interactions) -> float:
    """The share of positive events whose user had the item before."""
    events = train.positives()
    pairs = torch.unique(events.user_E.long() * len(events.items) + events.item_E)
    return 1 - len(pairs) / max(len(events), 1)


def _content(context: FitContext) -> Tensor | None:
    return None if context.embeddings is None else context.embeddings.vectors_ND


def _untraced(candidates: Candidates, answer: str) -> Candidates:
    """Popular items in the form of the other answers: no source says anything of them."""
    if answer != "fused":
        return candidates
    nothing = torch.zeros_like(candidates.scores_BK)
    source_BK = torch.full_like(candidates.items_BK, -1)
    return dataclasses.replace(candidates, source_BK=source_BK, sources=SOURCES, trace=dict.fromkeys(SOURCES, nothing))


def _reordered(candidates: Candidates, order: Tensor) -> Candidates:
    return Candidates(
        candidates.items_BK[order],
        candidates.scores_BK[order],
        None if candidates.source_BK is None else candidates.source_BK[order],
        candidates.sources,
        {name: values[order] for name, values in candidates.trace.items()},
    )
