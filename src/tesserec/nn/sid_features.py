"""SIDs as features: the codes of an item make keys, and the rows of the keys are summed.

Paper: Singh et al., https://arxiv.org/abs/2306.08121 (n-grams, SentencePiece); Hierarchical Discrete Embedding of
    https://arxiv.org/abs/2606.01396 (prefixes); PrefixMem, https://arxiv.org/abs/2606.00324 (all n-grams up to a level)
Adds: items with codes in common share rows, so that one is known before its first event; the key set says how much is
    shared and how much remembered.
Differs: pieces are greedy merges (byte-pair encoding) weighted by events, not a unigram language model; rows are summed
    everywhere, PrefixMem's too; a key space that fits into ``max_rows`` is not hashed at all.
Checked: tests/nn/test_sid_features.py (sums and merges by brute force; held-out items of a planted prefix, which random
    hashing of item ids cannot know; depth 1 is single codes).

Dimensions: N items · L levels (without the digit) · K keys of an item · H hash functions · D features · M merges.
"""

import heapq
import warnings
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError, VersionMismatchError
from tesserec.types import SemanticIds

__all__ = ["KeySet", "SIDFeatures", "SIDKeys", "learn_pieces"]

KeySet = Literal["codes", "ngrams", "prefixes", "memory", "pieces"]
"""Single codes; runs of ``ngram_size`` codes; prefixes of each depth (Hierarchical Discrete Embedding); all runs that
end at each level, up to the prefix (PrefixMem); learned pieces."""

_MULTIPLIERS = (-7046029254386353131, -4658895280553007687)  # odd, of SplitMix64


@component
class SIDKeys:
    """Which keys an item has, and how many rows there are for them."""

    kind: KeySet = "prefixes"
    ngram_size: Annotated[int, Field(gt=0)] = 2
    """Codes of a run of ``ngrams``; runs overlap. At most the number of levels is used."""
    max_depth: Annotated[int, Field(gt=0)] | None = None
    """Longest run of ``prefixes`` and ``memory``; all levels by default."""
    max_rows: Annotated[int, Field(gt=0)] = 1 << 16
    """Rows of the table of each run of levels; a run with more possible keys is hashed into these many."""
    num_hashes: Annotated[int, Field(gt=0)] = 1
    """Hash functions of a hashed run, each with rows of its own, which are summed (PrefixMem: several)."""

    def __post_init__(self) -> None:
        if self.max_depth is not None and self.kind not in ("prefixes", "memory"):
            warnings.warn(f"max_depth = {self.max_depth} does nothing to keys of kind {self.kind!r}", stacklevel=3)

    def spans(self, num_levels: int) -> list[tuple[int, int]]:
        """The runs of levels whose codes make a key, (first, one past the last), by the level they end at."""
        depth = min(self.max_depth or num_levels, num_levels)
        size = min(self.ngram_size, num_levels)
        return {
            "codes": [(level, level + 1) for level in range(num_levels)],
            "ngrams": [(end - size, end) for end in range(size, num_levels + 1)],
            "prefixes": [(0, end) for end in range(1, depth + 1)],
            "memory": [(end - n, end) for end in range(1, num_levels + 1) for n in range(1, min(end, depth) + 1)],
            "pieces": [],
        }[self.kind]


class SIDFeatures(nn.Module):
    """vector(i) = Σ_keys Σ_hashes row[key of i], in the place of an item's vector; ``levels`` has one a level.

    Codes must be of the codebook the features were made for; later items of it are known by their codes
    (``with_items``). The collision digit is no key.
    """

    codes_NL: Tensor
    row_NK: Tensor
    merges_M2: Tensor

    def __init__(
        self,
        semantic_ids: SemanticIds,
        keys: SIDKeys,
        width: int,
        *,
        merges_M2: Tensor | None = None,
        host_width: int | None = None,
    ) -> None:
        """``merges_M2`` are those of ``learn_pieces``, for ``pieces`` only.

        With ``host_width`` the sums pass through a linear map to that width which starts at zero (PrefixMem), so that
        a model they are added to starts as it is without. Raises ``DataError`` where merges are missing or idle.
        """
        super().__init__()
        if (merges_M2 is None) == (keys.kind == "pieces"):
            raise DataError(f"keys of kind {keys.kind!r} with merges_M2 = {merges_M2}: pieces need merges, others none")
        self.keys = keys
        self.codebook_version = semantic_ids.codebook_version
        levels = semantic_ids.num_content_levels
        self.sizes = semantic_ids.codebook_sizes[:levels]
        self.spans = keys.spans(levels)
        self.register_buffer("merges_M2", torch.zeros(0, 2).long() if merges_M2 is None else merges_M2)
        self._ranks = {(a, b): rank for rank, (a, b) in enumerate(self.merges_M2.tolist())}
        self.num_rows = self._num_rows()
        self.rows = nn.Embedding(self.num_rows + 1, width, padding_idx=self.num_rows)
        nn.init.normal_(self.rows.weight, std=0.5 * width**-0.5)
        with torch.no_grad():
            self.rows.weight[self.num_rows] = 0
        self.host = None if host_width is None else nn.Linear(width, host_width, bias=False)
        if self.host is not None:
            nn.init.zeros_(self.host.weight)
        self.with_items(semantic_ids)

    def with_items(self, semantic_ids: SemanticIds) -> None:
        """Know the items of ``semantic_ids``, a later revision of the table; no weight changes.

        Raises ``VersionMismatchError`` for a table of another codebook.
        """
        if semantic_ids.codebook_version != self.codebook_version:
            raise VersionMismatchError(
                f"the table has codebook version {semantic_ids.codebook_version}, these features were made for "
                f"{self.codebook_version}: use a table of that codebook, or make and fit the features anew"
            )
        device = self.rows.weight.device
        codes_NL = semantic_ids.codes_NL[:, : len(self.sizes)].long()
        self.register_buffer("codes_NL", codes_NL.to(device), persistent=False)
        self.register_buffer("row_NK", self.key_rows(codes_NL).to(device), persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """Vectors [..., D] of items [...] (all ≥ 0)."""
        return self._mapped(self.rows(self.row_NK[items]).sum(-2))

    def table(self) -> Tensor:
        """Vectors of all items, [N, D]."""
        return self._mapped(self.rows(self.row_NK).sum(-2))

    def of_codes(self, codes: Tensor) -> Tensor:
        """Vectors [..., D] of code tuples [..., L]."""
        row_NK = self.key_rows(self._checked(codes, len(self.sizes)))
        return self._shaped(self.rows(row_NK).sum(-2), codes.shape[:-1])

    def levels(self, codes: Tensor) -> Tensor:
        """A vector for each code of tuples or prefixes [..., l], of the keys that end at it: [..., l, D].

        Codes after a position do not enter it, so a beam may pass the prefixes it has. Raises ``DataError`` for pieces,
        which may need later codes.
        """
        if self.keys.kind == "pieces":
            raise DataError("pieces cannot be had level by level: choose another kind of keys")
        codes_NL = self._checked(codes, codes.shape[-1])
        width = self.rows.embedding_dim
        sums_NLD = torch.zeros(*codes_NL.shape, width, device=codes.device)
        row_NK, end_K = self._span_rows(codes_NL)
        sums_NLD = sums_NLD.index_add(1, end_K.to(codes.device) - 1, self.rows(row_NK))
        return self._shaped(sums_NLD, codes.shape)

    def collisions(self) -> dict[str, tuple[int, int]]:
        """For each run of levels, (distinct keys of the items, those that share all their rows with another key)."""
        found = {}
        for first, end in self.spans:
            keys_PS = torch.unique(self.codes_NL[:, first:end], dim=0)
            codes_PL = torch.zeros(len(keys_PS), end, dtype=torch.int64, device=keys_PS.device)
            codes_PL[:, first:] = keys_PS
            _, inverse_P, counts = torch.unique(
                self._rows_of_span(codes_PL, first, end), dim=0, return_inverse=True, return_counts=True
            )
            found[f"{first}:{end}"] = (len(keys_PS), int((counts[inverse_P] > 1).sum()))
        return found

    def key_rows(self, codes_NL: Tensor) -> Tensor:
        """The rows of the keys of each tuple, [N, K] int64; the padding row, which is 0, after the last piece."""
        return self._piece_rows(codes_NL) if self.keys.kind == "pieces" else self._span_rows(codes_NL)[0]

    def _shaped(self, sums: Tensor, shape: torch.Size) -> Tensor:
        vectors = self._mapped(sums)
        return vectors.view(*shape, vectors.shape[-1])

    def _mapped(self, sums: Tensor) -> Tensor:
        return sums if self.host is None else self.host(sums)

    def _checked(self, codes: Tensor, num_levels: int) -> Tensor:
        """Flat codes [N, l]; raises ``DataError`` for another length and for codes beyond the codebooks."""
        if not 0 < num_levels <= len(self.sizes) or codes.shape[-1] != num_levels:
            raise DataError(f"codes have {codes.shape[-1]} levels, the features {len(self.sizes)}: leave out the digit")
        flat_NL = codes.reshape(-1, num_levels).long()
        return SemanticIds(flat_NL, self.sizes[:num_levels], self.codebook_version).codes_NL

    def _span_size(self, first: int, end: int) -> tuple[int, bool]:
        """(rows of one hash function of a run, whether it is hashed)."""
        keys = 1
        for size in self.sizes[first:end]:
            keys *= size
        return (self.keys.max_rows, True) if keys > self.keys.max_rows else (keys, False)

    def _num_rows(self) -> int:
        if self.keys.kind == "pieces":
            return sum(self.sizes) + len(self.merges_M2)
        sizes = [self._span_size(*span) for span in self.spans]
        return sum(rows * (self.keys.num_hashes if hashed else 1) for rows, hashed in sizes)

    def _span_rows(self, codes_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [N, K] of all runs that end within the codes given, and the level each ends at [K]."""
        start, parts, ends = 0, [], []
        for first, end in self.spans:
            size, hashed = self._span_size(first, end)
            if end <= codes_NL.shape[1]:
                parts.append(start + self._rows_of_span(codes_NL, first, end))
                ends += [end] * parts[-1].shape[1]
            start += size * (self.keys.num_hashes if hashed else 1)
        if not parts:
            return torch.zeros(len(codes_NL), 0, dtype=torch.int64, device=codes_NL.device), torch.zeros(0).long()
        return torch.cat(parts, 1), torch.tensor(ends)

    def _rows_of_span(self, codes_NL: Tensor, first: int, end: int) -> Tensor:
        """Rows within the table of one run, [N, 1] or, where it is hashed, [N, H]."""
        size, hashed = self._span_size(first, end)
        if not hashed:
            key_N = torch.zeros(len(codes_NL), dtype=torch.int64, device=codes_NL.device)
            for level in range(first, end):
                key_N = key_N * self.sizes[level] + codes_NL[:, level]
            return key_N[:, None]
        columns = []
        for number in range(self.keys.num_hashes):
            hash_N = torch.full_like(codes_NL[:, 0], number + 1)
            for level in range(first, end):
                hash_N = _mixed(hash_N * _MULTIPLIERS[0] + codes_NL[:, level] + 1)
            columns.append(number * size + torch.remainder(hash_N, size))
        return torch.stack(columns, 1)

    def _piece_rows(self, codes_NL: Tensor) -> Tensor:
        tuples_PL, inverse_N = torch.unique(codes_NL.cpu(), dim=0, return_inverse=True)
        symbols_PL = tuples_PL + _starts(self.sizes)
        pieces = [_pieced(row, self._ranks, sum(self.sizes)) for row in symbols_PL.tolist()]
        padding = sum(self.sizes) + len(self.merges_M2)
        padded = [row + [padding] * (len(self.sizes) - len(row)) for row in pieces]
        rows_PK = torch.tensor(padded, dtype=torch.int64).reshape(-1, len(self.sizes))
        return rows_PK[inverse_N].to(codes_NL.device)


def learn_pieces(semantic_ids: SemanticIds, popularity_N: Tensor, num_merges: int) -> Tensor:
    """At most ``num_merges`` merges of neighbouring pieces, [M, 2] int64: again and again the pair with most events.

    ``popularity_N`` are counts of training events: popular items come to be one piece and are remembered, rare ones
    stay several, which they share. Pieces 0 … Σ sizes − 1 are single codes, level after level; merge m makes piece
    Σ sizes + m. Ties go to the lower pair; pairs without events are left. Raises ``DataError`` for counts that are not
    one an item, finite and at least 0.
    """
    if popularity_N.shape != (len(semantic_ids),) or not bool(
        (torch.isfinite(popularity_N) & (popularity_N >= 0)).all()
    ):
        raise DataError(
            f"popularity_N has shape {tuple(popularity_N.shape)}, expected ({len(semantic_ids)},): a finite count of "
            "at least 0 an item"
        )
    levels = semantic_ids.num_content_levels
    sizes = semantic_ids.codebook_sizes[:levels]
    weights: Counter[tuple[int, ...]] = Counter()
    symbols_NL = semantic_ids.codes_NL[:, :levels] + _starts(sizes)
    for row, weight in zip(symbols_NL.tolist(), popularity_N.double().tolist(), strict=True):
        weights[tuple(row)] += weight
    corpus = _Corpus([list(row) for row in weights], list(weights.values()))
    merges: list[tuple[int, int]] = []
    while len(merges) < num_merges and (pair := corpus.best()) is not None:
        corpus.merge(pair, sum(sizes) + len(merges))
        merges.append(pair)
    return torch.tensor(merges, dtype=torch.int64).reshape(-1, 2)


class _Corpus:
    """Rows of pieces with weights, and the weight of each pair of neighbours."""

    def __init__(self, rows: list[list[int]], weights: list[float]) -> None:
        self.rows, self.weights = rows, weights
        self.events: dict[tuple[int, int], float] = defaultdict(float)
        self.where: dict[tuple[int, int], set[int]] = defaultdict(set)
        self.heap: list[tuple[float, tuple[int, int]]] = []
        for row in range(len(rows)):
            self._count(row, 1)
        self._push(self.events)

    def best(self) -> tuple[int, int] | None:
        """The pair with most events, the lowest of equals; None where no pair has any."""
        while self.heap:
            events, pair = self.heap[0]
            if self.where[pair] and -events == self.events[pair]:
                return pair if events < 0 else None
            heapq.heappop(self.heap)  # merged away, or counted again since
        return None

    def merge(self, pair: tuple[int, int], piece: int) -> None:
        """Make the pair one ``piece`` wherever it stands."""
        touched: set[tuple[int, int]] = set()
        for row in sorted(self.where[pair]):
            touched |= self._count(row, -1)
            self.rows[row] = _merged(self.rows[row], pair, piece)
            touched |= self._count(row, 1)
        self._push(touched)

    def _count(self, row: int, sign: int) -> set[tuple[int, int]]:
        """Add (1) or take away (−1) the pairs of a row; they are distinct, as every level has its own codes."""
        pieces = self.rows[row]
        pairs = set(pairwise(pieces))
        for pair in pairs:
            self.events[pair] += sign * self.weights[row]
            (self.where[pair].add if sign == 1 else self.where[pair].discard)(row)
        return pairs

    def _push(self, pairs: "set[tuple[int, int]] | dict[tuple[int, int], float]") -> None:
        for pair in pairs:
            if self.where[pair]:
                heapq.heappush(self.heap, (-self.events[pair], pair))


def _merged(pieces: list[int], pair: tuple[int, int], piece: int) -> list[int]:
    """``pieces`` with the pair, which occurs once, as one."""
    at = list(pairwise(pieces)).index(pair)
    return [*pieces[:at], piece, *pieces[at + 2 :]]


def _pieced(symbols: list[int], ranks: dict[tuple[int, int], int], first_merge: int) -> list[int]:
    """The pieces of one tuple: the merges that apply, in the order they were learnt."""
    pieces = symbols
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in ranks]
        if not pairs:
            return pieces
        pair = min(pairs, key=ranks.__getitem__)
        pieces = _merged(pieces, pair, first_merge + ranks[pair])


def _starts(sizes: tuple[int, ...]) -> Tensor:
    """The first symbol of each level, [L] int64."""
    return torch.tensor([0, *sizes]).cumsum(0)[:-1].to(torch.int64)


def _mixed(hash_N: Tensor) -> Tensor:
    """SplitMix64's finisher: every bit of an int64 depends on every other; overflow wraps, as it should."""
    for shift, multiplier in ((30, _MULTIPLIERS[1]), (27, -7723592293110705685)):
        hash_N = (hash_N ^ _shifted(hash_N, shift)) * multiplier
    return hash_N ^ _shifted(hash_N, 31)


def _shifted(hash_N: Tensor, bits: int) -> Tensor:
    """A right shift that brings in zeros, as of unsigned numbers."""
    return (hash_N >> bits) & ((1 << (64 - bits)) - 1)
