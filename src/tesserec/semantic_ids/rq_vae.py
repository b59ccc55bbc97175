"""RQ-VAE: an autoencoder whose bottleneck is a residual quantizer.

Paper: TIGER, https://arxiv.org/abs/2305.05065 (as an item tokenizer); Lee et al. 2022, https://arxiv.org/abs/2203.01941
Adds: codes of a learned, non-linear projection, trained to reconstruct the vector.
Differs: AdamW at 1e-3 for thousands of steps (TIGER: Adagrad at 0.4 for 20,000 epochs), which takes minutes on a CPU;
    inputs are centred and scaled; the k-means start sees a sample of 64 points a code, more than the first batch has;
    codes unused for a while are moved to residuals of the batch (Lee et al. do so, TIGER does not say).
Checked: tests/semantic_ids/test_rq_vae.py (brute force over codes in latent space; the loss by hand; planted tree);
    tests/semantic_ids/test_composition.py (parts and losses of strength zero change no bit; sources; depths).

A published tokenizer is an ``RQVAE`` with other ``parts`` or with ``losses`` (``composition.py`` has their protocols).
Dimensions: N items · B batch · D features · M sources · Z latent features · L levels · C codes of a level.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError, NotFittedError, RecipeError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.assigners import Assigner, assign
from tesserec.semantic_ids.composition import LevelTransform, LossRecord, LossSetup, Quantized, QuantizerLoss
from tesserec.semantic_ids.sources import SourceDecoder, SourceEncoder, check_widths, layers, presence
from tesserec.types import ComponentState, SideInformation

__all__ = ["RQVAE", "RQVAEParts", "RQVAETraining"]

_START_POINTS_PER_CODE = 64
_ASSIGNED_AT_ONCE = 1 << 16
_STEPS_BETWEEN_REPORTS = 50
Width = Annotated[int, Field(gt=0)]


@component
class RQVAETraining:
    """How an RQ-VAE is trained."""

    num_steps: Annotated[int, Field(gt=0)] = 3000
    """Batches."""
    batch_size: Annotated[int, Field(gt=0)] = 1024
    """Items a batch, drawn with replacement."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of AdamW, on encoder and decoder; code vectors are not decayed."""
    revive_every: Annotated[int, Field(gt=0)] = 100
    """Steps after which a code that no item took since the last time is moved to where items are."""
    collapse_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of its codebook below which the perplexity of a level raises the alarm: one note in the progress."""


@component
class RQVAEParts:
    """What an RQ-VAE is put together from; by default the plain one."""

    assigners: tuple[Assigner, ...] = ()
    """How each level takes its codes, one a level; all take the nearest where there are none."""
    transform: LevelTransform | None = None
    """Another way to write the code vectors of a level."""
    depth_masking: bool = False
    """Whether each item of a batch is reconstructed from its first levels only, as many as chance says (PLUM)."""
    source_widths: tuple[Width, ...] = ()
    """Features of each source where there are several: each gets its own encoder and decoder (PLUM).

    A source whose features are all zero is one that the item lacks: it is neither read nor reconstructed.
    """


@component
class RQVAE:
    """Code tuples of vectors by an autoencoder with a residual quantizer inside.

    As in ``ResidualKMeans``, a level whose first residuals take fewer distinct values than its codebook size gets one
    code for each value.
    """

    num_levels: Annotated[int, Field(gt=0)] = 3
    """Codes of an item, before the collision digit."""
    codebook_size: residual.CodebookSize = 256
    """Codes at each level: one number for all, or one a level."""
    hidden_sizes: tuple[Width, ...] = (512, 256, 128)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    num_latents: Width = 32
    """Features of a code vector."""
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    """β: pull of the latents towards their code, against that of the code towards its latents."""
    training: RQVAETraining = Field(default_factory=RQVAETraining)
    """How it is trained."""
    parts: RQVAEParts = Field(default_factory=RQVAEParts)
    """What it is put together from."""
    losses: tuple[QuantizerLoss, ...] = ()
    """Further terms of the loss."""

    def __post_init__(self) -> None:
        self._sizes = residual.level_sizes(self.num_levels, self.codebook_size)
        if self.parts.assigners and len(self.parts.assigners) != self.num_levels:
            raise RecipeError(f"{len(self.parts.assigners)} assigners for {self.num_levels} levels: give one a level")
        self._network: _Network | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level: as configured before ``fit``, as found after it."""
        return self._sizes if self._network is None else tuple(len(c) for c in self._network.codebooks)

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn networks and codebooks from ``features_ND`` [N, D]; same seed, same result.

        Raises ``DataError`` where features are empty or not finite.
        """
        features_ND = residual.check_features(features_ND).to(side.device)
        check_widths(self.parts.source_widths, features_ND.shape[1])
        generator = torch.Generator().manual_seed(side.seed)
        with torch.random.fork_rng(devices=[]):  # layers draw their start from the global generator
            torch.manual_seed(side.seed)
            network = self._new(features_ND.shape[1], self._sizes).to(side.device)
            network.start(features_ND, self._sizes, side.seed, generator)
            losses = self._losses(network, features_ND, side)
            if self.parts.transform is not None:
                network.write_by(self.parts.transform)
        self._train(network, losses, features_ND, generator, side)
        network.finish(features_ND, generator)
        self._network = network.cpu().eval().requires_grad_(False)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the nearest of its level to what the levels before left of the latents."""
        network = self._fitted()
        features_ND = residual.check_features(features_ND, len(network.mean))
        parts = [network.latents(part) for part in torch.split(features_ND, self.training.batch_size)]
        return network.quantize(torch.cat(parts)).codes_BL

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Reconstructed features [N, D]; codes of fewer levels reconstruct from that prefix."""
        network = self._fitted()
        return network.reconstructed(residual.decode(codes_NL, list(network.codebooks)))

    def state(self) -> ComponentState:
        """Both networks, the codebooks, and mean and scale of the features."""
        return ComponentState(dict(self._fitted().state_dict()))

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        sizes = [len(state.tensors[f"codebooks.{level}"]) for level in range(self.num_levels)]
        network = self._new(len(state.tensors["mean"]), sizes)
        network.load_state_dict(dict(state.tensors))
        self._network = network.eval().requires_grad_(False)

    def _fitted(self) -> "_Network":
        if self._network is None:
            raise NotFittedError("RQVAE has no codebooks yet: call fit or restore first")
        return self._network

    def _new(self, num_features: int, sizes: Sequence[int]) -> "_Network":
        return _Network(num_features, self.hidden_sizes, self.num_latents, sizes, self.parts)

    def _losses(self, network: "_Network", features_ND: Tensor, side: SideInformation) -> list[tuple[float, nn.Module]]:
        """Weight and module of every loss that has a weight."""
        found = []
        for number, loss in enumerate(self.losses, 1):
            if loss.weight:
                sizes = tuple(len(c) for c in network.codebooks)
                generator = torch.Generator().manual_seed(side.seed + number)
                module = loss.module(LossSetup(features_ND, self.num_latents, sizes, side, generator))
                found.append((loss.weight, module.to(side.device)))
        return found

    def _train(
        self,
        network: "_Network",
        losses: Sequence[tuple[float, nn.Module]],
        features_ND: Tensor,
        generator: torch.Generator,
        side: SideInformation,
    ) -> None:
        t = self.training
        optimizer = _optimizer(network, [module for _, module in losses], t)
        depths = torch.Generator().manual_seed(side.seed)
        used = [torch.zeros(len(c), dtype=torch.bool, device=side.device) for c in network.codebooks]
        alarm = _Alarm([len(c) for c in network.codebooks], t.collapse_share)
        for step in range(1, t.num_steps + 1):
            rows_B = torch.randint(len(features_ND), (t.batch_size,), generator=generator).to(side.device)
            depth_B = None
            if self.parts.depth_masking:
                depth_B = torch.randint(1, self.num_levels + 1, (t.batch_size,), generator=depths).to(side.device)
            loss, record = network.loss(features_ND[rows_B], self.commitment_weight, rows_B, depth_B, step)
            for weight, module in losses:
                loss = loss + weight * module(record)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            for level, used_C in enumerate(used):
                used_C[record.quantized.codes_BL[:, level]] = True
            alarm.count(record.quantized.codes_BL)
            if (
                step % t.revive_every == 0 and step + t.revive_every <= t.num_steps
            ):  # a code revived later would stay raw
                _revive(network, optimizer, used, [r.detach() for r in record.quantized.residuals], generator)
            if step % _STEPS_BETWEEN_REPORTS == 0 or step == t.num_steps:
                side.progress("RQ-VAE", step, t.num_steps, f"loss {loss.item():.4f}{alarm.note()}")


class _Network(nn.Module):
    """Encoder, decoder, codebooks and the scaling of the features."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        num_features: int,
        hidden_sizes: Sequence[int],
        num_latents: int,
        sizes: Sequence[int],
        parts: RQVAEParts | None = None,
    ) -> None:
        super().__init__()
        self.parts = RQVAEParts() if parts is None else parts
        # one source is the plain encoder
        self.source_widths = self.parts.source_widths if len(self.parts.source_widths) > 1 else ()
        widths = [num_features, *hidden_sizes, num_latents]
        several = bool(self.source_widths)
        self.encoder = SourceEncoder(self.source_widths, hidden_sizes, num_latents) if several else layers(widths)
        self.decoder = SourceDecoder(self.source_widths, hidden_sizes, num_latents) if several else layers(widths[::-1])
        self.codebooks = nn.ParameterList([torch.zeros(size, num_latents) for size in sizes])
        self.transforms = nn.ModuleList()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features if several else ()))
        for level in range(len(self.parts.assigners)):
            self.register_buffer(f"offsets_{level}", torch.zeros(sizes[level]))

    def latents(self, features_BD: Tensor) -> Tensor:
        """Latents [B, Z] of features."""
        inputs_BD = self.inputs(features_BD)
        present = (presence(features_BD, self.source_widths),) if self.source_widths else ()
        latents_BZ: Tensor = self.encoder(inputs_BD, *present)
        return latents_BZ

    def inputs(self, features_BD: Tensor) -> Tensor:
        """Features, centred and scaled; zero where a source is missing."""
        inputs_BD = (features_BD - self.mean) / self.scale
        return inputs_BD * self._present(features_BD) if self.source_widths else inputs_BD

    def _present(self, features_BD: Tensor) -> Tensor:
        """Which features are of a source that the item has, [B, D] bool."""
        widths = torch.tensor(self.source_widths, device=features_BD.device)
        return torch.repeat_interleave(presence(features_BD, self.source_widths), widths, dim=1)

    def reconstructed(self, latents_BZ: Tensor) -> Tensor:
        """Features [B, D] of latents."""
        features_BD: Tensor = self.decoder(latents_BZ) * self.scale + self.mean
        return features_BD

    def vectors(self, level: int) -> Tensor:
        """Code vectors [C, Z] of a level."""
        codebook_CZ: Tensor = self.codebooks[level]
        return self.transforms[level](codebook_CZ) if len(self.transforms) else codebook_CZ

    def quantize(self, latents_BZ: Tensor) -> Quantized:
        """The way of latents through the levels."""
        rest_BZ, codes, residuals, chosen, code_errors, latent_errors = latents_BZ, [], [], [], [], []
        for level in range(len(self.codebooks)):
            vectors_CZ = self.vectors(level)
            residuals.append(rest_BZ)
            codes.append(self._assigned(level, rest_BZ.detach(), vectors_CZ.detach()))
            chosen.append(vectors_CZ[codes[-1]])
            code_errors.append((rest_BZ.detach() - chosen[-1]).square().sum(1))
            latent_errors.append((rest_BZ - chosen[-1].detach()).square().sum(1))
            rest_BZ = rest_BZ - chosen[-1].detach()
        errors = tuple(code_errors), tuple(latent_errors)
        return Quantized(latents_BZ, tuple(residuals), tuple(chosen), torch.stack(codes, 1), *errors)

    def _assigned(self, level: int, rest_BZ: Tensor, vectors_CZ: Tensor) -> Tensor:
        if not self.parts.assigners:
            return residual.nearest(rest_BZ, vectors_CZ)
        found_C = self.parts.assigners[level].offsets(rest_BZ, vectors_CZ) if self.training else self._offsets(level)
        return assign(rest_BZ, vectors_CZ, found_C)

    def _offsets(self, level: int) -> Tensor:
        return self.get_buffer(f"offsets_{level}")

    @torch.no_grad()
    def start(self, features_ND: Tensor, sizes: Sequence[int], seed: int, generator: torch.Generator) -> None:
        """Set the scaling, and each codebook to k-means centroids of what the levels before left over."""
        self._set_scaling(features_ND)
        order = torch.randperm(len(features_ND), generator=generator)[: _START_POINTS_PER_CODE * max(sizes)]
        rest_BZ = self.latents(features_ND[order.to(features_ND.device)])
        for level, size in enumerate(sizes):
            found_CZ = residual.k_means(rest_BZ.cpu(), size, seed + level).to(rest_BZ.device)
            self.codebooks[level] = nn.Parameter(found_CZ)
            rest_BZ = rest_BZ - found_CZ[residual.nearest(rest_BZ, found_CZ)]

    def _set_scaling(self, features_ND: Tensor) -> None:
        if not self.source_widths:
            self.mean.copy_(features_ND.mean(0))
            self.scale.copy_((features_ND - self.mean).square().mean().sqrt().clamp(min=1e-8))
            return
        start = 0
        for width in self.source_widths:
            block_ND = features_ND[:, start : start + width]
            block_ND = block_ND[block_ND.any(1)]
            if not len(block_ND):
                raise DataError(f"no item has the source of columns {start} to {start + width - 1}: leave it out")
            mean = block_ND.mean(0)
            self.mean[start : start + width] = mean
            self.scale[start : start + width] = (block_ND - mean).square().mean().sqrt().clamp(min=1e-8)
            start += width

    def write_by(self, transform: LevelTransform) -> None:
        """From now on, a level's code vectors are what ``transform`` makes of its codebook."""
        self.transforms = nn.ModuleList([transform.level(c.shape[1]).to(c.device) for c in self.codebooks])

    @torch.no_grad()
    def finish(self, features_ND: Tensor, generator: torch.Generator) -> None:
        """Keep what encoding needs: code vectors as they stand, and the offsets of the assigners."""
        for level, codebook_CZ in enumerate(self.codebooks):
            codebook_CZ.copy_(self.vectors(level))
        self.transforms = nn.ModuleList()
        if not self.parts.assigners:
            return
        self.eval()
        order = torch.randperm(len(features_ND), generator=generator)[:_ASSIGNED_AT_ONCE]
        rest_BZ = self.latents(features_ND[order.to(features_ND.device)])
        for level, assigner in enumerate(self.parts.assigners):
            vectors_CZ = self.vectors(level)
            self.register_buffer(f"offsets_{level}", assigner.offsets(rest_BZ, vectors_CZ))
            rest_BZ = rest_BZ - vectors_CZ[self._assigned(level, rest_BZ, vectors_CZ)]

    def loss(
        self,
        features_BD: Tensor,
        commitment_weight: float,
        rows_B: Tensor,
        depth_B: Tensor | None = None,
        step: int = 1,
    ) -> tuple[Tensor, LossRecord]:
        """(mean loss of the batch, its record); ``depth_B`` levels of each item reconstruct it, all where None."""
        inputs_BD = self.inputs(features_BD)
        quantized = self.quantize(self.latents(features_BD))
        quantization_B = torch.zeros(len(features_BD), device=features_BD.device)
        for codes_B, latents_B in zip(quantized.code_errors, quantized.latent_errors, strict=True):
            quantization_B = quantization_B + codes_B
            quantization_B = quantization_B + commitment_weight * latents_B
        reconstruction_BD = self.decoder(quantized.straight_through(depth_B))
        error_BD = reconstruction_BD - inputs_BD
        if self.source_widths:
            error_BD = error_BD * self._present(features_BD)
        loss = (error_BD.square().sum(1) + quantization_B).mean()
        for transform in self.transforms:
            loss = loss + transform.penalty()  # type: ignore[operator]  # a TransformModule
        vectors = tuple(self.vectors(level) for level in range(len(self.codebooks)))
        way = lambda features_MD: self.quantize(self.latents(features_MD))  # noqa: E731
        return loss, LossRecord(rows_B, inputs_BD, reconstruction_BD, quantized, vectors, way, step)


class _Alarm:
    """Watches how evenly each level's codes are taken, and says once where that falls too low."""

    def __init__(self, sizes: Sequence[int], share: float) -> None:
        self._counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]
        self._share = share
        self._told: set[int] = set()

    def count(self, codes_BL: Tensor) -> None:
        """Add the codes of a batch."""
        for level, counts_C in enumerate(self._counts):
            counts_C.add_(torch.bincount(codes_BL[:, level].cpu(), minlength=len(counts_C)))

    def note(self) -> str:
        """What to say of the batches since the last time, "" where all is well or was said before."""
        said = ""
        for level, counts_C in enumerate(self._counts):
            share_C = counts_C / counts_C.sum()
            perplexity = float(torch.special.entr(share_C).sum().exp())
            counts_C.zero_()
            if perplexity < self._share * len(counts_C) and level not in self._told:
                self._told.add(level)
                said += f"; level {level} has collapsed: perplexity {perplexity:.1f} of {len(counts_C)} codes"
        return said


def _optimizer(network: _Network, losses: Sequence[nn.Module], training: RQVAETraining) -> torch.optim.Optimizer:
    weights = [*network.encoder.parameters(), *network.decoder.parameters()]
    weights += [parameter for module in losses for parameter in module.parameters()]
    codes = [*network.codebooks, *network.transforms.parameters()]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": codes, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)


@torch.no_grad()
def _revive(
    network: _Network,
    optimizer: torch.optim.Optimizer,
    used: list[Tensor],
    residuals: list[Tensor],
    generator: torch.Generator,
) -> None:
    """Move the codes that were not used to residuals of the batch, without momentum, and start counting anew."""
    for level, (codebook_CZ, used_C, residual_BZ) in enumerate(zip(network.codebooks, used, residuals, strict=True)):
        dead = (~used_C).nonzero().squeeze(1)
        rows = torch.randint(len(residual_BZ), (len(dead),), generator=generator).to(dead.device)
        moved_BZ = residual_BZ[rows]
        if len(network.transforms):
            moved_BZ = network.transforms[level].pull_back(moved_BZ)  # type: ignore[operator]  # a TransformModule
        codebook_CZ[dead] = moved_BZ
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[codebook_CZ][moment][dead] = 0
        used_C.zero_()
