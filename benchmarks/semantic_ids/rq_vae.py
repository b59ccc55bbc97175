"""How fast RQ-VAE trains beside a plain PyTorch loop of the same model, and whether it ends as well."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._record import record
from benchmarks.ingest import memory_bytes
from benchmarks.semantic_ids.kmeans import vectors
from tesserec.semantic_ids import RQVAE, RQVAETraining, residual
from tesserec.types import SideInformation

FIGURES = ("sids.rq_vae.vs_plain", "sids.rq_vae.error_vs_plain")

NUM_ITEMS, NUM_FEATURES = 100_000, 768
HIDDEN_SIZES, NUM_LATENTS = (512, 256, 128), 32
NUM_LEVELS, CODEBOOK_SIZE, COMMITMENT_WEIGHT = 3, 256, 0.25
NUM_STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, REVIVE_EVERY = 400, 1024, 1e-3, 1e-4, 20
NUM_WARM = 50
"""Steps before the clock starts."""
START_POINTS_PER_CODE = 64
ROUNDS, THREADS = 5, 2
ITEMS_AT_ONCE = 4096
DATASET = (
    f"synthetic: {NUM_ITEMS:,} x {NUM_FEATURES}, a tree of 40 x 30 x 20 centres (offsets of length 1, 0.6 and 0.4, "
    "leaves of Zipf(0.7) popularity) and noise of length 0.5"
)
AGAINST = (
    f"a loop of nn.Linear, cdist and argmin, float32, fused AdamW, {THREADS} threads, with vectors that are centred "
    "and scaled before the clock starts; the same model, start, losses, steps and moves of unused codes, "
    "which keep their momentum"
)
PROTOCOL = (
    f"{NUM_FEATURES}-{'-'.join(map(str, HIDDEN_SIZES))}-{NUM_LATENTS}, {NUM_LEVELS} levels of {CODEBOOK_SIZE} codes, "
    f"{NUM_STEPS} steps of {BATCH_SIZE} items at {LEARNING_RATE:g}, codes unused for {REVIVE_EVERY} steps moved; "
    f'precision = "bfloat16"; items/s of the steps after the first {NUM_WARM}; {THREADS} threads; every measurement in '
    "a fresh process, sides in turn, another seed each round; median, smallest and largest of n rounds"
)


def main() -> None:
    """Make the vectors, train both sides in fresh processes, in turn, and record the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_ids.rq_vae", description=__doc__)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="another number is printed, not recorded")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="another number is printed, not recorded")
    parser.add_argument("--measure", choices=SIDES, help="train this side in this process and print")
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="the vectors (.npy) that --measure reads")
    parser.add_argument("--seed", type=int, default=0, help="of --measure")
    arguments = parser.parse_args()
    if arguments.steps <= NUM_WARM:
        parser.error(f"--steps is {arguments.steps}, but the clock starts after {NUM_WARM} steps: give more")
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.vectors, arguments.steps, arguments.seed)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, vectors(NUM_ITEMS, NUM_FEATURES))
        rounds: list[dict[str, dict[str, float]]] = []
        for seed in range(arguments.rounds):
            rounds.append({})
            for side in SIDES if seed == 0 else [s for s in SIDES if s not in ONLY_SHOWN]:
                rounds[-1][side] = in_fresh_process(side, path, arguments.steps, seed)
                print(f"round {seed}, {side}: {json.dumps(rounds[-1][side])}", flush=True)
    if (arguments.steps, arguments.rounds) == (NUM_STEPS, ROUNDS):
        save(rounds)


def in_fresh_process(side: str, path: Path, num_steps: int, seed: int) -> dict[str, float]:
    """What ``measure`` finds in a new interpreter."""
    command = [sys.executable, "-m", "benchmarks.semantic_ids.rq_vae", "--measure", side, "--vectors", str(path)]
    command += ["--steps", str(num_steps), "--seed", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(found.stdout))


def measure(side: str, path: Path, num_steps: int, seed: int) -> dict[str, float]:
    """Items a second of the loop, the share of the variance that codes of all items leave over, and peak bytes."""
    torch.set_num_threads(THREADS)
    features_ND = torch.from_numpy(np.load(path))
    clock = Clock(num_steps)
    decoded = SIDES[side](features_ND, num_steps, seed, clock)
    error = sum(float((part - decoded(part)).square().sum()) for part in torch.split(features_ND, ITEMS_AT_ONCE))
    return {
        "items_per_s": clock.num_items / clock.seconds,
        "cpu_ms_a_step": clock.cpu_seconds / clock.num_items * BATCH_SIZE * 1000,
        "error": error / float((features_ND - features_ND.mean(0)).square().sum()),
        "rss_bytes": memory_bytes("VmHWM"),
    }


class Clock:
    """Times the steps after the first ``NUM_WARM`` ones."""

    def __init__(self, num_steps: int) -> None:
        self.num_items = (num_steps - NUM_WARM) * BATCH_SIZE

    def tell(self, step: int, num_steps: int) -> None:
        """Start or stop, where ``step`` is one of the two."""
        now, cpu_now = time.perf_counter(), time.process_time()
        if step == NUM_WARM:
            self._start = now, cpu_now
        if step == num_steps:
            self.seconds, self.cpu_seconds = now - self._start[0], cpu_now - self._start[1]


Decoded = Callable[[Tensor], Tensor]
"""From features [B, D] to what their codes decode to."""
Precision = Literal["float32", "bfloat16"]
Side = Callable[[Tensor, int, int, Clock], Decoded]
"""Trains on features [N, D] for a number of steps from a seed."""


def tesserec(features_ND: Tensor, num_steps: int, seed: int, clock: Clock, precision: Precision) -> Decoded:
    """``RQVAE``."""
    training = RQVAETraining(
        num_steps=num_steps,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        revive_every=REVIVE_EVERY,
        precision=precision,
    )
    quantizer = RQVAE(
        num_levels=NUM_LEVELS,
        codebook_size=CODEBOOK_SIZE,
        hidden_sizes=HIDDEN_SIZES,
        num_latents=NUM_LATENTS,
        commitment_weight=COMMITMENT_WEIGHT,
        training=training,
    )
    quantizer.fit(features_ND, SideInformation(seed=seed, progress=lambda _, step, last, *__: clock.tell(step, last)))
    return lambda part_BD: quantizer.decode(quantizer.encode(part_BD))


def plain(features_ND: Tensor, num_steps: int, seed: int, clock: Clock, precision: Precision) -> Decoded:
    """A loop as one writes it for this model alone."""
    torch.manual_seed(seed)
    mean_D = features_ND.mean(0)
    scale = (features_ND - mean_D).square().mean().sqrt()
    inputs_ND = (features_ND - mean_D) / scale  # once, not in every step
    model = PlainRQVAE()
    model.start(inputs_ND[torch.randperm(len(inputs_ND))[: START_POINTS_PER_CODE * CODEBOOK_SIZE]], seed)
    weights = [*model.encoder.parameters(), *model.decoder.parameters()]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": [*model.codebooks], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    used = [torch.zeros(CODEBOOK_SIZE, dtype=torch.bool) for _ in model.codebooks]
    for step in range(1, num_steps + 1):
        inputs_BD = inputs_ND[torch.randint(len(inputs_ND), (BATCH_SIZE,))]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss, codes, residuals = model(inputs_BD)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for used_C, codes_B in zip(used, codes, strict=True):
            used_C[codes_B] = True
        if step % REVIVE_EVERY == 0 and step + REVIVE_EVERY <= num_steps:
            revive(model.codebooks, used, residuals)
        clock.tell(step, num_steps)

    @torch.no_grad()
    def decoded(part_BD: Tensor) -> Tensor:
        decoded_BD: Tensor = model.decoder(model.quantized((part_BD - mean_D) / scale))
        return decoded_BD * scale + mean_D

    return decoded


class PlainRQVAE(nn.Module):
    """The model of ``plain``."""

    def __init__(self) -> None:
        super().__init__()
        widths = (NUM_FEATURES, *HIDDEN_SIZES, NUM_LATENTS)
        self.encoder, self.decoder = layers(widths), layers(widths[::-1])
        self.codebooks = nn.ParameterList([torch.zeros(CODEBOOK_SIZE, NUM_LATENTS) for _ in range(NUM_LEVELS)])

    @torch.no_grad()
    def start(self, inputs_BD: Tensor, seed: int) -> None:
        """k-means of the latents and of what each level leaves over."""
        rest_BZ = self.encoder(inputs_BD)
        for level, codebook_CZ in enumerate(self.codebooks):
            codebook_CZ.copy_(residual.k_means(rest_BZ, CODEBOOK_SIZE, seed + level))
            rest_BZ = rest_BZ - codebook_CZ[taken(rest_BZ, codebook_CZ)]

    def quantized(self, inputs_BD: Tensor) -> Tensor:
        """The sum of the code vectors [B, Z]."""
        latents_BZ: Tensor = self.encoder(inputs_BD)
        rest_BZ = latents_BZ
        for codebook_CZ in self.codebooks:
            rest_BZ = rest_BZ - codebook_CZ[taken(rest_BZ, codebook_CZ)]
        return latents_BZ - rest_BZ

    def forward(self, inputs_BD: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Loss, and codes [B] and residuals [B, Z] of each level."""
        latents_BZ = self.encoder(inputs_BD).float()
        rest_BZ, total_BZ = latents_BZ, torch.zeros_like(latents_BZ)
        loss, codes, residuals = torch.zeros(()), [], []
        for codebook_CZ in self.codebooks:
            codes.append(taken(rest_BZ, codebook_CZ))
            residuals.append(rest_BZ.detach())
            chosen_BZ = F.embedding(codes[-1], codebook_CZ)
            loss = loss + F.mse_loss(chosen_BZ, rest_BZ.detach())
            loss = loss + COMMITMENT_WEIGHT * F.mse_loss(rest_BZ, chosen_BZ.detach())
            rest_BZ = rest_BZ - chosen_BZ.detach()
            total_BZ = total_BZ + chosen_BZ.detach()
        through_BZ = latents_BZ + (total_BZ - latents_BZ).detach()
        reconstruction = F.mse_loss(self.decoder(through_BZ).float(), inputs_BD)
        return NUM_FEATURES * reconstruction + NUM_LATENTS * loss, codes, residuals


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts = [part for before, after in pairwise(widths) for part in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


@torch.no_grad()
def taken(rest_BZ: Tensor, codebook_CZ: Tensor) -> Tensor:
    """The nearest code of each residual, [B]."""
    return torch.cdist(rest_BZ, codebook_CZ).argmin(1)


@torch.no_grad()
def revive(codebooks: nn.ParameterList, used: list[Tensor], residuals: list[Tensor]) -> None:
    """Move codes that were not used to residuals of the batch."""
    for codebook_CZ, used_C, residual_BZ in zip(codebooks, used, residuals, strict=True):
        dead = (~used_C).nonzero().squeeze(1)
        codebook_CZ[dead] = residual_BZ[torch.randint(len(residual_BZ), (len(dead),))]
        used_C.zero_()


SIDES: dict[str, Side] = {
    "tesserec": partial(tesserec, precision="bfloat16"),
    "plain": partial(plain, precision="float32"),
    "tesserec_float32": partial(tesserec, precision="float32"),
    "plain_bfloat16": partial(plain, precision="bfloat16"),
}

ONLY_SHOWN = ("tesserec_float32", "plain_bfloat16")
"""No figure is a ratio to these, which tell what the type of the products is worth by itself: one round is enough."""


def save(rounds: list[dict[str, dict[str, float]]]) -> None:
    """One line a figure."""
    runs = {side: [found[side] for found in rounds if side in found] for side in SIDES}
    beside = "; ".join(
        f"{side} {statistics.median(r['items_per_s'] for r in found):,.0f} items/s, "
        f"{statistics.median(r['error'] for r in found):.4f} of the variance left over, "
        f"peak {max(r['rss_bytes'] for r in found) / 2**20:,.0f} MiB, n = {len(found)}"
        for side, found in runs.items()
    )
    for name, quantity in (("vs_plain", "items_per_s"), ("error_vs_plain", "error")):
        values = [found["tesserec"][quantity] / found["plain"][quantity] for found in rounds]
        record(
            f"sids.rq_vae.{name}",
            statistics.median(values),
            "ratio",
            low=min(values),
            high=max(values),
            n=len(values),
            against=AGAINST,
            dataset=DATASET,
            protocol=f"{PROTOCOL}; {beside}",
            seeds=range(len(rounds)),
            peak_rss_bytes=int(max(run["rss_bytes"] for run in runs["tesserec"])),
        )


if __name__ == "__main__":
    main()
