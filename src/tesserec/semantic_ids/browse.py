"""Walking through a table of Semantic IDs: what is below a prefix, which items are near one, which words tell a group.

Dimensions: N items · L levels (without the collision digit).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.semantic_ids.table import content_codes
from tesserec.types import SemanticIds

__all__ = ["Branch", "branches", "members", "prefix_neighbours", "words_of_groups"]

_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Branch:
    """The items of one code below a prefix."""

    codes: tuple[int, ...]
    """The prefix and the code."""
    items: list[int]
    """Dense indices, most popular first."""


def members(semantic_ids: SemanticIds, prefix: Sequence[int], popularity_N: Tensor | None = None) -> Tensor:
    """Dense indices of the items with a prefix (or whole tuple), most popular first.

    Raises ``DataError`` for a prefix that is too long, beyond a codebook, or of no item: it says what there is.
    """
    sizes = semantic_ids.codebook_sizes
    if len(prefix) > len(sizes):
        raise DataError(f"the prefix {_written(prefix)} has {len(prefix)} codes, an item {len(sizes)}: give fewer")
    for level, code in enumerate(prefix):
        if not 0 <= code < sizes[level]:
            raise DataError(f"code {code} of level {level + 1} does not exist: expected 0 to {sizes[level] - 1}")
    found = semantic_ids.items_of(prefix)
    if not len(found):
        raise DataError(_nothing_below(semantic_ids, prefix))
    if popularity_N is None:
        return found
    return found[torch.argsort(popularity_N[found], descending=True, stable=True)]


def branches(semantic_ids: SemanticIds, prefix: Sequence[int], popularity_N: Tensor | None = None) -> list[Branch]:
    """The codes that follow a prefix, those of most items first; none below all the codes of content.

    Raises what ``members`` raises.
    """
    found = members(semantic_ids, prefix, popularity_N)
    if len(prefix) >= content_codes(semantic_ids).shape[1]:
        return []
    code_N = semantic_ids.codes_NL[found, len(prefix)]
    counts_C = torch.bincount(code_N)
    order = torch.argsort(counts_C, descending=True, stable=True)[: int((counts_C > 0).sum())]
    return [Branch((*prefix, code), found[code_N == code].tolist()) for code in order.tolist()]


def prefix_neighbours(
    semantic_ids: SemanticIds, item: int, number: int, popularity_N: Tensor | None = None
) -> list[tuple[int, int]]:
    """(item, codes in common) of the items that share most first codes with ``item``, at least one; the digit is none.

    Longest common prefix first, then most popular, then lowest index; at most ``number``.
    """
    codes_NL = content_codes(semantic_ids)
    depth_N = (codes_NL == codes_NL[item]).long().cumprod(1).sum(1)
    depth_N[item] = 0
    popularity_N = torch.zeros(len(codes_NL)) if popularity_N is None else popularity_N
    by_popularity = torch.argsort(popularity_N, descending=True, stable=True)
    order = by_popularity[torch.argsort(depth_N[by_popularity], descending=True, stable=True)][:number]
    return [(one, int(depth_N[one])) for one in order.tolist() if depth_N[one]]


def words_of_groups(titles: Sequence[str], groups: Sequence[int], number: int = 3) -> dict[int, list[str]]:
    """At most ``number`` words of the titles of each group that tell it from the other groups, the best first.

    A word of a share p of the group's titles and q of all counts p · log(p / q), as in a Kullback-Leibler divergence;
    words of one title in a group of several say nothing of the group.
    """
    all_words: Counter[str] = Counter()
    in_group: dict[int, Counter[str]] = {}
    sizes = Counter(groups)
    for title, group in zip(titles, groups, strict=True):
        words = set(_WORD.findall(title.lower()))
        all_words.update(words)
        in_group.setdefault(group, Counter()).update(words)
    found = {}
    for group, counts in in_group.items():
        size, least = sizes[group], min(2, sizes[group])
        scores = {
            word: n / size * math.log(n / size * len(titles) / all_words[word])
            for word, n in counts.items()
            if n >= least
        }
        found[group] = sorted((w for w in scores if scores[w] > 0), key=lambda w: (-scores[w], w))[:number]
    return found


def _nothing_below(semantic_ids: SemanticIds, prefix: Sequence[int]) -> str:
    depth = max(d for d in range(len(prefix)) if len(semantic_ids.items_of(prefix[:d])))
    there = torch.unique(semantic_ids.codes_NL[semantic_ids.items_of(prefix[:depth]), depth]).tolist()
    shown = ", ".join(map(str, there[:12])) + (", …" if len(there) > 12 else "")
    after = f"after {_written(prefix[:depth])}" if depth else "of the first level"
    return f"no item has the codes {_written(prefix)}: the codes {after} that items have are {shown}"


def _written(codes: Sequence[int]) -> str:
    return "-".join(map(str, codes))
