"""The constraint alone, for ``generate`` of transformers: text as the model likes, items only as they are legal.

Paper: "Vectorizing the Trie", arXiv 2602.22647 (STATIC), for the mask of all rows from one array trie.
Adds: free text and items in one sequence, filters of each request, and no item twice in one answer.
Differs: the state is read off the last tokens at every call, so that beams may be reordered as the caller likes.
Checked: tests/decoding/test_logits_processor.py (a state machine over lists, hypothesis; ``generate`` greedy, sampled
    and with beams: 0 illegal tuples).

Dimensions: B requests · R rows (beams or samples of all requests) · T tokens · V vocabulary · C children ·
L levels · X items in the answers so far.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.decoding.token_space import TokenSpace
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.errors import DataError
from tesserec.types import History, Requests

__all__ = ["SemanticIdLogitsProcessor"]


class SemanticIdLogitsProcessor:
    """A ``transformers.LogitsProcessor``: sets to −∞ what may not come next.

    In free text every token of text may follow, and the begin of an item as long as one is left (without
    ``token_space.item_begin``, the first code itself). From there only codes follow that lead to an allowed item, for
    L levels, then ``item_end`` if there is one, then text again. The end of the sequence is text too: only
    ``max_new_tokens`` can cut an item short. A beam of probability 0 may find nothing that it may write.
    """

    def __init__(
        self,
        trie: Trie,
        token_space: TokenSpace,
        *,
        prompt_length: int,
        requests: Requests | None = None,
        unique: bool = False,
    ) -> None:
        """``prompt_length`` is ``input_ids.shape[1]`` of the prompts, padding included; 0 for ``inputs_embeds`` alone.

        ``requests`` say, a row a prompt, which items must not be written; of several beams or samples of one prompt,
        which are neighbours, each has the filters of the prompt. With ``unique`` a row writes no tuple twice; tuples
        of the prompt do not count, ``requests.filters.exclude_history`` is for those. Raises ``DataError`` where trie
        and token space do not fit, and for a length below 0.
        """
        if prompt_length < 0:
            raise DataError(
                f"prompt_length = {prompt_length}: give input_ids.shape[1] of the prompts, 0 for inputs_embeds alone"
            )
        token_space.require_codes_of(trie)
        self.trie, self.token_space = trie, token_space
        self.prompt_length, self.requests, self.unique = prompt_length, requests, unique
        self._mask: TrieMask | None = None
        """What the requests' filters leave, a row a request; with ``unique``, a row a row of inputs."""
        self._num_masked = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [R, V] with −∞ for every token that may not follow ``input_ids`` [R, T].

        Raises ``DataError`` for inputs of another shape than was said, and for a prompt that ends inside an item of
        which no allowed rest is left.
        """
        self._check(input_ids, scores)
        if self.trie.device != input_ids.device:
            self.trie, self.token_space = self.trie.to(input_ids.device), self.token_space.to(input_ids.device)
            self._mask = None
        depth_R, node_R = self._states(input_ids)
        allowed_RV = self._allowed(depth_R, node_R, self._mask_of(input_ids), scores.shape[1])
        if input_ids.shape[1] == self.prompt_length:
            _check_prompts(allowed_RV)
        return scores.masked_fill(~allowed_RV, -torch.inf)

    def _states(self, tokens_RT: Tensor) -> tuple[Tensor, Tensor]:
        """(codes of an item written so far, −1 in free text; the trie node of those codes, −1 for none)."""
        num_levels = self.token_space.num_levels
        last_RL = tokens_RT[:, -num_levels:]
        last_RL = F.pad(last_RL, (num_levels - last_RL.shape[1], 0), value=-1)
        level_RL, code_RL = self.token_space.locate(last_RL)
        depth_R = torch.where(level_RL[:, -1] >= 0, level_RL[:, -1] + 1, -1)
        if self.token_space.item_begin is not None:
            depth_R = depth_R.masked_fill(last_RL[:, -1] == self.token_space.item_begin, 0)
        if self.token_space.item_end is None:
            depth_R = depth_R.masked_fill(depth_R == num_levels, -1)
        node_R = torch.zeros_like(depth_R)
        for level in range(num_levels - 1):
            place_R1 = (num_levels - depth_R + level).clamp(max=num_levels - 1)[:, None]
            wrong_R = level_RL.gather(1, place_R1)[:, 0] != level
            code_R = code_RL.gather(1, place_R1)[:, 0]
            child_R = self._child(level, node_R.masked_fill(wrong_R, -1), code_R)
            node_R = torch.where(depth_R > level, child_R, node_R)
        return depth_R, node_R

    def _allowed(self, depth_R: Tensor, node_R: Tensor, mask: TrieMask | None, num_tokens: int) -> Tensor:
        """Which tokens may come next: bool [R, V]."""
        space = self.token_space
        free_R = depth_R < 0
        allowed_RV = free_R[:, None] & self._text(num_tokens)
        for level in range(space.num_levels):
            here_R = (depth_R == level) | (free_R & (level == 0))
            children_RC, codes_RC = self.trie.children(level, node_R.masked_fill(~here_R, -1))
            open_RC = self._open(level, children_RC, mask)
            if level == 0 and space.item_begin is not None:
                allowed_RV[:, space.item_begin] = free_R & open_RC.any(1)
                open_RC = open_RC & ~free_R[:, None]
            row, place = open_RC.nonzero(as_tuple=True)
            allowed_RV[row, space.tokens[level][codes_RC[row, place]]] = True
        if space.item_end is not None:
            allowed_RV[:, space.item_end] = depth_R == space.num_levels
        return allowed_RV

    def _text(self, num_tokens: int) -> Tensor:
        """Which tokens are text: bool [V]."""
        tokens = torch.arange(num_tokens, device=self.trie.device)
        marks = [mark for mark in (self.token_space.item_begin, self.token_space.item_end) if mark is not None]
        return (self.token_space.locate(tokens)[0] < 0) & ~torch.isin(tokens, tokens.new_tensor(marks))

    def _child(self, level: int, node_X: Tensor, code_X: Tensor) -> Tensor:
        """The child of each node that a code leads to, −1 for none."""
        children_XC, codes_XC = self.trie.children(level, node_X)
        return children_XC.masked_fill(codes_XC != code_X[:, None], -1).amax(1)

    def _open(self, level: int, children_RC: Tensor, mask: TrieMask | None) -> Tensor:
        """Whether nodes lead to an item that their row may still write."""
        if mask is None:
            return children_RC >= 0
        num_requests = len(children_RC) if self.unique or self.requests is None else len(self.requests)
        children_BMC = children_RC.view(num_requests, -1, children_RC.shape[1])
        return mask.allows(level, children_BMC).view(children_RC.shape)

    def _mask_of(self, tokens_RT: Tensor) -> TrieMask | None:
        """What filters and the answers so far leave."""
        if self.requests is None and not self.unique:
            return None
        num_rows = len(tokens_RT) if self.unique else 0
        if self._mask is None or self._num_masked != num_rows:
            self._mask, self._num_masked = TrieMask.of(self.trie, self._filtered(num_rows)), num_rows
        if not self.unique:
            return self._mask
        row_X, leaf_X = self._items_written(tokens_RT)
        if not len(row_X):
            return self._mask
        leaf_Y, place_Y = self.trie.places_of(leaf_X)
        return self._mask.excluding(row_X[leaf_Y], self.trie.items[place_Y])

    def _filtered(self, num_rows: int) -> Requests:
        """The requests, or one for each of ``num_rows`` rows where that is not 0."""
        if self.requests is None:
            nothing = torch.zeros(num_rows + 1, dtype=torch.int64)
            return Requests(History(nothing, nothing[:0]))
        if not num_rows:
            return self.requests
        return self.requests.take(torch.arange(num_rows) // (num_rows // len(self.requests)))

    def _items_written(self, tokens_RT: Tensor) -> tuple[Tensor, Tensor]:
        """(row, leaf of the trie) of every tuple that ended after the prompt."""
        num_levels = self.token_space.num_levels
        answer_RT = tokens_RT[:, max(0, self.prompt_length - num_levels + 1) :]
        if answer_RT.shape[1] < num_levels:
            return answer_RT.new_zeros(0), answer_RT.new_zeros(0)
        level_RTL, code_RTL = (found.unfold(1, num_levels, 1) for found in self.token_space.locate(answer_RT))
        row_X, place_X = (level_RTL == torch.arange(num_levels, device=answer_RT.device)).all(2).nonzero(as_tuple=True)
        node_X = torch.zeros_like(row_X)
        for level in range(num_levels):
            node_X = self._child(level, node_X, code_RTL[row_X, place_X, level])
        return row_X[node_X >= 0], node_X[node_X >= 0]

    def _check(self, input_ids: Tensor, scores: Tensor) -> None:
        rows, length = input_ids.shape
        if len(scores) != rows:
            raise DataError(f"scores of {len(scores)} rows for {rows} rows of tokens: give both of the same rows")
        if length < self.prompt_length:
            raise DataError(
                f"{length} tokens after a prompt of {self.prompt_length}: give prompt_length = input_ids.shape[1] "
                "of the prompts"
            )
        if scores.shape[1] < self.token_space.min_vocabulary:
            raise DataError(
                f"scores of {scores.shape[1]} tokens, the token space has ids up to "
                f"{self.token_space.min_vocabulary - 1}: add room for the codes with extend_vocabulary"
            )
        if self.requests is not None and (not len(self.requests) or rows % len(self.requests)):
            raise DataError(f"{rows} rows for {len(self.requests)} requests: give one request a prompt")


def _check_prompts(allowed_RV: Tensor) -> None:
    stuck = (~allowed_RV.any(1)).nonzero()
    if len(stuck):
        raise DataError(
            f"row {int(stuck[0])}: the prompt ends inside an item, and no allowed one goes on like that: "
            "end it with text, or where codes of an allowed item may follow"
        )
