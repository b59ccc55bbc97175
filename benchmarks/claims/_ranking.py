"""A small ranking model over item features, trained on what users bought next and judged by AUC on later events.

The vector of an item is the sum of its parts: a row of its own, a linear map of floats, rows of its codes. A user is
the mean of the last items; a network of one hidden layer scores user, item and their product. Negatives are what
other users bought, so that popularity alone earns nothing, and at the test items that were bought about as often as
the target.

Dimensions: B requests or examples · T items of a history · C candidates · N items · F features · M targets · D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims._cells import Values
from tesserec.data.batches import Windows, batches_of_like_length, history_of, windows_of
from tesserec.nn.sid_features import SIDFeatures
from tesserec.training.loop import Job, TrainingConfig, seeded, train_model
from tesserec.types import PAD, FitContext, Holdout, Interactions

__all__ = ["BINS", "Parts", "RankingConfig", "auc", "trained"]

BINS = (0, 1, 5, 20)
"""Where groups of items of like popularity begin, in training events: cold, rare, and two of the others."""


@dataclass(frozen=True)
class RankingConfig:
    """The model and its training, the same for all kinds of features."""

    width: int = 16
    """Features of an item's vector."""
    hidden_size: int = 64
    """Units of the hidden layer."""
    max_length: int = 10
    """Items of a history that are read, the last ones."""
    num_negatives: int = 4
    """Negatives of an example in training."""
    num_test_negatives: int = 50
    """Negatives of a target when judged."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=8, batch_size=2048, learning_rate=3e-3)
    )
    """The best epoch counts."""
    num_validated: int = 2000
    """Validation requests that are asked after an epoch, evenly spaced."""


@dataclass(frozen=True)
class Parts:
    """What is known of the items."""

    own: bool = False
    """A row for each item that has training events."""
    floats_NF: Tensor | None = None
    """Numbers that a linear map turns into a vector."""
    codes: SIDFeatures | None = None
    """Rows of codes, of the model's width."""


@dataclass(frozen=True)
class _Examples:
    items_BT: Tensor
    target_B: Tensor


class _Model(nn.Module):
    has_own_N: Tensor

    def __init__(self, config: RankingConfig, parts: Parts, counts_N: Tensor) -> None:
        super().__init__()
        self.num_negatives = config.num_negatives
        self.own = nn.Embedding(len(counts_N), config.width) if parts.own else None
        self.floats = None
        if parts.floats_NF is not None:
            self.register_buffer("floats_NF", parts.floats_NF)
            self.floats = nn.Linear(parts.floats_NF.shape[1], config.width)
        self.codes = parts.codes
        self.register_buffer("has_own_N", (counts_N > 0).float())
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(3 * config.width, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)
        self.scale = nn.Parameter(torch.ones(()))
        if self.own is not None:
            nn.init.normal_(self.own.weight, std=0.1)

    def table(self) -> Tensor:
        """Vectors of all items, [N, D]."""
        table_ND = torch.zeros(len(self.has_own_N), self.norm.normalized_shape[0])
        if self.own is not None:
            table_ND = table_ND + self.own.weight * self.has_own_N[:, None]
        if self.floats is not None:
            table_ND = table_ND + self.floats(self.get_buffer("floats_NF"))
        if self.codes is not None:
            table_ND = table_ND + self.codes.table()
        return table_ND

    def users(self, table_ND: Tensor, items_BT: Tensor) -> Tensor:
        """Users of the items of their histories (``PAD`` counts for nothing), [B, D]."""
        shown_BT1 = (items_BT != PAD)[..., None].to(table_ND.dtype)
        sums_BD = (F.embedding(items_BT.clamp(min=0), table_ND) * shown_BT1).sum(1)
        mean_BD: Tensor = self.norm(sums_BD / shown_BT1.sum(1).clamp(min=1))
        return mean_BD

    def score(self, users_BD: Tensor, items_BCD: Tensor) -> Tensor:
        """Logits [B, C]."""
        users_BCD = users_BD[:, None].expand_as(items_BCD)
        product_BCD = users_BCD * items_BCD
        joined = torch.cat([users_BCD, items_BCD, product_BCD], -1)
        logits: Tensor = self.out(F.gelu(self.hidden(joined))).squeeze(-1) + self.scale * product_BCD.sum(-1)
        return logits

    def loss(self, examples: _Examples) -> Tensor:
        """Mean logistic loss of the target and of some targets of other examples."""
        table_ND = self.table()
        others_BC = examples.target_B[
            torch.randint(len(examples.target_B), (len(examples.target_B), self.num_negatives))
        ]
        items_BC = torch.cat([examples.target_B[:, None], others_BC], 1)
        logits_BC = self.score(self.users(table_ND, examples.items_BT), F.embedding(items_BC, table_ND))
        wanted_BC = torch.zeros_like(logits_BC)
        wanted_BC[:, 0] = 1
        weight_BC = (items_BC != examples.target_B[:, None]).to(logits_BC.dtype)
        weight_BC[:, 0] = 1
        return F.binary_cross_entropy_with_logits(logits_BC, wanted_BC, weight_BC)


def trained(config: RankingConfig, parts: Parts, train: Interactions, validation: Holdout, seed: int) -> nn.Module:
    """The model after training on every positive event that has events before it; its best epoch by validation."""
    events = train.positives()
    history = history_of(events)
    before_E = torch.arange(len(history.items)) - history.offsets[:-1][history.rows]
    ends = before_E.nonzero().squeeze(1)
    lengths = before_E[ends].clamp(max=config.max_length)
    with seeded(seed):
        model = _Model(config, parts, events.item_counts())

    def batches(generator: torch.Generator) -> Iterator[_Examples]:
        for chosen in batches_of_like_length(lengths, config.training.batch_size, generator):
            at = ends[chosen]
            items_BT = Windows(history, at - lengths[chosen], at, at).items_BT
            yield _Examples(items_BT, history.items[at])

    some = torch.linspace(0, len(validation) - 1, min(config.num_validated, len(validation))).long()
    asked = validation.take(some)

    def validate() -> float:
        return float(auc(config, model, asked, train)["auc"].nanmean())

    job = Job("ranking model", model, batches, -(-len(ends) // config.training.batch_size), model.loss, validate)
    train_model(job, config.training, FitContext(seed=seed))
    return model


def auc(config: RankingConfig, model: nn.Module, holdout: Holdout, train: Interactions) -> Values:
    """The share of negatives that score below the target, of each request (the mean over its targets), by popularity.

    ``auc`` is over all targets, ``cold_auc`` over those without training events, ``rare_auc`` over those with few.
    A target's negatives are the same for every model: drawn from the items of its group that the user did not have.
    """
    assert isinstance(model, _Model)
    counts_N = train.positives().item_counts()
    target_M, row_M = holdout.relevant.values, holdout.relevant.rows
    group_N = torch.bucketize(counts_N, torch.tensor(BINS), right=True)
    negatives_MC, legal_MC = _negatives(config, holdout, group_N)
    with torch.no_grad():
        table_ND = model.table()
        users_BD = model.users(table_ND, windows_of(holdout.requests.history, config.max_length).items_BT)
        items_MC = torch.cat([target_M[:, None], negatives_MC], 1)
        parts = torch.split(torch.arange(len(target_M)), 2048)
        logits_MC = torch.cat([model.score(users_BD[row_M[p]], table_ND[items_MC[p]]) for p in parts])
    below_MC = (logits_MC[:, 1:] < logits_MC[:, :1]).double() + 0.5 * (logits_MC[:, 1:] == logits_MC[:, :1]).double()
    auc_M = (below_MC * legal_MC).sum(1) / legal_MC.sum(1)
    slices = {"auc": group_N[target_M] >= 0, "cold_auc": group_N[target_M] == 1, "rare_auc": group_N[target_M] == 2}
    return {name: _request_means(auc_M, keep_M, row_M, len(holdout)) for name, keep_M in slices.items()}


def _negatives(config: RankingConfig, holdout: Holdout, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """Items [M, C] of the group of each target, and which of them the request's user neither had nor wants."""
    target_M, row_M, history = holdout.relevant.values, holdout.relevant.rows, holdout.requests.history
    generator = torch.Generator().manual_seed(0)
    drawn_MC = torch.zeros(len(target_M), config.num_test_negatives, dtype=torch.int64)
    for group in torch.unique(group_N[target_M]).tolist():
        pool, rows = (group_N == group).nonzero().squeeze(1), (group_N[target_M] == group).nonzero().squeeze(1)
        picks = torch.randint(len(pool), (len(rows), config.num_test_negatives), generator=generator)
        drawn_MC[rows] = pool[picks]
    had = torch.cat([history.rows * len(group_N) + history.items, row_M * len(group_N) + target_M])
    return drawn_MC, ~torch.isin(row_M[:, None] * len(group_N) + drawn_MC, had)


def _request_means(auc_M: Tensor, keep_M: Tensor, row_M: Tensor, num_requests: int) -> Tensor:
    keep_M = keep_M & ~auc_M.isnan()
    sums_B = torch.bincount(row_M[keep_M], auc_M[keep_M], minlength=num_requests)
    return sums_B / torch.bincount(row_M[keep_M], minlength=num_requests)
