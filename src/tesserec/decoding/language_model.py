"""A decoder-only language model as the model of the beam search: any causal one of transformers; extra ``[llm]``.

Paper: none of its own; beams as positions of one row, as in the tree attention of SpecInfer, arXiv 2305.09781.
Adds: a request's prompt is read once and its keys and values are kept once, whatever the number of beams: a step feeds
    all beams as positions of one row, and a mask shows each one the prompt and its own ancestors. Nothing is reordered.
Differs: no draft model; the tree is that of the beams.
Checked: tests/decoding/test_language_model.py (equal to whole sequences through the plain model, and to ``generate``
    with ``prefix_allowed_tokens_fn``; Llama, Qwen3 and GPT-2).

Log-probabilities are over the whole vocabulary, text included, so that scores of tuples are comparable across requests
and equal to what the model gives the text.

Dimensions: B requests · T tokens of the longest prompt · M beams · C children · S cached positions · V vocabulary ·
K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.token_space import TokenSpace
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.errors import DataError
from tesserec.types import Candidates, Ragged, Requests

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

__all__ = ["LanguageModelStep", "Reading", "generate_items"]

ATTENTIONS = ("sdpa", "eager")
"""Implementations that take a mask of any form."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model has read so far; the cache of ``LanguageModelStep``, for one search."""

    keys_values: DynamicCache
    """Of the prompts, and of the beams of each level so far: S positions of each request. It grows in place."""
    seen_BMS: Tensor
    """Which of the positions each beam sees, bool."""
    length_B1: Tensor
    """Tokens of each prompt, int64."""
    logits_BMV: Tensor
    """Of the token that comes next."""


class LanguageModelStep:
    """``tesserec.decoding.beam_search.Step`` over a causal language model, whose first cache is ``read(prompts)``."""

    def __init__(self, model: PreTrainedModel, trie: Trie, token_space: TokenSpace) -> None:
        """``model`` is in evaluation mode, its attention "sdpa" or "eager", and each of its layers sees all tokens.

        Raises ``DataError`` where it is otherwise, or where trie, token space and vocabulary do not fit together.
        """
        self.model = model
        self.trie, self.token_space = trie.to(model.device), token_space.to(model.device)
        self._check()

    @torch.no_grad()
    def read(self, prompts: Ragged) -> Reading:
        """Run the model over prompts of token ids, of any lengths from 1, once: the first cache of one search."""
        token_BT, exists_BT = _left_padded(prompts, self.model.device)
        keys_values = _library().DynamicCache(config=self.model.config)
        position_BT = (exists_BT.long().cumsum(1) - 1).clamp(min=0)
        logits_B1V = self._run(token_BT, exists_BT.long(), position_BT, keys_values, 1)
        return Reading(keys_values, exists_BT[:, None], exists_BT.sum(1, keepdim=True), logits_B1V)

    @torch.no_grad()
    def __call__(  # noqa: PLR0917  # the protocol
        self,
        cache: Reading,
        level: int,
        parents_BM: Tensor | None,
        nodes_BM: Tensor,
        children_BMC: Tensor,
        codes_BMC: Tensor,
    ) -> tuple[Reading, Tensor]:
        """The protocol: log-softmax over the whole vocabulary, at the tokens of the children."""
        if parents_BM is not None:
            code_BM = self.trie.child_codes[level - 1][nodes_BM.clamp(min=0)].long()
            cache = self._write(cache, level, parents_BM, self.token_space.tokens[level - 1][code_BM])
        token_BMC = self.token_space.tokens[level][codes_BMC.clamp(min=0)]
        log_probs_BMC = cache.logits_BMV.gather(2, token_BMC) - cache.logits_BMV.logsumexp(2, keepdim=True)
        return cache, log_probs_BMC

    def _write(self, cache: Reading, level: int, parents_BM: Tensor, token_BM: Tensor) -> Reading:
        """Feed one more token a beam. It sees what its parent sees, and itself."""
        if cache.keys_values.get_seq_length() != cache.seen_BMS.shape[2]:
            raise DataError("a search has added to this reading already: read the prompts anew for each search")
        batch, beams = token_BM.shape
        seen_BMS = cache.seen_BMS.gather(1, parents_BM[..., None].expand(-1, -1, cache.seen_BMS.shape[2]))
        itself_BMM = torch.eye(beams, dtype=torch.bool, device=token_BM.device).expand(batch, -1, -1)
        seen_BMS = torch.cat([seen_BMS, itself_BMM], 2)
        mask_BMS = torch.zeros(seen_BMS.shape, dtype=self.model.dtype, device=token_BM.device)
        mask_BMS = mask_BMS.masked_fill(~seen_BMS, torch.finfo(self.model.dtype).min)
        position_BM = (cache.length_B1 + level - 1).expand(-1, beams)
        logits_BMV = self._run(token_BM, mask_BMS[:, None], position_BM, cache.keys_values, beams)
        return Reading(cache.keys_values, seen_BMS, cache.length_B1, logits_BMV)

    def _run(self, tokens: Tensor, mask: Tensor, positions: Tensor, keys_values: DynamicCache, last: int) -> Tensor:
        """Logits, in float32, of the ``last`` of ``tokens``; ``keys_values`` grow by all of them."""
        options: dict[str, Any] = {_cache_argument(): keys_values, "use_cache": True, "logits_to_keep": last}
        output = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, **options)
        logits: Tensor = output.logits.float()
        return logits

    def _check(self) -> None:
        if self.model.training:
            raise DataError("the model is in training mode, where dropout makes its answers random: call model.eval()")
        attention = self.model.config._attn_implementation
        if attention not in ATTENTIONS:
            raise DataError(
                f"the model's attention is {attention!r}, which takes no mask of beams: load it with "
                'attn_implementation="sdpa"'
            )
        full = _library().cache_utils.DynamicLayer
        if any(type(layer) is not full for layer in _library().DynamicCache(config=self.model.config).layers):
            raise DataError(
                "the model has layers that do not keep all tokens (a sliding window, a recurrent state), which beams "
                "cannot share: use one whose layers all have full attention"
            )
        self._check_codes()

    def _check_codes(self) -> None:
        rows = self.model.get_input_embeddings().num_embeddings
        if self.token_space.min_vocabulary > rows:
            raise DataError(
                f"the token space has ids up to {self.token_space.min_vocabulary - 1}, the model {rows} tokens: "
                "add room for the codes with extend_vocabulary"
            )
        self.token_space.require_codes_of(self.trie)


def generate_items(
    model: PreTrainedModel,
    prompts: Ragged,
    trie: Trie,
    token_space: TokenSpace,
    requests: Requests,
    *,
    num_beams: int,
    k: int,
    batch_size: int = 32,
) -> Candidates:
    """The ``k`` most probable items after each prompt, of the ``num_beams`` code tuples that a beam search finds.

    ``prompts`` are token ids of text and codes, a row a request, up to where the first code is due: the last token is
    ``token_space.item_begin`` where there is one. ``requests`` say what must not be shown; ``batch_size`` of them are
    held at once. Scores are log-probabilities of the tuple's tokens after the prompt, over the whole vocabulary; the
    ``codes`` [B, k, L] are in the trace. Raises ``DataError`` for prompts that are otherwise, and where
    ``LanguageModelStep`` does; ``ValueError`` for ``num_beams`` or ``k`` below 1.
    """
    step = LanguageModelStep(model, trie, token_space)
    _check_prompts(prompts, requests, step)
    if not len(requests):
        nothing = torch.zeros(0, k, dtype=torch.int64)
        return Candidates(nothing, nothing.float(), trace={"codes": nothing[..., None].expand(-1, -1, trie.num_levels)})
    batches = []
    for rows in requests.batches(batch_size):
        batch = requests.take(rows)
        mask = TrieMask.of(step.trie, batch)
        beams = beam_search(
            step, step.read(prompts.take(rows)), step.trie, num_requests=len(batch), num_beams=num_beams, mask=mask
        )
        batches.append(beams_to_items(beams, step.trie, k, mask))
    return Candidates.concatenate(batches)


def _check_prompts(prompts: Ragged, requests: Requests, step: LanguageModelStep) -> None:
    if len(prompts) != len(requests):
        raise DataError(f"{len(prompts)} prompts for {len(requests)} requests: give one each")
    empty = (prompts.lengths == 0).nonzero()
    if len(empty):
        raise DataError(f"prompt {int(empty[0])} has no tokens: begin it with some text or a mark")
    rows = step.model.get_input_embeddings().num_embeddings
    unknown = ((prompts.values < 0) | (prompts.values >= rows)).nonzero()
    if len(unknown):
        token = int(prompts.values[unknown[0]])
        raise DataError(f"prompts hold token {token}, the model has 0 to {rows - 1}: use the model's own tokenizer")
    begin = step.token_space.item_begin
    if begin is None:
        return
    other = (prompts.values[prompts.offsets[1:] - 1] != begin).nonzero()
    if len(other):
        raise DataError(f"prompt {int(other[0])} does not end with item_begin, token {begin}: add it, codes follow it")


def _left_padded(prompts: Ragged, device: torch.device) -> tuple[Tensor, Tensor]:
    """(tokens [B, T], 0 on the left of short prompts; which of them exist)."""
    length_B = prompts.lengths
    longest = int(length_B.max())
    exists_BT = torch.arange(longest) >= longest - length_B[:, None]
    token_BT = torch.zeros(exists_BT.shape, dtype=torch.int64)
    token_BT[exists_BT] = prompts.values
    return token_BT.to(device), exists_BT.to(device)


def _library() -> Any:
    """transformers, imported when it is first used: it takes seconds."""
    import transformers

    return transformers


def _cache_argument() -> str:
    """What models call their cache: renamed in transformers 5.24."""
    major, minor = _library().__version__.split(".")[:2]
    return "cache" if (int(major), int(minor)) >= (5, 24) else "past_key_values"
