"""Codes as tokens of a language model's vocabulary, and a vocabulary with room for them.

Paper: LC-Rec, arXiv 2311.09049, for code tokens beside those of text.
Adds: one table in both directions, for codes at an offset or anywhere in the vocabulary, with optional tokens that
    begin and end an item.
Differs: the tokens say level and code in digits, for any number of levels.
Checked: tests/decoding/test_token_space.py (there and back, hypothesis; a tiny model and tokenizer that grow).

Dimensions: L levels · C codes a level · N tuples · T tokens · X any number of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.decoding.trie import Trie
from tesserec.errors import DataError
from tesserec.training.loop import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TokenSpace", "extend_vocabulary"]


@dataclass(frozen=True, eq=False)
class TokenSpace:
    """Which token stands for which code of which level; no token stands for two. Build it with ``after`` or ``of``.

    Every other token of the vocabulary is text.
    """

    tokens: tuple[Tensor, ...]
    """For each level, the token id of each code: [C] int64."""
    item_begin: int | None = None
    """The token that comes before the first code of an item, if any."""
    item_end: int | None = None
    """The token that comes after the last code of an item, if any."""

    def __post_init__(self) -> None:
        if not self.tokens or any(level.ndim != 1 or not len(level) for level in self.tokens):
            shapes = [tuple(level.shape) for level in self.tokens]
            raise DataError(f"tokens have shapes {shapes}, expected one or more levels [codes]: give a token a code")
        if any(level.is_floating_point() for level in self.tokens):
            raise DataError(f"tokens have types {[level.dtype for level in self.tokens]}: token ids are integers")
        used = torch.cat([*self.tokens, self.tokens[0].new_tensor(self._special)])
        if int(used.min()) < 0:
            raise DataError(f"token id {int(used.min())} is below 0: token ids are places in a vocabulary")
        values, counts = torch.unique(used, return_counts=True)
        if int(counts.max()) > 1:
            token = int(values[counts.argmax()])
            raise DataError(f"token {token} stands for {int(counts.max())} codes or item marks: give each its own")

    @classmethod
    def after(
        cls,
        first_token: int,
        codebook_sizes: Sequence[int],
        *,
        item_begin: int | None = None,
        item_end: int | None = None,
    ) -> TokenSpace:
        """Codes at ``first_token`` (the size of the text vocabulary) and up, one level after the other."""
        sizes = list(codebook_sizes)
        if any(size < 1 for size in sizes):
            raise DataError(f"codebook_sizes = {sizes}: every level needs at least one code")
        return cls(torch.split(torch.arange(first_token, first_token + sum(sizes)), sizes), item_begin, item_end)

    @classmethod
    def of(
        cls, table: Sequence[Sequence[int]], *, item_begin: int | None = None, item_end: int | None = None
    ) -> TokenSpace:
        """Codes at the token ids of ``table``, a row a level."""
        return cls(tuple(torch.tensor(row, dtype=torch.int64) for row in table), item_begin, item_end)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return tuple(len(level) for level in self.tokens)

    @property
    def num_levels(self) -> int:
        """Length of a code tuple."""
        return len(self.tokens)

    @cached_property
    def min_vocabulary(self) -> int:
        """The smallest vocabulary that holds every token of this space."""
        return max(*(int(level.max()) for level in self.tokens), *self._special, 0) + 1

    def to(self, device: torch.device | str) -> TokenSpace:
        """The same space with its tables on ``device``."""
        return dataclasses.replace(self, tokens=tuple(level.to(device) for level in self.tokens))

    def require_codes_of(self, trie: Trie) -> None:
        """Raise ``DataError`` where the trie has codes, or levels, without tokens, or another order of levels."""
        trie.require_items()
        if trie.order != tuple(range(trie.num_levels)):
            raise DataError(
                f"the trie fills levels in the order {trie.order}, a text has them from left to right: "
                "build it without an order"
            )
        most = [int(codes.max()) + 1 for codes in trie.child_codes]
        sizes = list(self.codebook_sizes)
        if len(most) != len(sizes) or any(used > size for used, size in zip(most, sizes, strict=True)):
            raise DataError(
                f"the trie has codes below {most} at its levels, the token space {sizes} tokens: "
                "build both from the same Semantic IDs"
            )

    def tokens_of(self, codes_NL: Tensor) -> Tensor:
        """The tokens of code tuples or of their prefixes, int64 in the shape of ``codes_NL`` [..., up to L].

        Raises ``DataError`` for a code that its level does not have.
        """
        length = codes_NL.shape[-1]
        if length > self.num_levels:
            raise DataError(f"tuples of {length} codes, expected at most {self.num_levels}: this space has no more")
        for level in range(length):
            column, size = codes_NL[..., level], len(self.tokens[level])
            if column.numel() and not (int(column.min()) >= 0 and int(column.max()) < size):
                found = f"[{int(column.min())}, {int(column.max())}]"
                raise DataError(
                    f"level {level} has codes in {found}, this space has tokens for [0, {size - 1}]: "
                    "give it the codebook sizes of the Semantic IDs"
                )
        columns = [self.tokens[level][codes_NL[..., level].long()] for level in range(length)]
        return torch.stack(columns, -1) if columns else codes_NL.long()

    def written(self, codes_NL: Tensor) -> Tensor:
        """Whole items as they stand in a text: code tokens [..., L], with the marks of begin and end that there are."""
        tokens = self.tokens_of(codes_NL)
        if tokens.shape[-1] != self.num_levels:
            raise DataError(f"tuples of {tokens.shape[-1]} codes, expected {self.num_levels}: write whole items")
        if self.item_begin is not None:
            tokens = F.pad(tokens, (1, 0), value=self.item_begin)
        return tokens if self.item_end is None else F.pad(tokens, (0, 1), value=self.item_end)

    def locate(self, tokens_X: Tensor) -> tuple[Tensor, Tensor]:
        """(level, code) of each token, int64 in the shape of ``tokens_X``; −1 for what is no code."""
        level_V, code_V = self._places
        known_X = torch.where((tokens_X >= 0) & (tokens_X < len(level_V) - 1), tokens_X, -1)
        return level_V[known_X], code_V[known_X]

    def codes_of(self, tokens_NL: Tensor) -> Tensor:
        """The code tuples, or prefixes, that tokens [..., up to L] write; the inverse of ``tokens_of``.

        Raises ``DataError`` where a token is no code of its level.
        """
        level_NL, code_NL = self.locate(tokens_NL)
        wrong = (level_NL != torch.arange(tokens_NL.shape[-1], device=tokens_NL.device)).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise DataError(
                f"token {int(tokens_NL[place])} at {list(place)} is no code of level {place[-1]}: "
                "give the tokens of code tuples only, or look for tuples with tuples_in"
            )
        return code_NL

    def tuples_in(self, tokens_T: Tensor) -> Tensor:
        """Every whole code tuple that stands in a text [T], in order: [N, L]. Raises ``DataError`` for other shapes."""
        if tokens_T.ndim != 1:
            raise DataError(f"tokens_T has shape {tuple(tokens_T.shape)}: give the tokens of one text, [T]")
        if len(tokens_T) < self.num_levels:
            return tokens_T.new_zeros(0, self.num_levels)
        levels, codes = (found.unfold(0, self.num_levels, 1) for found in self.locate(tokens_T))
        return codes[(levels == torch.arange(self.num_levels, device=tokens_T.device)).all(1)]

    @property
    def _special(self) -> list[int]:
        return [token for token in (self.item_begin, self.item_end) if token is not None]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Level and code of each token up to the last, then −1, which is what index −1 finds."""
        level_V = self.tokens[0].new_full((self.min_vocabulary + 1,), -1)
        code_V = level_V.clone()
        for level, tokens in enumerate(self.tokens):
            level_V[tokens] = level
            code_V[tokens] = torch.arange(len(tokens), device=tokens.device)
        return level_V, code_V


def extend_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    codebook_sizes: Sequence[int],
    *,
    item_begin: str | None = "<|item|>",
    item_end: str | None = None,
    seed: int = 0,
) -> TokenSpace:
    """Add a token for each code, ``<|level:code|>``, and for the marks to a tokenizer and the embeddings of its model.

    Tokens that the tokenizer already has keep their ids, so that a second call changes nothing. They are special
    tokens: ``decode(…, skip_special_tokens=True)`` leaves the text without items. New rows of the embeddings are drawn
    from ``seed`` as a new model's are, so that no two codes are alike; rows that a model has beyond its tokenizer are
    used as they stand.
    """
    names = [[f"<|{level}:{code}|>" for code in range(size)] for level, size in enumerate(codebook_sizes)]
    marks = [mark for mark in (item_begin, item_end) if mark is not None]
    tokenizer.add_tokens([*marks, *(name for level in names for name in level)], special_tokens=True)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        with seeded(seed):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return TokenSpace.of(
        [tokenizer.convert_tokens_to_ids(level) for level in names],
        item_begin=None if item_begin is None else tokenizer.convert_tokens_to_ids(item_begin),
        item_end=None if item_end is None else tokenizer.convert_tokens_to_ids(item_end),
    )
