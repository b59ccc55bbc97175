"""T5: an encoder-decoder whose search reads a request once and writes one token a step for all its beams.

Paper: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv
    1910.10683 (version 1.0, with the numbers of Hugging Face's T5ForConditionalGeneration, whose weights it takes).
Adds: RMS norms first, no biases, no 1/√d in attention, ReLU, and a bias a head and distance bucket that all layers of a
    side share; in the search, keys and values of what was read once a request, shared by its beams.
Differs: no gated feed-forwards (version 1.1), no other numbers than 32 buckets up to distance 128, feed-forwards are a
    whole multiple of the width; a head tied to the embedding is loaded as one of its own, which starts smaller.
Checked: tests/nn/test_t5.py (logits and beams of transformers' T5; token by token equals the full pass).

Dimensions: B requests · S tokens read · T tokens written · M beams · D features · H heads · W features of a head ·
V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.errors import DataError
from tesserec.nn.dropout import Dropout
from tesserec.nn.onednn import Linear, from_onednn, suits_onednn, to_onednn
from tesserec.nn.transformer import TransformerConfig

__all__ = ["T5", "Source", "Written"]

NUM_BUCKETS, MAX_DISTANCE = 32, 128
EPSILON = 1e-6
"""Of the norms."""


@dataclass(frozen=True, eq=False)
class Source:
    """What the decoder needs of the tokens read: computed once a request, shared by its beams."""

    keys: tuple[Tensor, ...]
    """Of each layer, [B, H, S, W]."""
    values: tuple[Tensor, ...]
    """As the keys."""
    mask_B11S: Tensor | None
    """0 where there is a token, the lowest number where there is none; None where there is one everywhere."""


@dataclass(frozen=True, eq=False)
class Written:
    """The tokens that each beam has written so far."""

    source: Source
    kept: tuple[tuple[Tensor, ...], ...]
    """Of each step and layer, keys and values of the tokens that its beams wrote then, [B · M, 2, H, W]."""
    path: tuple[Tensor, ...]
    """Of each step, which of those are of the beams that are left: [B, M], and as rows of ``kept``."""


class T5(nn.Module):
    """Reads vectors, writes tokens."""

    def __init__(self, config: TransformerConfig, num_tokens: int) -> None:
        """Random weights as in the original, where the head starts as other matrices do."""
        super().__init__()
        self.shared = nn.Embedding(num_tokens, config.width)
        self._encoder = [_Layer(config) for _ in range(config.num_layers)]
        self._decoder = [_Layer(config, cross=True) for _ in range(config.num_layers)]
        self.encoder, self.decoder = nn.ModuleList(self._encoder), nn.ModuleList(self._decoder)
        self.encoder_bias = nn.Embedding(NUM_BUCKETS, config.num_heads)
        self.decoder_bias = nn.Embedding(NUM_BUCKETS, config.num_heads)
        self.encoder_norm = nn.RMSNorm(config.width, eps=EPSILON)
        self.decoder_norm = nn.RMSNorm(config.width, eps=EPSILON)
        self.head = Linear(config.width, num_tokens, config.width**-0.5)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.shared.weight)
        for part in (self.encoder_bias, self.decoder_bias):
            nn.init.normal_(part.weight, std=config.width**-0.5)

    def encode(self, x_BSD: Tensor, exists_BS: Tensor) -> Tensor:
        """States [B, S, D] of vectors [B, S, D], where they exist; at least one does in each row.

        Only distances count: padding may be on either side, and not between tokens.
        """
        position_S = torch.arange(x_BSD.shape[1], device=x_BSD.device)
        distance_SS = position_S - position_S[:, None]
        bias_BHSS = _bias(self.encoder_bias, _buckets(distance_SS.abs(), NUM_BUCKETS // 2, later=distance_SS > 0))
        mask_B11S = _mask(exists_BS, x_BSD.dtype)
        if mask_B11S is not None:
            bias_BHSS = bias_BHSS + mask_B11S
        x_BSD = self.dropout(x_BSD)
        for layer in self._encoder:
            x_BSD = layer.feed(layer.look_around(x_BSD, bias_BHSS))
        states: Tensor = self.dropout(self.encoder_norm(x_BSD))
        return states

    def read(self, x_BSD: Tensor, exists_BS: Tensor) -> Source:
        """Encode, and project keys and values of every decoder layer."""
        states_BSD = self.encode(x_BSD, exists_BS)
        projected = [layer.project(states_BSD) for layer in self._decoder]
        keys, values = zip(*projected, strict=True) if projected else ((), ())
        return Source(keys, values, _mask(exists_BS, x_BSD.dtype))

    def forward(self, source: Source, tokens_BT: Tensor, added_BTD: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of what follows each of ``tokens_BT``, all positions at once: for training.

        ``added_BTD`` is added to the vectors of the tokens.
        """
        position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        back_TT = position_T[:, None] - position_T
        bias_1HTT = _bias(self.decoder_bias, _buckets(back_TT.clamp(min=0), NUM_BUCKETS))
        bias_1HTT = bias_1HTT.masked_fill(back_TT < 0, torch.finfo(bias_1HTT.dtype).min)
        x_BTD = self.dropout(self._embedded(tokens_BT, added_BTD))
        for layer, key, value in zip(self._decoder, source.keys, source.values, strict=True):
            x_BTD = layer.look_around(x_BTD, bias_1HTT)
            x_BTD = layer.feed(layer.look(x_BTD, key, value, source.mask_B11S))
        logits: Tensor = self.head(self.dropout(self.decoder_norm(x_BTD)))
        return logits

    def begin(self, source: Source) -> Written:
        """One beam a request that has written nothing."""
        return Written(source, (), ())

    def write(
        self, written: Written, parents_BM: Tensor | None, tokens_BM: Tensor, added_BMD: Tensor | None = None
    ) -> tuple[Written, Tensor]:
        """(what is kept for the next token, logits [B, M, V] of what follows ``tokens_BM``).

        Each beam continues the beam ``parents_BM`` of the call before by one token; at the first call it is None. Only
        the new tokens are worked out. ``added_BMD`` is added to their vectors.
        """
        source, num_steps = written.source, len(written.kept)
        x_BMD = self._embedded(tokens_BM, added_BMD)
        path = tuple(step_BM if parents_BM is None else step_BM.gather(1, parents_BM) for step_BM in written.path)
        rows = [step_BM.flatten() for step_BM in path]
        back_T = torch.arange(num_steps, -1, -1, device=tokens_BM.device)
        bias_TH = self.decoder_bias(_buckets(back_T, NUM_BUCKETS))
        kept = []
        for number, layer in enumerate(self._decoder):
            before = [step[number].index_select(0, row_X) for step, row_X in zip(written.kept, rows, strict=True)]
            x_BMD, keeps = layer.look_back(x_BMD, before, bias_TH)
            x_BMD = layer.feed(layer.look(x_BMD, source.keys[number], source.values[number], source.mask_B11S))
            kept.append(keeps)
        # Where the rest is bfloat16 too: beams are told apart by less than its last digit.
        with torch.autocast(x_BMD.device.type, enabled=False):
            logits: Tensor = self.head(self.decoder_norm(x_BMD.float()))
        own_BM = torch.arange(tokens_BM.numel(), device=tokens_BM.device).view(tokens_BM.shape)
        return Written(source, (*written.kept, tuple(kept)), (*path, own_BM)), logits

    def _embedded(self, tokens: Tensor, added: Tensor | None) -> Tensor:
        x: Tensor = self.shared(tokens)
        return x if added is None else x + added

    def load_huggingface(self, state: Mapping[str, Tensor], *, tied: bool = False) -> None:
        """Take the weights of ``T5ForConditionalGeneration.state_dict()``; of one whose head is ``tied``, if so.

        Raises ``RuntimeError`` (torch's) where shapes differ, ``KeyError`` where a weight is missing and ``DataError``
        where there are more layers.
        """
        next_layer = f".block.{len(self._encoder)}."
        if any(next_layer in name for name in state):
            raise DataError(f"the weights have more than {len(self._encoder)} layers a side: build T5 with as many")
        own = {
            "shared.weight": state["shared.weight"],
            "head.weight": state["lm_head.weight"] * (state["lm_head.weight"].shape[1] ** -0.5 if tied else 1),
        }
        for side in ("encoder", "decoder"):
            bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            own[f"{side}_bias.weight"] = state[bias]
            own[f"{side}_norm.weight"] = state[f"{side}.final_layer_norm.weight"]
            for number in range(len(self._encoder)):
                layer = _layer_of_huggingface(state, f"{side}.block.{number}.layer", cross=side == "decoder")
                own |= {f"{side}.{number}.{name}": weight for name, weight in layer.items()}
        self.load_state_dict(own)
        self.train(self.training)


class _Layer(nn.Module):
    """Self-attention, cross-attention in a decoder, feed-forward; each normalised first and added."""

    def __init__(self, config: TransformerConfig, *, cross: bool = False) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.feedforward
        self.num_heads, self.head_width = config.num_heads, config.head_width or width // config.num_heads
        inner = config.num_heads * self.head_width
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.query_key_value = Linear(width, 3 * inner, width**-0.5)
        self.output = Linear(inner, width, inner**-0.5)
        nn.init.normal_(self.query_key_value.weight[:inner], std=(width * self.head_width) ** -0.5)
        if cross:
            self.cross_norm = nn.RMSNorm(width, eps=EPSILON)
            self.cross_query = Linear(width, inner, (width * self.head_width) ** -0.5)
            self.cross_key_value = Linear(width, 2 * inner, width**-0.5)
            self.cross_output = Linear(inner, width, inner**-0.5)
        self.feed_norm = nn.RMSNorm(width, eps=EPSILON)
        self.widen = Linear(width, hidden, width**-0.5)
        self.narrow = Linear(hidden, width, hidden**-0.5)
        self.dropout = Dropout(config.dropout)

    def look_around(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        """Self-attention of a whole sequence."""
        query, key, value = (self._heads(part) for part in self.query_key_value(self.norm(x_BTD)).chunk(3, -1))
        mixed = self._attend(query, key, value, bias_BHTT)
        out: Tensor = x_BTD + self.dropout(self.output(mixed))
        return out

    def look_back(self, x_BMD: Tensor, before: Sequence[Tensor], bias_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention of a token a beam over keys and values [B · M, 2, H, W] of each token ``before`` and its own.

        Sums of products in place of matrix products, which are slow where there are many of a few rows. Returns the
        states, and its own keys and values.
        """
        new = self.query_key_value(self.norm(x_BMD)).view(x_BMD.shape[:2].numel(), 3, self.num_heads, self.head_width)
        query, seen = new[:, 0], [*before, new[:, 1:]]
        weights_T = torch.stack([(query * kept[:, 0]).sum(-1) for kept in seen]) + bias_TH[:, None]
        weights_T = weights_T.softmax(0)[..., None]
        mixed = weights_T[0] * seen[0][:, 1]
        for weight, kept in zip(weights_T[1:], seen[1:], strict=True):
            mixed.addcmul_(weight, kept[:, 1])
        out: Tensor = x_BMD + self.output(mixed.view(*x_BMD.shape[:2], self.output.in_features))
        return out, new[:, 1:]

    def project(self, states_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, W] of a source for ``look``."""
        key, value = self.cross_key_value(states_BSD).chunk(2, -1)
        return self._heads(key).contiguous(), self._heads(value).contiguous()

    def look(self, x_BTD: Tensor, key: Tensor, value: Tensor, mask_B11S: Tensor | None) -> Tensor:
        """Cross-attention of any number of tokens a request over a projected source."""
        mixed = self._attend(self._heads(self.cross_query(self.cross_norm(x_BTD))), key, value, mask_B11S)
        out: Tensor = x_BTD + self.dropout(self.cross_output(mixed))
        return out

    def feed(self, x_BTD: Tensor) -> Tensor:
        """The feed-forward half."""
        normed = self.feed_norm(x_BTD)
        if not self.training and suits_onednn(normed):  # the wide states are neither copied nor made twice
            return x_BTD + from_onednn(self.narrow(self.widen(to_onednn(normed)).relu_()), x_BTD.shape[:-1])
        out: Tensor = x_BTD + self.dropout(self.narrow(self.dropout(self.widen(normed).relu_())))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attention without a scale, [B, T, H · W]; which way is faster depends on type and gradient (on a CPU)."""
        if query.dtype == torch.float32 and not torch.is_grad_enabled():
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        else:
            logits = query @ key.transpose(-1, -2)
            mixed = self.dropout((logits if bias is None else logits + bias).softmax(-1)) @ value
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_width).transpose(1, 2)


def _buckets(distance: Tensor, number: int, later: Tensor | None = None) -> Tensor:
    """Bucket of distances ≥ 0: half of ``number`` exact, the others logarithmic; those of ``later`` ones come after."""
    exact = number // 2
    far = torch.log(distance.clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact) * (number - exact)
    bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=number - 1))
    return bucket if later is None else bucket + later * number


def _bias(table: nn.Embedding, buckets_TS: Tensor) -> Tensor:
    """What attention adds to the logits of each head, [1, H, T, S]."""
    bias: Tensor = table(buckets_TS).permute(2, 0, 1)[None].contiguous()
    return bias


def _mask(exists_BS: Tensor, dtype: torch.dtype) -> Tensor | None:
    """See ``Source.mask_B11S``."""
    if bool(exists_BS.all()):
        return None
    nothing = torch.zeros(exists_BS.shape, dtype=dtype, device=exists_BS.device)
    return nothing.masked_fill(~exists_BS, torch.finfo(dtype).min)[:, None, None]


def _layer_of_huggingface(state: Mapping[str, Tensor], prefix: str, *, cross: bool) -> dict[str, Tensor]:
    own, feed = f"{prefix}.0.SelfAttention", f"{prefix}.{2 if cross else 1}"
    layer = {
        "norm.weight": state[f"{prefix}.0.layer_norm.weight"],
        "query_key_value.weight": torch.cat([state[f"{own}.{name}.weight"] for name in "qkv"]),
        "output.weight": state[f"{own}.o.weight"],
        "feed_norm.weight": state[f"{feed}.layer_norm.weight"],
        "widen.weight": state[f"{feed}.DenseReluDense.wi.weight"],
        "narrow.weight": state[f"{feed}.DenseReluDense.wo.weight"],
    }
    if cross:
        other = f"{prefix}.1.EncDecAttention"
        layer |= {
            "cross_norm.weight": state[f"{prefix}.1.layer_norm.weight"],
            "cross_query.weight": state[f"{other}.q.weight"],
            "cross_key_value.weight": torch.cat([state[f"{other}.{name}.weight"] for name in "kv"]),
            "cross_output.weight": state[f"{other}.o.weight"],
        }
    return layer
