"""SID expansion: items that the fit has not seen get codes from its frozen codebooks.

Paper: TIGER, https://arxiv.org/abs/2305.05065 (new items through the trained RQ-VAE); PLUM,
    https://arxiv.org/abs/2510.07784
Adds: codes of later items, residually over all levels, so that no model has to change; and a test whether an item is
    foreign to the codebooks.
Differs: no codes are opened for foreign items: they take the nearest ones; ``ForeignItems`` finds
    them, and `sids fit --from` names them.
Checked: tests/semantic_ids/test_expansion.py (the old rows stay, the new ones are those of brute force; a planted
    foreign direction is found; another codebook is refused by name).

Dimensions: N items of the fit · M later items · D features.
"""

from collections import Counter
from typing import Annotated

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids.residual import check_features, fingerprint
from tesserec.semantic_ids.table import add_items, bucket_places, content_codes, groups, table_version
from tesserec.types import Quantizer, SemanticIds

__all__ = ["ForeignItems", "check_codebook", "expand", "unexplained"]


def expand(semantic_ids: SemanticIds, quantizer: Quantizer, features_MD: Tensor) -> SemanticIds:
    """The table with M later items at its end, coded by the ``quantizer`` whose codebooks the table is of.

    An item whose bucket has no digit left takes the last code that describes it best among those whose bucket has one;
    items are taken in order, so that one at a time and all at once get the same codes. ``codebook_version`` stays and
    ``table_revision`` grows by one (not at all for no items). Raises ``VersionMismatchError`` where the table is of
    another codebook, ``DataError`` where a code prefix has no digit left anywhere, and what ``encode`` raises.
    """
    check_codebook(semantic_ids, quantizer)
    if not len(features_MD):
        return semantic_ids
    codes_ML = quantizer.encode(features_MD)
    if semantic_ids.has_digit:
        codes_ML = _with_room(semantic_ids, quantizer, features_MD, codes_ML)
    return add_items(semantic_ids, codes_ML)


def _with_room(semantic_ids: SemanticIds, quantizer: Quantizer, features_MD: Tensor, codes_ML: Tensor) -> Tensor:
    """``codes_ML`` with the next best last code where a bucket is full."""
    *sizes, capacity = semantic_ids.codebook_sizes
    old_NL = content_codes(semantic_ids)
    is_full_M = bucket_places(torch.cat([old_NL, codes_ML]), sizes)[len(old_NL) :] >= capacity
    if not is_full_M.any():
        return codes_ML
    prefix = groups(torch.cat([old_NL, codes_ML])[:, :-1], sizes[:-1])
    is_met = torch.isin(prefix, prefix[len(old_NL) :][is_full_M])
    taken = Counter(map(tuple, old_NL[is_met[: len(old_NL)]].tolist()))
    codes_ML, last_S = codes_ML.clone(), torch.arange(sizes[-1])
    for row in is_met[len(old_NL) :].nonzero().squeeze(1).tolist():
        codes = tuple(codes_ML[row].tolist())
        if taken[codes] >= capacity:
            tried_SL = torch.cat([codes_ML[row, :-1].expand(len(last_S), -1), last_S[:, None]], 1)
            error_S = (quantizer.decode(tried_SL) - features_MD[row]).square().sum(1)
            tried = map(tuple, tried_SL[error_S.argsort(stable=True)].tolist())
            found = next((one for one in tried if taken[one] < capacity), None)
            if found is None:
                raise DataError(
                    f"new item {row}: all {len(last_S) * capacity} places below its codes {codes[:-1]} are taken: "
                    "fit the Semantic IDs anew"
                )
            codes, codes_ML[row] = found, torch.tensor(found)
        taken[codes] += 1
    return codes_ML


def check_codebook(semantic_ids: SemanticIds, quantizer: Quantizer) -> None:
    """Raise ``VersionMismatchError`` unless the codes of the table came from ``quantizer``."""
    digit = semantic_ids.codebook_sizes[-1:] if semantic_ids.has_digit else ()
    sizes = (*quantizer.codebook_sizes, *digit)
    version = table_version(fingerprint(quantizer.state()), sizes, semantic_ids.has_digit)
    if version != semantic_ids.codebook_version:
        raise VersionMismatchError(
            f"the table has codebook version {semantic_ids.codebook_version}, the codebooks of this "
            f"{type(quantizer).__name__} make {version}: expand with the quantizer that made the table "
            "(a table that was split or joined: add_items with its own recode)"
        )


def unexplained(quantizer: Quantizer, features_ND: Tensor) -> Tensor:
    """The share of each vector's energy that its codes leave over, ‖x − decode(encode(x))‖² / ‖x‖², [N] ≥ 0.

    A vector of zeros, which has no energy, has infinity.
    """
    features_ND = check_features(features_ND)
    left_N = (features_ND - quantizer.decode(quantizer.encode(features_ND))).square().sum(1)
    energy_N = features_ND.square().sum(1)
    return torch.where(energy_N > 0, left_N / energy_N, torch.inf)


@component
class ForeignItems:
    """Tells which later items the codebooks do not describe: more is left over than of nearly all fitted ones."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """An item is foreign above this quantile of the fitted items."""

    def find(self, quantizer: Quantizer, features_ND: Tensor, features_MD: Tensor) -> Tensor:
        """Whether each of the M later items is foreign, bool, given the vectors of the N items of the fit.

        Items without a vector (zeros) are always foreign, and count for nothing among those of the fit. Raises
        ``DataError`` where all items of the fit are zeros.
        """
        fitted_N = unexplained(quantizer, features_ND)
        fitted_N = fitted_N[torch.isfinite(fitted_N)]
        if not len(fitted_N):
            raise DataError("all vectors of the fit are zero: there is nothing to compare later items with")
        if not len(features_MD):
            return torch.zeros(0, dtype=torch.bool)
        limit = fitted_N.double().sort().values[int(self.quantile * (len(fitted_N) - 1) + 0.5)]
        return unexplained(quantizer, features_MD).double() > limit
