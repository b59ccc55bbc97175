"""RQ-VAE: an autoencoder whose bottleneck is a residual quantizer.

Paper: TIGER, https://arxiv.org/abs/2305.05065 (as an item tokenizer); Lee et al. 2022, https://arxiv.org/abs/2203.01941
Adds: codes of a learned, non-linear projection, trained to reconstruct the vector.
Differs: AdamW at 1e-3 for thousands of steps (TIGER: Adagrad at 0.4 for 20,000 epochs), which takes minutes on a CPU;
    inputs are centred and scaled; the k-means start sees a sample of 64 points a code, more than the first batch has;
    codes unused for a while are moved to residuals of the batch (Lee et al. do so, TIGER does not say).
Checked: tests/semantic_ids/test_rq_vae.py (brute force over codes in latent space; the loss by hand; planted tree).

Dimensions: N items · B batch · D features · Z latent features · L levels · C codes of a level.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import NotFittedError
from tesserec.semantic_ids import residual
from tesserec.types import ComponentState, SideInformation

__all__ = ["RQVAE", "RQVAETraining"]

_START_POINTS_PER_CODE = 64
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

    def __post_init__(self) -> None:
        self._sizes = residual.level_sizes(self.num_levels, self.codebook_size)
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
        generator = torch.Generator().manual_seed(side.seed)
        with torch.random.fork_rng(devices=[]):  # layers draw their start from the global generator
            torch.manual_seed(side.seed)
            network = _Network(features_ND.shape[1], self.hidden_sizes, self.num_latents, self._sizes)
        network = network.to(side.device)
        network.start(features_ND, self._sizes, side.seed, generator)
        self._train(network, features_ND, generator, side)
        self._network = network.cpu().eval().requires_grad_(False)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the nearest of its level to what the levels before left of the latents."""
        network = self._fitted()
        features_ND = residual.check_features(features_ND, len(network.mean))
        parts = [network.latents(part) for part in torch.split(features_ND, self.training.batch_size)]
        return residual.encode(torch.cat(parts), list(network.codebooks))

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
        network = _Network(len(state.tensors["mean"]), self.hidden_sizes, self.num_latents, sizes)
        network.load_state_dict(dict(state.tensors))
        self._network = network.eval().requires_grad_(False)

    def _fitted(self) -> "_Network":
        if self._network is None:
            raise NotFittedError("RQVAE has no codebooks yet: call fit or restore first")
        return self._network

    def _train(
        self, network: "_Network", features_ND: Tensor, generator: torch.Generator, side: SideInformation
    ) -> None:
        t = self.training
        layers = [*network.encoder.parameters(), *network.decoder.parameters()]
        groups: list[dict[str, Any]] = [{"params": layers}, {"params": list(network.codebooks), "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=t.learning_rate, weight_decay=t.weight_decay)
        used = [torch.zeros(len(c), dtype=torch.bool, device=side.device) for c in network.codebooks]
        for step in range(1, t.num_steps + 1):
            rows = torch.randint(len(features_ND), (t.batch_size,), generator=generator).to(side.device)
            loss, codes_BL, residuals = network.loss(features_ND[rows], self.commitment_weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            for level, used_C in enumerate(used):
                used_C[codes_BL[:, level]] = True
            if (
                step % t.revive_every == 0 and step + t.revive_every <= t.num_steps
            ):  # a code revived later would stay raw
                _revive(network, optimizer, used, residuals, generator)
            if step % _STEPS_BETWEEN_REPORTS == 0 or step == t.num_steps:
                side.progress("RQ-VAE", step, t.num_steps, f"loss {loss.item():.4f}")


class _Network(nn.Module):
    """Encoder, decoder, codebooks and the scaling of the features."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int, hidden_sizes: Sequence[int], num_latents: int, sizes: Sequence[int]) -> None:
        super().__init__()
        widths = [num_features, *hidden_sizes, num_latents]
        self.encoder = _layers(widths)
        self.decoder = _layers(widths[::-1])
        self.codebooks = nn.ParameterList([torch.zeros(size, num_latents) for size in sizes])
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(()))

    def latents(self, features_BD: Tensor) -> Tensor:
        """Latents [B, Z] of features."""
        latents_BZ: Tensor = self.encoder((features_BD - self.mean) / self.scale)
        return latents_BZ

    def reconstructed(self, latents_BZ: Tensor) -> Tensor:
        """Features [B, D] of latents."""
        features_BD: Tensor = self.decoder(latents_BZ) * self.scale + self.mean
        return features_BD

    @torch.no_grad()
    def start(self, features_ND: Tensor, sizes: Sequence[int], seed: int, generator: torch.Generator) -> None:
        """Set the scaling, and each codebook to k-means centroids of what the levels before left over."""
        self.mean.copy_(features_ND.mean(0))
        self.scale.copy_((features_ND - self.mean).square().mean().sqrt().clamp(min=1e-8))
        order = torch.randperm(len(features_ND), generator=generator)[: _START_POINTS_PER_CODE * max(sizes)]
        rest_BZ = self.latents(features_ND[order.to(features_ND.device)])
        for level, size in enumerate(sizes):
            found_CZ = residual.k_means(rest_BZ.cpu(), size, seed + level).to(rest_BZ.device)
            self.codebooks[level] = nn.Parameter(found_CZ)
            rest_BZ = rest_BZ - found_CZ[residual.nearest(rest_BZ, found_CZ)]

    def loss(self, features_BD: Tensor, commitment_weight: float) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(mean loss of the batch, codes [B, L], the residual [B, Z] that each level saw)."""
        inputs_BD = (features_BD - self.mean) / self.scale
        latents_BZ = self.encoder(inputs_BD)
        rest_BZ, total_BZ, codes, residuals = latents_BZ, torch.zeros_like(latents_BZ), [], []
        quantization_B = torch.zeros(len(features_BD), device=features_BD.device)
        for codebook_CZ in self.codebooks:
            residuals.append(rest_BZ.detach())
            codes.append(residual.nearest(rest_BZ.detach(), codebook_CZ.detach()))
            chosen_BZ = codebook_CZ[codes[-1]]
            quantization_B = quantization_B + (rest_BZ.detach() - chosen_BZ).square().sum(1)
            quantization_B = quantization_B + commitment_weight * (rest_BZ - chosen_BZ.detach()).square().sum(1)
            total_BZ = total_BZ + chosen_BZ
            rest_BZ = rest_BZ - chosen_BZ.detach()
        straight_through_BZ = latents_BZ + (total_BZ - latents_BZ).detach()
        reconstruction_B = (self.decoder(straight_through_BZ) - inputs_BD).square().sum(1)
        return (reconstruction_B + quantization_B).mean(), torch.stack(codes, 1), residuals


def _layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def _revive(
    network: _Network,
    optimizer: torch.optim.Optimizer,
    used: list[Tensor],
    residuals: list[Tensor],
    generator: torch.Generator,
) -> None:
    """Move the codes that were not used to residuals of the batch, without momentum, and start counting anew."""
    for codebook_CZ, used_C, residual_BZ in zip(network.codebooks, used, residuals, strict=True):
        dead = (~used_C).nonzero().squeeze(1)
        rows = torch.randint(len(residual_BZ), (len(dead),), generator=generator).to(dead.device)
        codebook_CZ[dead] = residual_BZ[rows]
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[codebook_CZ][moment][dead] = 0
        used_C.zero_()
