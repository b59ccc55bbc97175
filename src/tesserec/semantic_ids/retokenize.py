"""Re-tokenization with stable codes: new codebooks keep the labels, and most of the tuples, of the old ones.

Paper: none; codebooks fitted again number their codes anew, and a model that is to go on would have to forget them all.
Adds: two ways. ``retokenize`` labels the codes of any refit by the assignment to old labels that keeps most items,
    level by level (or moves code vectors least); a refit from other starts still cuts items up in another way.
    ``continued_codebooks`` goes on with k-means from the old codebooks instead, on the items there are now.
Differs: ``retokenize`` differs from a plain refit in labels only: every item is in the same bucket as after the refit.
Checked: tests/semantic_ids/test_retokenize.py (all permutations by brute force; a shuffled codebook comes back).

The result has a ``codebook_version`` of its own: a model must still be fitted again, but may start from the one before.

Dimensions: N items · L levels · C codes of a level · D features.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids.diagnostics import Churn, churn, common_items
from tesserec.semantic_ids.residual import check_features, fingerprint, nearest
from tesserec.semantic_ids.table import add_items, content_codes, table_version
from tesserec.types import ComponentState, SemanticIds, as_numpy

__all__ = [
    "Retokenization",
    "continued_codebooks",
    "match_items",
    "match_vectors",
    "relabel_codes",
    "relabel_state",
    "retokenize",
]

_SMALLEST_DIGIT = 16


@dataclass(frozen=True, eq=False)
class Retokenization:
    """A table with new codebooks and, where they can be kept, old labels."""

    semantic_ids: SemanticIds
    state: ComponentState | None
    """The relabelled codebooks; None where the new table came without codebooks."""
    labels: tuple[Tensor, ...]
    """At each level the label of each code of the refit, [C] int64, a permutation."""
    churn: Churn
    """What changed from the old table to this one."""
    churn_unmatched: Churn
    """What would have changed without matching."""


def retokenize(
    old: SemanticIds,
    new: SemanticIds,
    state: ComponentState | None = None,
    *,
    labels: Sequence[Tensor] | None = None,
    old_item_N: Tensor | None = None,
    codebook_name: str = "codebook_{}",
) -> Retokenization:
    """``new``, the table of a refit, relabelled so that most items keep the tuple they have in ``old``.

    ``state`` is the refitted quantizer's. ``labels`` are those of ``match_items`` unless given. ``old_item_N`` is the
    index in ``old`` of each item of ``new``, −1 for later ones; without it ``new`` has the items of ``old`` first. An
    item that keeps its codes keeps its digit. Raises ``VersionMismatchError`` for a state that is not that of ``new``,
    ``DataError`` for tables that cannot be compared and labels that are no permutation.
    """
    labels = match_items(old, new, old_item_N) if labels is None else labels
    codes_NL = relabel_codes(content_codes(new), labels)
    relabelled = None
    if state is not None:
        _check_state(state, new)
        relabelled = relabel_state(state, labels, codebook_name)
    source = _hash(new.codebook_version, labels) if relabelled is None else fingerprint(relabelled)
    table = _with_digits(old, new, codes_NL, source, common_items(len(old), len(new), old_item_N))
    return Retokenization(table, relabelled, tuple(labels), churn(old, table, old_item_N), churn(old, new, old_item_N))


def continued_codebooks(
    state: ComponentState, features_ND: Tensor, num_rounds: int = 3, codebook_name: str = "codebook_{}"
) -> ComponentState:
    """The state of residual k-means after ``num_rounds`` (≥ 1) more rounds a level, from its own codebooks.

    ``features_ND`` are the items there are now. More rounds fit them better and keep fewer tuples; a code that no item
    takes stays where it is. Restore a quantizer with it, make the table, and ``retokenize`` to keep the digits. Raises
    ``DataError`` for features that are not of the codebooks' width, and for a state without codebooks of that name.
    """
    if codebook_name.format(0) not in state.tensors:
        raise DataError(f"the state has no codes under the name {codebook_name.format(0)}: give codebook_name")
    tensors = dict(state.tensors)
    rest_ND = check_features(features_ND, tensors[codebook_name.format(0)].shape[1])
    level = 0
    while (name := codebook_name.format(level)) in tensors:
        for _ in range(num_rounds):
            tensors[name] = _round(rest_ND, tensors[name])
        rest_ND = rest_ND - tensors[name][nearest(rest_ND, tensors[name])]
        level += 1
    return dataclasses.replace(state, tensors=tensors)


def match_items(old: SemanticIds, new: SemanticIds, old_item_N: Tensor | None = None) -> tuple[Tensor, ...]:
    """Labels [C] of the new codes of each level, such that as many items as possible keep their code.

    Level by level: items that have kept all codes so far count 1, all others together less than 1. A label is below the
    new codebook's size, so old codes beyond it are given up. Raises ``DataError`` for tables of different levels.
    """
    before_NL, after_NL = content_codes(old), content_codes(new)
    _check_levels(before_NL.shape[1], after_NL.shape[1])
    old_N = common_items(len(old), len(new), old_item_N)
    rows_M = (old_N >= 0).nonzero().squeeze(1)
    before_ML, after_ML = before_NL[old_N[rows_M]], after_NL[rows_M]
    kept_M = torch.ones(len(rows_M), dtype=torch.bool)
    labels = []
    for level in range(before_ML.shape[1]):
        size, before_M, after_M = new.codebook_sizes[level], before_ML[:, level], after_ML[:, level]
        small = 1 / (len(rows_M) + 1)
        weight_M = torch.where(kept_M, 1.0, small).double()[before_M < size]
        gain_CC = torch.eye(size, dtype=torch.float64) * small / (size + 1)  # codes nobody has stay where they are
        gain_CC.index_put_((after_M[before_M < size], before_M[before_M < size]), weight_M, accumulate=True)
        labels.append(_assigned(-gain_CC))
        kept_M &= labels[-1][after_M] == before_M
    return tuple(labels)


def match_vectors(old: Sequence[Tensor], new: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Labels [C] of the new codes of each level, such that code vectors move least (sum of squares).

    ``old`` and ``new`` are codebooks [C, D] of one feature space. Raises ``DataError`` where they are not equally many
    or of different widths, or not finite.
    """
    _check_levels(len(old), len(new))
    labels = []
    for level, (before_CD, after_CD) in enumerate(zip(old, new, strict=True)):
        if before_CD.shape[1] != after_CD.shape[1]:
            raise DataError(
                f"level {level}: code vectors of {before_CD.shape[1]} and {after_CD.shape[1]} features cannot be "
                "matched: match on items instead"
            )
        if not bool(torch.isfinite(before_CD).all() & torch.isfinite(after_CD).all()):
            raise DataError(f"level {level}: a code vector holds NaN or infinity: fit the codebooks again")
        labels.append(_assigned(torch.cdist(after_CD.double(), before_CD.double()[: len(after_CD)]).square()))
    return tuple(labels)


def relabel_codes(codes_NL: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """The codes [N, L] under their labels; for later items of the refitted quantizer as well.

    Raises ``DataError`` for labels that are not a permutation a level, and for codes without a label.
    """
    _check_levels(codes_NL.shape[1], len(labels))
    for level, labels_C in enumerate(labels):
        if not torch.equal(labels_C.sort().values, torch.arange(len(labels_C))):
            raise DataError(f"the labels of level {level} are no permutation of 0 to {len(labels_C) - 1}")
        lowest, highest = (int(one) for one in codes_NL[:, level].aminmax()) if len(codes_NL) else (0, 0)
        if lowest < 0 or highest >= len(labels_C):
            raise DataError(
                f"level {level} has codes from {lowest} to {highest}, labels for {len(labels_C)} codes: "
                "relabel codes of the refit that the labels are of"
            )
    return torch.stack([labels_C[codes_NL[:, level]] for level, labels_C in enumerate(labels)], 1)


def relabel_state(
    state: ComponentState, labels: Sequence[Tensor], codebook_name: str = "codebook_{}"
) -> ComponentState:
    """A quantizer's state whose code vectors [C, D] stand at their labels, with their offsets; other tensors stay.

    ``codebook_name`` is the name of a level's codebook in the state: ``codebook_{}`` of residual k-means,
    ``codebooks.{}`` of RQ-VAE. Raises ``DataError`` where a codebook is missing or of another size.
    """
    tensors = dict(state.tensors)
    for level, labels_C in enumerate(labels):
        name = codebook_name.format(level)
        if name not in tensors or len(tensors[name]) != len(labels_C):
            found = len(tensors[name]) if name in tensors else "no"
            raise DataError(
                f"the state has {found} codes under the name {name}, expected {len(labels_C)}: give codebook_name"
            )
        for of_codes in (name, f"offsets_{level}"):
            if of_codes in tensors:
                moved = torch.empty_like(tensors[of_codes])
                moved[labels_C] = tensors[of_codes]
                tensors[of_codes] = moved
    return dataclasses.replace(state, tensors=tensors)


def _round(points_ND: Tensor, codebook_CD: Tensor) -> Tensor:
    """One round of k-means: each code vector becomes the mean of the points nearest to it, if there are any."""
    code_N = nearest(points_ND, codebook_CD)
    counts_C1 = torch.bincount(code_N, minlength=len(codebook_CD))[:, None]
    sums_CD = torch.zeros_like(codebook_CD).index_add_(0, code_N, points_ND)
    return torch.where(counts_C1 > 0, sums_CD / counts_C1.clamp(min=1), codebook_CD)


def _assigned(cost_CP: Tensor) -> Tensor:
    """The label of each row at the least total cost, [C]; rows beyond the columns get the labels that follow."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

    rows, columns = linear_sum_assignment(as_numpy(cost_CP))
    labels = np.full(len(cost_CP), -1)
    labels[rows] = columns
    labels[labels < 0] = np.arange(cost_CP.shape[1], len(cost_CP))
    return torch.from_numpy(labels)


def _with_digits(old: SemanticIds, new: SemanticIds, codes_NL: Tensor, source: str, old_N: Tensor) -> SemanticIds:
    """The table of ``codes_NL``: items that keep their codes keep their digit, the others take the lowest free one."""
    sizes = new.codebook_sizes
    if not new.has_digit:
        return SemanticIds(codes_NL, sizes, table_version(source, sizes, False))
    # A bucket of ``new`` fits its digits, but kept digits of ``old`` may be larger than any of them
    digit_size = max(sizes[-1], old.codebook_sizes[-1] if old.has_digit else _SMALLEST_DIGIT)
    sizes = (*sizes[:-1], digit_size)
    kept_N = torch.zeros(len(new), dtype=torch.bool)
    known = (old_N >= 0).nonzero().squeeze(1)
    if old.has_digit:
        kept_N[known] = (content_codes(old)[old_N[known]] == codes_NL[known]).all(1)
    kept, rest = kept_N.nonzero().squeeze(1), (~kept_N).nonzero().squeeze(1)
    rest = rest[torch.argsort(new.codes_NL[rest, -1], stable=True)]  # the refit's order within a bucket
    digit_K1 = old.codes_NL[old_N[kept], -1:]
    table = SemanticIds(torch.cat([codes_NL[kept], digit_K1], 1), sizes, table_version(source, sizes, True), 0, True)
    grown = add_items(table, codes_NL[rest]).codes_NL
    ordered_NL = torch.empty_like(grown)
    ordered_NL[torch.cat([kept, rest])] = grown
    return dataclasses.replace(table, codes_NL=ordered_NL)


def _check_levels(num_old: int, num_new: int) -> None:
    if num_old != num_new:
        raise DataError(f"{num_old} levels cannot be matched with {num_new}: fit as many levels as before")


def _check_state(state: ComponentState, new: SemanticIds) -> None:
    version = table_version(fingerprint(state), new.codebook_sizes, new.has_digit)
    if version != new.codebook_version:
        raise VersionMismatchError(
            f"the new table has codebook version {new.codebook_version}, the state given is of {version}: "
            "give the state of the quantizer that made the table"
        )


def _hash(version: str, labels: Sequence[Tensor]) -> str:
    return hashlib.sha256(repr((version, [one.tolist() for one in labels])).encode()).hexdigest()
