"""DRQ: first a space without codes, then codes of that space.

Paper: DRQ-VAE, https://arxiv.org/abs/2606.01844
Adds: quantization decoupled from learning: a variational autoencoder is trained without any codes, its latents are
    frozen, and residual k-means finds the codes (of 256 items a code at most, drawn at random); no codebook can
    collapse while it is learned.
Differs: the spread of the posterior is one a latent feature, not one an item (the paper does not say); the weight of
    the divergence is 1e-3; behaviour comes in by the same losses as in ``RQVAE``, compared before quantization.
Checked: tests/semantic_ids/test_drq.py (codes are those of ResidualKMeans on the latents; divergence by hand; latents
    keep what few codes cannot say, which those of plain RQ-VAE lose).

Dimensions: N items · B batch · D features · Z latent features · L levels · C codes of a level.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import NotFittedError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.composition import LossRecord, Quantized, QuantizerLoss
from tesserec.semantic_ids.rq_network import Network, loss_modules, step_without_codebooks, train
from tesserec.semantic_ids.rq_vae import RQVAETraining
from tesserec.types import ComponentState, SideInformation

__all__ = ["DRQ"]

_START_LOG_VARIANCE = -4.0
Width = Annotated[int, Field(gt=0)]


@component
class DRQ:
    """Code tuples of vectors by residual k-means on the latents of a variational autoencoder."""

    num_levels: Annotated[int, Field(gt=0)] = 3
    """Codes of an item, before the collision digit."""
    codebook_size: residual.CodebookSize = 256
    """Codes at each level: one number for all, or one a level; fewer where residuals take fewer distinct values."""
    hidden_sizes: tuple[Width, ...] = (512, 256, 128)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    num_latents: Width = 32
    """Features of a code vector."""
    divergence_weight: Annotated[float, Field(ge=0)] = 1e-3
    """Of the Kullback-Leibler divergence from a standard normal; 0 is an autoencoder without noise."""
    training: RQVAETraining = Field(default_factory=RQVAETraining)
    """How the autoencoder is trained; there are no codes to revive or to watch."""
    losses: tuple[QuantizerLoss, ...] = ()
    """Further terms of the autoencoder's loss; what they see as quantized is the latents."""

    def __post_init__(self) -> None:
        self._sizes = residual.level_sizes(self.num_levels, self.codebook_size)
        self._network: Network | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level: as configured before ``fit``, as found after it."""
        return self._sizes if self._network is None else tuple(len(c) for c in self._network.codebooks)

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn the latents of ``features_ND`` [N, D], then codebooks of them; same seed, same result.

        Raises ``DataError`` where features are empty or not finite.
        """
        features_ND = residual.check_features(features_ND).to(side.device)
        generator = torch.Generator().manual_seed(side.seed)
        with torch.random.fork_rng(devices=[]):  # layers draw their start from the global generator
            torch.manual_seed(side.seed)
            network = Network(features_ND.shape[1], self.hidden_sizes, self.num_latents, ()).to(side.device)
            losses = loss_modules(self.losses, network, features_ND, side)
        network.set_scaling(features_ND)
        spread = _Spread(self.num_latents, side.seed).to(side.device) if self.divergence_weight else None
        if spread is not None:
            losses.append((self.divergence_weight, spread))

        def seen(quantized: Quantized) -> Tensor:
            return quantized.latents_BZ if spread is None else spread.sampled(quantized.latents_BZ)

        step = step_without_codebooks(network, features_ND, _unquantized, seen)
        train(network, step, losses, len(features_ND), self.training, generator, side, "DRQ")
        self._find_codes(network, features_ND, side)
        self._network = network.cpu().eval().requires_grad_(False)

    @torch.no_grad()
    def _find_codes(self, network: Network, features_ND: Tensor, side: SideInformation) -> None:
        rest_NZ = network.latents_in_parts(features_ND, self.training.batch_size).cpu()
        for level, size in enumerate(self._sizes):
            found_CZ = residual.k_means(rest_NZ, size, side.seed + level)
            network.codebooks.append(nn.Parameter(found_CZ))
            rest_NZ = rest_NZ - found_CZ[residual.nearest(rest_NZ, found_CZ)]
            side.progress("DRQ codes", level + 1, self.num_levels)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the nearest of its level to what the levels before left of the latents."""
        network = self._fitted()
        features_ND = residual.check_features(features_ND, len(network.mean))
        return residual.encode(network.latents_in_parts(features_ND, self.training.batch_size), list(network.codebooks))

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
        network = Network(len(state.tensors["mean"]), self.hidden_sizes, self.num_latents, sizes)
        network.load_state_dict(dict(state.tensors))
        self._network = network.eval().requires_grad_(False)

    def _fitted(self) -> Network:
        if self._network is None:
            raise NotFittedError("DRQ has no codebooks yet: call fit or restore first")
        return self._network


class _Spread(nn.Module):
    """The variance of the posterior, and how far the posterior is from a standard normal."""

    def __init__(self, num_latents: int, seed: int) -> None:
        super().__init__()
        self.log_variance_Z = nn.Parameter(torch.full((num_latents,), _START_LOG_VARIANCE))
        self._generator = torch.Generator().manual_seed(seed)

    def sampled(self, means_BZ: Tensor) -> Tensor:
        """One draw of the posterior of each item, [B, Z]."""
        noise_BZ = torch.randn(means_BZ.shape, generator=self._generator).to(means_BZ.device)
        return means_BZ + noise_BZ * (self.log_variance_Z / 2).exp()

    def forward(self, record: LossRecord) -> Tensor:
        """½ Σ (μ² + σ² − log σ² − 1), its mean over the batch."""
        log_variance_Z = self.log_variance_Z
        terms_BZ = record.quantized.latents_BZ.square() + log_variance_Z.exp() - log_variance_Z - 1
        return terms_BZ.sum(1).mean() / 2


def _unquantized(latents_BZ: Tensor) -> Quantized:
    """Latents as if one level had a code vector for each of them."""
    nothing_B = latents_BZ.new_zeros(len(latents_BZ))
    codes_BL = torch.zeros(len(latents_BZ), 1, dtype=torch.int64, device=latents_BZ.device)
    return Quantized(latents_BZ, (latents_BZ,), (latents_BZ,), codes_BL, (nothing_B,), (nothing_B,))
