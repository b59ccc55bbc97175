"""The network of an RQ-VAE and its training: what every tokenizer with an encoder shares.

Dimensions: N items · B batch · M other items · D features · Z latent features · L levels · C codes of a level.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.errors import DataError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.assigners import Assigner, assign
from tesserec.semantic_ids.composition import LevelTransform, LossRecord, LossSetup, Quantized, QuantizerLoss
from tesserec.semantic_ids.sources import SourceDecoder, SourceEncoder, layers, presence
from tesserec.types import SideInformation

if TYPE_CHECKING:
    from tesserec.semantic_ids.rq_vae import RQVAETraining

__all__ = ["Alarm", "Network", "StepLoss", "loss_modules", "move_unused", "revive", "step_without_codebooks", "train"]

StepLoss = Callable[[Tensor, int], tuple[Tensor, LossRecord]]
"""(loss, record) of the rows of a batch, int64 [B], at a step."""

_START_POINTS_PER_CODE = 64
_ASSIGNED_AT_ONCE = 1 << 16
_NUMBERS_AT_ONCE = 1 << 26
_STEPS_BETWEEN_REPORTS = 50


class Network(nn.Module):
    """Encoder, decoder, codebooks and the scaling of the features."""

    mean: Tensor
    scale: Tensor

    def __init__(  # noqa: PLR0917  # what the layers are made of
        self,
        num_features: int,
        hidden_sizes: Sequence[int],
        num_latents: int,
        sizes: Sequence[int],
        assigners: Sequence[Assigner] = (),
        source_widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.assigners = tuple(assigners)
        self.source_widths = tuple(source_widths) if len(source_widths) > 1 else ()  # one source is the plain encoder
        self.hidden_sizes, self.num_latents = tuple(hidden_sizes), num_latents
        self.low_precision = False  # whether encoder and decoder multiply in bfloat16
        widths = [num_features, *hidden_sizes, num_latents]
        several = bool(self.source_widths)
        self.encoder = SourceEncoder(self.source_widths, hidden_sizes, num_latents) if several else layers(widths)
        self.decoder = SourceDecoder(self.source_widths, hidden_sizes, num_latents) if several else layers(widths[::-1])
        self.codebooks = nn.ParameterList([torch.zeros(size, num_latents) for size in sizes])
        self.transforms = nn.ModuleList()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features if several else ()))
        for level in range(len(self.assigners)):
            self.register_buffer(f"offsets_{level}", torch.zeros(sizes[level]))

    def latents(self, features_BD: Tensor) -> Tensor:
        """Latents [B, Z] of features."""
        return self._encoded(self.inputs(features_BD), features_BD)

    def _encoded(self, inputs_BD: Tensor, features_BD: Tensor) -> Tensor:
        present = (presence(features_BD, self.source_widths),) if self.source_widths else ()
        with self._products():
            latents_BZ: Tensor = self.encoder(inputs_BD, *present)
        return latents_BZ.float()

    def decoded(self, latents_BZ: Tensor) -> Tensor:
        """Features [B, D] of latents, centred and scaled as ``inputs`` are."""
        with self._products():
            features_BD: Tensor = self.decoder(latents_BZ)
        return features_BD.float()

    def _products(self) -> torch.autocast:
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.low_precision)

    def latents_in_parts(self, features_ND: Tensor, size: int) -> Tensor:
        """``latents`` of many rows, [N, Z], worked out for ``size`` rows at once."""
        return torch.cat([self.latents(part) for part in torch.split(features_ND, size)])

    def inputs(self, features_BD: Tensor) -> Tensor:
        """Features, centred and scaled; zero where a source is missing."""
        inputs_BD = (features_BD - self.mean).div_(self.scale)
        return inputs_BD * self._present(features_BD) if self.source_widths else inputs_BD

    def _present(self, features_BD: Tensor) -> Tensor:
        """Which features are of a source that the item has, [B, D] bool."""
        widths = torch.tensor(self.source_widths, device=features_BD.device)
        return torch.repeat_interleave(presence(features_BD, self.source_widths), widths, dim=1)

    def reconstructed(self, latents_BZ: Tensor) -> Tensor:
        """Features [B, D] of latents."""
        return self.decoded(latents_BZ) * self.scale + self.mean

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
        if not self.assigners:
            return residual.nearest(rest_BZ, vectors_CZ)
        found_C = self.assigners[level].offsets(rest_BZ, vectors_CZ) if self.training else self._offsets(level)
        return assign(rest_BZ, vectors_CZ, found_C)

    def _offsets(self, level: int) -> Tensor:
        return self.get_buffer(f"offsets_{level}")

    @torch.no_grad()
    def start(self, features_ND: Tensor, sizes: Sequence[int], seed: int, generator: torch.Generator) -> None:
        """Set the scaling, and each codebook to k-means centroids of what the levels before left over."""
        self.set_scaling(features_ND)
        order = torch.randperm(len(features_ND), generator=generator)[: _START_POINTS_PER_CODE * max(sizes)]
        rest_BZ = self.latents(features_ND[order.to(features_ND.device)])
        for level, size in enumerate(sizes):
            found_CZ = residual.k_means(rest_BZ.cpu(), size, seed + level).to(rest_BZ.device)
            self.codebooks[level] = nn.Parameter(found_CZ)
            rest_BZ = rest_BZ - found_CZ[residual.nearest(rest_BZ, found_CZ)]

    @torch.no_grad()
    def set_scaling(self, features_ND: Tensor) -> None:
        """Mean and scale of the features, of each source by itself where there are several."""
        if not self.source_widths:
            self.mean.copy_(features_ND.mean(0))
            self.scale.copy_(_spread(features_ND, self.mean))
            return
        start = 0
        for width in self.source_widths:
            block_ND = features_ND[:, start : start + width]
            block_ND = block_ND[block_ND.any(1)]
            if not len(block_ND):
                raise DataError(f"no item has the source of columns {start} to {start + width - 1}: leave it out")
            mean = block_ND.mean(0)
            self.mean[start : start + width] = mean
            self.scale[start : start + width] = _spread(block_ND, mean)
            start += width

    def write_by(self, transform: LevelTransform) -> None:
        """From now on, a level's code vectors are what ``transform`` makes of its codebook."""
        self.transforms = nn.ModuleList([transform.level(c).to(c.device) for c in self.codebooks])

    @torch.no_grad()
    def finish(self, features_ND: Tensor, generator: torch.Generator) -> None:
        """Keep what encoding needs: code vectors as they stand, and the offsets of the assigners."""
        for level, codebook_CZ in enumerate(self.codebooks):
            codebook_CZ.copy_(self.vectors(level))
        self.transforms = nn.ModuleList()
        if not self.assigners:
            return
        self.eval()
        order = torch.randperm(len(features_ND), generator=generator)[:_ASSIGNED_AT_ONCE]
        rest_BZ = self.latents(features_ND[order.to(features_ND.device)])
        for level, assigner in enumerate(self.assigners):
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
        loss, inputs_BD, reconstruction_BD, quantized = self._plain_loss(features_BD, commitment_weight, depth_B)

        def quantize(others_MD: Tensor) -> Quantized:
            return self.quantize(self.latents(others_MD))

        def loss_of(others_MD: Tensor) -> tuple[Tensor, Quantized]:
            found, _, _, others = self._plain_loss(others_MD, commitment_weight)
            return found, others

        vectors = tuple(self.vectors(level) for level in range(len(self.codebooks)))
        ways = quantize, self.quantize, loss_of
        return loss, LossRecord(rows_B, inputs_BD, reconstruction_BD, quantized, vectors, *ways, step)

    def _plain_loss(
        self, features_BD: Tensor, commitment_weight: float, depth_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Quantized]:
        """Mean loss, inputs, their reconstruction and their way through the levels."""
        inputs_BD = self.inputs(features_BD)
        quantized = self.quantize(self._encoded(inputs_BD, features_BD))
        quantization_B = torch.zeros(len(features_BD), device=features_BD.device)
        for codes_B, latents_B in zip(quantized.code_errors, quantized.latent_errors, strict=True):
            quantization_B = quantization_B + codes_B
            quantization_B = quantization_B + commitment_weight * latents_B
        reconstruction_BD = self.decoded(quantized.straight_through(depth_B))
        compared_BD = reconstruction_BD * self._present(features_BD) if self.source_widths else reconstruction_BD
        error = F.mse_loss(compared_BD, inputs_BD, reduction="sum") / len(features_BD)
        return error + quantization_B.mean(), inputs_BD, reconstruction_BD, quantized


def _spread(features_ND: Tensor, mean_D: Tensor) -> Tensor:
    """Root mean squared distance from the mean, a scalar above zero; of so many rows at once that little is held."""
    parts = torch.split(features_ND, max(1, _NUMBERS_AT_ONCE // features_ND.shape[1]))
    mean = sum((part - mean_D).square().mean() * (len(part) / len(features_ND)) for part in parts)
    return torch.as_tensor(mean).sqrt().clamp(min=1e-8)


class Alarm:
    """Watches how evenly each level's codes are taken, and says once where that falls too low."""

    def __init__(self, sizes: Sequence[int], share: float) -> None:
        self._counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]
        self._share = share
        self._told: set[int] = set()
        self.collapsed: dict[int, str] = {}
        """What there was to say of each level when it was last looked at, by its number from 1."""

    def count(self, codes_BL: Tensor) -> None:
        """Add the codes of a batch."""
        for level, counts_C in enumerate(self._counts):
            counts_C.add_(torch.bincount(codes_BL[:, level].cpu(), minlength=len(counts_C)))

    def note(self) -> str:
        """What to say of the batches since the last time, "" where all is well or was said before."""
        said = ""
        for level, counts_C in enumerate(self._counts, 1):
            if counts_C.sum() < len(counts_C):
                continue  # too few to tell: looked at with those that follow
            share_C = counts_C / counts_C.sum()
            perplexity = float(torch.special.entr(share_C).sum().exp())
            counts_C.zero_()
            self.collapsed.pop(level, None)
            if perplexity < self._share * len(counts_C):
                words = f"level {level} has collapsed: perplexity {perplexity:.1f} of {len(counts_C)} codes"
                self.collapsed[level] = words
                said += f"; {words}" * (level not in self._told)
                self._told.add(level)
        return said


def _optimizer(network: Network, losses: Sequence[nn.Module], training: "RQVAETraining") -> torch.optim.Optimizer:
    weights = [*network.encoder.parameters(), *network.decoder.parameters()]
    tables = [part.weight for module in losses for part in module.modules() if isinstance(part, nn.Embedding)]
    known = {id(table) for table in tables}
    weights += [weight for module in losses for weight in module.parameters() if id(weight) not in known]
    codes = [*network.codebooks, *network.transforms.parameters()]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": codes, "weight_decay": 0.0}]
    if tables:  # of many rows: ten passes over them would be most of a step
        groups.append({"params": tables, "fused": True})
    return torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)


def revive(
    network: Network,
    optimizer: torch.optim.Optimizer,
    used: list[Tensor],
    residuals: list[Tensor],
    generator: torch.Generator,
) -> None:
    """Move the codes that were not used to residuals of the batch, without momentum, and start counting anew."""
    for codebook_CZ, dead in zip(network.codebooks, move_unused(network, used, residuals, generator), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[codebook_CZ][moment][dead] = 0


@torch.no_grad()
def move_unused(
    network: Network, used: list[Tensor], residuals: list[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """The codes of each level that were not used, which are at residuals of the batch from now on; counts anew."""
    moved = []
    for level, (codebook_CZ, used_C, residual_BZ) in enumerate(zip(network.codebooks, used, residuals, strict=True)):
        dead = (~used_C).nonzero().squeeze(1)
        rows = torch.randint(len(residual_BZ), (len(dead),), generator=generator).to(dead.device)
        moved_BZ = residual_BZ[rows]
        if len(network.transforms):
            moved_BZ = network.transforms[level].pull_back(moved_BZ)  # type: ignore[operator]  # a TransformModule
        codebook_CZ[dead] = moved_BZ
        used_C.zero_()
        moved.append(dead)
    return moved


def loss_modules(
    losses: Sequence[QuantizerLoss], network: Network, features_ND: Tensor, side: SideInformation
) -> list[tuple[float, nn.Module]]:
    """Weight and module of every loss that has a weight, a weight being one beside an error summed over the features.

    The error of codes that say nothing of the vectors is then the number of features, where a ``QuantizerLoss`` counts
    it as 1.
    """
    sizes, num_latents = tuple(len(c) for c in network.codebooks), network.num_latents
    found = []
    for number, loss in enumerate(losses, 1):
        if loss.weight:
            generator = torch.Generator().manual_seed(side.seed + number)
            setup = LossSetup(features_ND, num_latents, sizes, side, generator, network.hidden_sizes)
            module = loss.module(setup)
            found.append((loss.weight * features_ND.shape[1], module.to(side.device)))
    return found


def step_without_codebooks(
    network: Network,
    features_ND: Tensor,
    levels: Callable[[Tensor], Quantized],
    seen: Callable[[Quantized], Tensor],
) -> StepLoss:
    """The error of reconstruction; ``levels`` is the way of latents [B, Z], of which the decoder gets ``seen``."""

    def way(features_BD: Tensor) -> Quantized:
        return levels(network.latents(features_BD))

    def plain(features_BD: Tensor) -> tuple[Tensor, Tensor, Tensor, Quantized]:
        inputs_BD, quantized = network.inputs(features_BD), way(features_BD)
        reconstruction_BD = network.decoded(seen(quantized))
        error = (reconstruction_BD - inputs_BD).square().sum(1).mean()
        return error, inputs_BD, reconstruction_BD, quantized

    def loss_of(features_BD: Tensor) -> tuple[Tensor, Quantized]:
        error, _, _, quantized = plain(features_BD)
        return error, quantized

    def loss(rows_B: Tensor, step: int) -> tuple[Tensor, LossRecord]:
        error, inputs_BD, reconstruction_BD, quantized = plain(features_ND[rows_B])
        ways = way, levels, loss_of
        return error, LossRecord(rows_B, inputs_BD, reconstruction_BD, quantized, (), *ways, step)

    return loss


def train(  # noqa: PLR0917  # one loop
    network: Network,
    step_loss: StepLoss,
    losses: Sequence[tuple[float, nn.Module]],
    num_rows: int,
    training: "RQVAETraining",
    generator: torch.Generator,
    side: SideInformation,
    task: str = "RQ-VAE",
) -> None:
    """AdamW on ``step_loss`` and the weighted ``losses``, in batches drawn from ``num_rows`` rows with replacement.

    Afterwards the network is one of float32, whatever its training was.
    """
    optimizer = _optimizer(network, [module for _, module in losses], training)
    used = [torch.zeros(len(c), dtype=torch.bool, device=side.device) for c in network.codebooks]
    alarm, last = Alarm([len(c) for c in network.codebooks], training.collapse_share), training.num_steps
    network.low_precision = training.precision == "bfloat16"
    for step in range(1, last + 1):
        rows_B = torch.randint(num_rows, (training.batch_size,), generator=generator).to(side.device)
        loss, record = step_loss(rows_B, step)
        for weight, module in losses:
            loss = loss + weight * module(record)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        for level, used_C in enumerate(used):
            used_C[record.quantized.codes_BL[:, level]] = True
        alarm.count(record.quantized.codes_BL)
        # a code revived later would stay raw
        if used and step % training.revive_every == 0 and step + training.revive_every <= last:
            revive(network, optimizer, used, [r.detach() for r in record.quantized.residuals], generator)
        if step % _STEPS_BETWEEN_REPORTS == 0 or step == last:
            side.progress(task, step, last, f"loss {loss.item():.4f}{alarm.note()}")
    network.low_precision = False
    if alarm.collapsed:
        warnings.warn(
            f"{task}: {'; '.join(alarm.collapsed.values())}; many items will share their codes: give further losses "
            "less weight, train for more steps, or take fewer codes",
            stacklevel=4,
        )
