"""Users answered a second: our beam search beside Hugging Face's ``generate`` with the same T5, and Mosaic beside both.

Dimensions: B requests · M beams · L levels · S tokens read · V tokens.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks._record import record
from benchmarks.decoding._setting import (
    LENGTH,
    MOSAIC_SHAPE,
    SEED,
    TIGER_SHAPE,
    Setting,
    mosaic_of,
    network_of,
    num_parameters,
    read_setting,
    tiger_of,
)
from tesserec.decoding.top_k import first_best
from tesserec.retrievers.tiger import BEAMS_AT_ONCE, TIGER
from tesserec.training.measure import Measured
from tesserec.types import Requests

FIGURES = (
    "decoding.users_per_s_vs_hf_t5.beam10",
    "decoding.users_per_s_vs_hf_t5.beam50",
    "decoding.constrained_vs_open.beam50",
    "decoding.mosaic_vs_hf_t5.beam50",
)

BATCH_SIZES = {10: (4, 8, 16, 32), 50: (1, 2, 4, 8, 16)}
"""Of Hugging Face's search, by its beams: the best one is in the middle."""
THREADS = (1, 2)
SHARPNESS = 0.25
"""Factor on the random head: scores neither tie nor are all one token's."""
AGAINST = {
    "users_per_s_vs_hf_t5": "users/s of {0} over those of {1} (transformers' generate)",
    "constrained_vs_open": "seconds of the search in the tree over seconds of one that may write any code: {1} / {0}",
    "mosaic_vs_hf_t5": "users/s of Mosaic's generative head over those of {1} (transformers' generate)",
}
GAP = 1e-3
"""Scores that differ by less may change places."""
PROTOCOL = (
    "untrained networks of the same weights, {model}; {parameters:,} parameters without embeddings; log-probabilities "
    "over the {tokens} tokens of all levels; histories of 20 items ({length} tokens), {beams} beams and answers; each "
    "side with the type, threads ({threads}) and, theirs, batch size (of {sizes}) that are fastest; theirs with "
    "prefix_allowed_tokens_fn from a dictionary of tensors; {users} users a "
    "round, sides in turn; median, smallest and largest of the rounds' ratios; median users/s: {rates}; in float32 "
    "both find the same lists but for scores that differ by less than 0.001"
)


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to answer, and what it runs with."""

    name: str
    answer: Callable[[Requests], object]
    threads: int
    batch_size: int | None = None
    """Requests that are given at once; None: all of them."""

    @property
    def told(self) -> str:
        """Its name and what it runs with."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.name} ({threads}" + (")" if self.batch_size is None else f", batches of {self.batch_size})")

    def users_per_s(self, requests: Requests) -> float:
        """Users a second, after one batch to warm up."""
        torch.set_num_threads(self.threads)
        batches = [requests.take(rows) for rows in requests.batches(self.batch_size or len(requests))]
        self.answer(batches[0])
        start = time.perf_counter()
        for batch in batches:
            self.answer(batch)
        return len(requests) / (time.perf_counter() - start)


class HuggingFace:
    """``T5ForConditionalGeneration`` with the weights that it gives to a TIGER, and a dictionary of what may follow."""

    def __init__(self, tiger: TIGER) -> None:
        network, shape = network_of(tiger), tiger.model
        torch.manual_seed(SEED)
        settings: dict[str, Any] = {
            "vocab_size": network.t5.shared.num_embeddings,
            "d_model": shape.width,
            "d_kv": shape.head_width,
            "d_ff": shape.width * shape.feedforward,
            "num_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": None,
            "tie_word_embeddings": False,
        }
        model: Any = T5ForConditionalGeneration(T5Config(**settings))
        model.eval()
        model.lm_head.weight.data *= SHARPNESS
        network.t5.load_huggingface(model.state_dict())
        self.models = {"float32": model, "bfloat16": copy.deepcopy(model).bfloat16()}
        self.tokens_NL, self.unknown_D = network.tokens_NL, network.users.weight[-1].detach()
        children: dict[tuple[int, ...], set[int]] = {}
        for tokens in self.tokens_NL.tolist():
            for level, token in enumerate(tokens):
                children.setdefault(tuple(tokens[:level]), set()).add(token)
        self.children = {prefix: torch.tensor(sorted(found)) for prefix, found in children.items()}

    def generate(self, requests: Requests, num_beams: int, precision: str) -> tuple[Tensor, Tensor]:
        """(token tuples [B, M, L], scores [B, M]) of requests whose histories have one length."""
        model = self.models[precision]
        tokens_BS = self.tokens_NL[requests.history.items].view(len(requests), -1)
        with torch.inference_mode():
            user_B1D = self.unknown_D.to(model.dtype).expand(len(requests), 1, -1)
            read_BSD = torch.cat([user_B1D, model.shared(tokens_BS)], 1)
            found = model.generate(
                inputs_embeds=read_BSD,
                attention_mask=torch.ones(read_BSD.shape[:2], dtype=torch.int64),
                num_beams=num_beams,
                num_return_sequences=num_beams,
                max_new_tokens=self.tokens_NL.shape[1],
                do_sample=False,
                length_penalty=0.0,
                prefix_allowed_tokens_fn=self._allowed,
                return_dict_in_generate=True,
                output_scores=True,
            )
        shape = len(requests), num_beams
        return found.sequences[:, 1:].view(*shape, -1), found.sequences_scores.view(shape)

    def _allowed(self, row: int, written_T: Tensor) -> Tensor:
        return self.children[tuple(written_T.tolist()[1:])]


def open_search(tiger: TIGER, requests: Requests) -> list[tuple[Tensor, Tensor]]:
    """Our search without a tree: each beam may go on to all codes of a level. (Tokens [B, M, L], scores) a batch."""
    rows = requests.batches(max(BEAMS_AT_ONCE // tiger.num_beams, 1))
    return [_open_search(tiger, requests.take(some)) for some in rows]


def _open_search(tiger: TIGER, requests: Requests) -> tuple[Tensor, Tensor]:
    network, batch = network_of(tiger), len(requests)
    items_BH = requests.history.items.view(batch, -1)
    ends = [*network.starts[1:], network.t5.shared.num_embeddings]
    low = tiger.precision == "bfloat16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        written = network.t5.begin(network.read(items_BH, torch.full((batch,), tiger.num_user_tokens)))
        tokens_BML, scores_BM = torch.zeros(batch, 1, 1, dtype=torch.int64), torch.zeros(batch, 1)
        parents_BM = None
        for start, end in zip(network.starts, ends, strict=True):
            written, logits_BMV = network.t5.write(written, parents_BM, tokens_BML[:, :, -1])
            logits_BMV = logits_BMV.float()
            log_probs_BMC = logits_BMV[..., start:end] - logits_BMV.logsumexp(2, keepdim=True)
            totals_BX = (scores_BM[..., None] + log_probs_BMC).flatten(1)
            picks_BM = first_best(totals_BX, min(tiger.num_beams, totals_BX.shape[1]))
            scores_BM = totals_BX.gather(1, picks_BM)
            parents_BM = picks_BM // (end - start)
            last_BM = picks_BM % (end - start) + start
            before_BML = tokens_BML.gather(1, parents_BM[..., None].expand(-1, -1, tokens_BML.shape[2]))
            tokens_BML = torch.cat([before_BML, last_BM[..., None]], 2)
        return tokens_BML, scores_BM.sort(dim=1, descending=True, stable=True).values


def check_lists(tiger: TIGER, theirs: HuggingFace, requests: Requests) -> None:
    """Stop where both find other lists or scores than near equal scores explain."""
    num_beams = tiger.num_beams
    found = tiger.retrieve(requests, num_beams)
    tokens_BML, scores_BM = theirs.generate(requests, num_beams, "float32")
    own_BML = theirs.tokens_NL[found.items_BK]
    for row in range(len(requests)):
        own = dict(zip(map(tuple, own_BML[row].tolist()), found.scores_BK[row].tolist(), strict=True))
        other = dict(zip(map(tuple, tokens_BML[row].tolist()), scores_BM[row].tolist(), strict=True))
        least = min(*own.values(), *other.values())
        for tokens in own.keys() | other.keys():
            apart = abs(own.get(tokens, least) - other.get(tokens, least))
            assert apart < GAP, f"request {row}, tokens {tokens}: {own.get(tokens)} here, {other.get(tokens)} there"


class Comparison:
    """All sides with one number of beams: how each runs best, and the rounds."""

    def __init__(self, setting: Setting, num_beams: int, threads: Sequence[int], num_users: int) -> None:
        self.setting, self.num_beams, self.threads, self.num_users = setting, num_beams, threads, num_users
        self.tiger = tiger = tiger_of(setting, TIGER_SHAPE, num_beams)
        theirs = HuggingFace(tiger)
        check_lists(tiger, theirs, setting.take(0, 16))
        tigers = {"float32": tiger, "bfloat16": dataclasses.replace(tiger, precision="bfloat16")}
        tigers["bfloat16"].restore(tiger.state(), setting.catalog, setting.context)
        sizes = BATCH_SIZES[num_beams]
        self.sides = [
            self._best(f"theirs {name}", partial(theirs.generate, num_beams=num_beams, precision=name), sizes)
            for name in tigers
        ]
        self.sides += [self._best(f"ours {name}", partial(one.retrieve, k=num_beams)) for name, one in tigers.items()]
        if num_beams == 50:
            self.sides += [self._best(f"open {name}", partial(open_search, one)) for name, one in tigers.items()]
            self.sides.append(self._best("Mosaic", partial(mosaic_of(setting, MOSAIC_SHAPE).retrieve, k=num_beams)))
        self.rates: dict[str, list[float]] = {side.name: [] for side in self.sides}
        self.peaks = dict.fromkeys(self.rates, 0)

    def _best(self, name: str, answer: Callable[[Requests], object], sizes: Sequence[int | None] = (None,)) -> Side:
        """The side with the number of threads and the batch size that are fastest."""
        sides = [Side(name, answer, threads, size) for threads in self.threads for size in sizes]
        rates = []
        for side in sides:
            rates.append(side.users_per_s(self.setting.take(0, max(side.batch_size or self.num_users, 8))))
            print(f"{side.told}: {rates[-1]:.1f} users/s", flush=True)
        return sides[rates.index(max(rates))]

    def run(self, num_rounds: int) -> None:
        """Time every side once a round, in turn."""
        for number in range(num_rounds):
            turn = number % len(self.sides)
            for side in self.sides[turn:] + self.sides[:turn]:
                with Measured() as cost:
                    rate = side.users_per_s(self.setting.take(number * self.num_users, self.num_users))
                self.rates[side.name].append(rate)
                self.peaks[side.name] = max(self.peaks[side.name], cost.peak_rss_bytes)
            print(f"round {number + 1}:", {name: round(rates[-1], 1) for name, rates in self.rates.items()}, flush=True)

    def report(self, *, is_result: bool) -> None:
        """Print all figures of this number of beams, and record them where they are results."""
        ours, theirs = self._fastest("ours"), self._fastest("theirs")
        self._figure(f"users_per_s_vs_hf_t5.beam{self.num_beams}", ours, theirs, ours, is_result)
        if self.num_beams == 50:
            self._figure("constrained_vs_open.beam50", ours.replace("ours", "open"), ours, ours, is_result)
            self._figure("mosaic_vs_hf_t5.beam50", "Mosaic", theirs, "Mosaic", is_result)

    def _fastest(self, kind: str) -> str:
        of_kind = [name for name in self.rates if name.startswith(kind)]
        return max(of_kind, key=lambda name: statistics.median(self.rates[name]))

    def _figure(self, name: str, first: str, second: str, peak_of: str, is_result: bool) -> None:
        """Users/s of the first side over those of the second."""
        ratios = [a / b for a, b in zip(self.rates[first], self.rates[second], strict=True)]
        middle, protocol = statistics.median(ratios), self._protocol()
        print(f"decoding.{name}: {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {first} / {second}\n{protocol}")
        if is_result:
            record(
                f"decoding.{name}",
                middle,
                "ratio",
                low=min(ratios),
                high=max(ratios),
                n=len(ratios),
                against=AGAINST[name.partition(".")[0]].format(first, second),
                dataset=self.setting.dataset,
                protocol=protocol,
                seeds=(SEED,),
                peak_rss_bytes=self.peaks[peak_of],
            )

    def _protocol(self) -> str:
        network, model = network_of(self.tiger), self.tiger.model
        rates = "; ".join(f"{side.told} {statistics.median(self.rates[side.name]):.1f}" for side in self.sides)
        protocol = PROTOCOL.format(
            model=f"T5 of {model.num_layers} + {model.num_layers} layers of width {model.width}",
            parameters=num_parameters(network)[1],
            tokens=network.t5.shared.num_embeddings,
            length=1 + LENGTH * network.tokens_NL.shape[1],
            beams=self.num_beams,
            threads=" or ".join(map(str, self.threads)),
            sizes=", ".join(map(str, BATCH_SIZES[self.num_beams])),
            users=self.num_users,
            rates=rates,
        )
        if self.num_beams == 50:
            protocol += f"; Mosaic: {MOSAIC_SHAPE.num_layers} layers of width {MOSAIC_SHAPE.width}, its generative head"
        return protocol


def main() -> None:
    """Compare lists, choose how each side runs best, time the rounds, record the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding.hf_t5", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the data sets: the catalogue of Beauty")
    parser.add_argument("--rounds", type=int, default=7, help="fewer than 5 are printed, not recorded (default: 7)")
    parser.add_argument("--users", type=int, default=64, help="users of each side in a round (default: 64)")
    parser.add_argument("--beams", type=int, choices=BATCH_SIZES, help="only this number; printed, not recorded")
    parser.add_argument("--threads", type=int, choices=THREADS, help="only this number; printed, not recorded")
    given = parser.parse_args()
    setting = read_setting(given.data)
    is_result = given.rounds >= 5 and given.beams is None and given.threads is None
    threads = THREADS if given.threads is None else (given.threads,)
    for num_beams in BATCH_SIZES if given.beams is None else (given.beams,):
        comparison = Comparison(setting, num_beams, threads, given.users)
        comparison.run(given.rounds)
        comparison.report(is_result=is_result)


if __name__ == "__main__":
    main()
