"""FSQ and RQ-FSQ: a grid instead of codebooks, alone and beside a residual quantizer.

Paper: Mentzer et al. 2023, https://arxiv.org/abs/2309.15505 (FSQ); Quantizing Intent, https://arxiv.org/abs/2606.01396
    (RQ-FSQ)
Adds: each latent feature is rounded to a few values, so there is no codebook that could collapse; in RQ-FSQ the codes
    of a residual quantizer tell the coarse shape of the same vector and the grid its detail.
Differs: the grid is evenly spaced over [−1, 1] for odd and even numbers of values (Mentzer et al. shift the even ones
    to hold zero); RQ-FSQ standardises the features, rounds them as they are, without training, and decodes vectors
    from both branches by least squares (the paper trains a click model on the codes and reconstructs nothing).
Checked: tests/semantic_ids/test_fsq.py (no other value of the grid is nearer; independent factors that residual codes
    cannot count out; both branches together tell what neither does).

Dimensions: N items · B batch · D features · L levels · Z latent features, or features of both branches.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError, NotFittedError, RecipeError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.composition import Quantized, QuantizerLoss
from tesserec.semantic_ids.rq_network import Network, loss_modules, step_without_codebooks, train
from tesserec.semantic_ids.rq_vae import RQVAETraining
from tesserec.types import ComponentState, HasFittedCodes, Quantizer, SideInformation

__all__ = ["FSQ", "RQFSQ"]

Width = Annotated[int, Field(gt=0)]


@component
class FSQ:
    """Code tuples of vectors by rounding the latents of an autoencoder, each to one of a few values."""

    grid_sizes: tuple[Annotated[int, Field(ge=3)], ...] = (16, 16, 16, 16)
    """Values of each latent feature, at least 3."""
    joined: Annotated[int, Field(gt=0)] = 1
    """Latent features that one code tells, in their order: two of 16 values are a level of 256 codes.

    A generator learns a vector a code, and six levels of 16 codes are few vectors.
    """
    hidden_sizes: tuple[Width, ...] = (512, 256, 128)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    training: RQVAETraining = Field(default_factory=RQVAETraining)
    """How the autoencoder is trained; there are no codes to revive or to watch."""
    losses: tuple[QuantizerLoss, ...] = ()
    """Further terms of the loss, as in ``RQVAE``."""

    def __post_init__(self) -> None:
        if len(self.grid_sizes) % self.joined:
            raise RecipeError(
                f"{len(self.grid_sizes)} grids cannot be joined {self.joined} to a level: give a multiple"
            )
        self._network: Network | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level: the values of its latent features multiplied."""
        return tuple(math.prod(self.grid_sizes[first : first + self.joined]) for first in self._firsts)

    @property
    def _firsts(self) -> range:
        """The first latent feature of each level."""
        return range(0, len(self.grid_sizes), self.joined)

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn encoder and decoder from ``features_ND`` [N, D]; same seed, same result.

        Raises ``DataError`` where features are empty or not finite.
        """
        features_ND = residual.check_features(features_ND).to(side.device)
        generator = torch.Generator().manual_seed(side.seed)
        with torch.random.fork_rng(devices=[]):  # layers draw their start from the global generator
            torch.manual_seed(side.seed)
            network = self._new(features_ND.shape[1]).to(side.device)
            losses = loss_modules(self.losses, network, features_ND, side)
        network.set_scaling(features_ND)
        step = step_without_codebooks(network, features_ND, self._levels, Quantized.straight_through)
        train(network, step, losses, len(features_ND), self.training, generator, side, "FSQ")
        self._network = network.cpu().eval().requires_grad_(False)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each of the places of the nearest values of its grids, the first counting most."""
        network = self._fitted()
        features_ND = residual.check_features(features_ND, len(network.mean))
        latents_NZ = network.latents_in_parts(features_ND, self.training.batch_size)
        places_NZ = rounded(latents_NZ.tanh(), self.grid_sizes)
        codes_NL = torch.zeros((len(places_NZ), len(self._firsts)), dtype=torch.int64)
        for feature, (size, place_N) in enumerate(zip(self.grid_sizes, places_NZ.unbind(1), strict=True)):
            level = feature // self.joined
            codes_NL[:, level] = codes_NL[:, level] * size + place_N
        return codes_NL

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Reconstructed features [N, D]; latent features beyond the given levels are at the middle of their grid."""
        return self._fitted().reconstructed(self.values(codes_NL))

    def values(self, codes_NL: Tensor) -> Tensor:
        """The values in [−1, 1] that codes stand for, [N, latents]; raises ``DataError`` for too many columns."""
        if codes_NL.ndim != 2 or not 0 < codes_NL.shape[1] <= len(self._firsts):
            shape = tuple(codes_NL.shape)
            raise DataError(f"codes have shape {shape}, expected [items, levels] with 1 to {len(self._firsts)} levels")
        places = []
        for first, codes_N in zip(self._firsts, codes_NL.unbind(1), strict=False):
            sizes = self.grid_sizes[first : first + self.joined]
            places += [codes_N // math.prod(sizes[later:]) % size for later, size in enumerate(sizes, 1)]
        given_NZ = grid_values(torch.stack(places, 1), self.grid_sizes[: len(places)])
        return torch.nn.functional.pad(given_NZ, (0, len(self.grid_sizes) - len(places)))

    def state(self) -> ComponentState:
        """Both networks, and mean and scale of the features."""
        return ComponentState(dict(self._fitted().state_dict()))

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        network = self._new(len(state.tensors["mean"]))
        network.load_state_dict(dict(state.tensors))
        self._network = network.eval().requires_grad_(False)

    def _fitted(self) -> Network:
        if self._network is None:
            raise NotFittedError("FSQ has no networks yet: call fit or restore first")
        return self._network

    def _new(self, num_features: int) -> Network:
        return Network(num_features, self.hidden_sizes, len(self.grid_sizes), ())

    def _levels(self, latents_BL: Tensor) -> Quantized:
        """The way of latents through the grids."""
        bounded_BL = latents_BL.tanh()
        codes_BL = rounded(bounded_BL.detach(), self.grid_sizes)
        nothing_B = bounded_BL.new_zeros(len(bounded_BL))
        values_BL = grid_values(codes_BL, self.grid_sizes)
        return Quantized(bounded_BL, (bounded_BL,), (values_BL,), codes_BL, (nothing_B,), (nothing_B,))


def rounded(bounded_BL: Tensor, grid_sizes: tuple[int, ...]) -> Tensor:
    """The place of the value nearest to each of ``bounded_BL`` in [−1, 1], int64."""
    last_L = torch.tensor(grid_sizes, device=bounded_BL.device) - 1
    return ((bounded_BL + 1) / 2 * last_L).round().long()


def grid_values(codes_BL: Tensor, grid_sizes: tuple[int, ...]) -> Tensor:
    """The values at places of the grids: evenly spaced from −1 to 1."""
    last_L = torch.tensor(grid_sizes, device=codes_BL.device) - 1
    return codes_BL / last_L * 2 - 1


@component
class RQFSQ:
    """Codes of a residual quantizer and the rounded features themselves, side by side: inputs of a ranker."""

    coarse: Quantizer
    """The residual quantizer, ``ResidualKMeans`` or ``RQVAE``: its codes come first."""
    grid_size: Annotated[int, Field(ge=3)] = 16
    """Values of each feature: 4 bits."""

    def __post_init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level: those of the residual quantizer, then, after ``fit``, one of each feature."""
        num_features = len(self._tensors["mean"]) if self._tensors else 0
        return (*self.coarse.codebook_sizes, *(self.grid_size,) * num_features)

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Fit both branches on ``features_ND`` [N, D], and a linear map from what both say back to the features.

        Raises ``DataError`` where features are empty or not finite.
        """
        features_ND = residual.check_features(features_ND)
        self.coarse.fit(features_ND, side)
        scale_D = features_ND.std(0, correction=0).clamp(min=1e-8)
        self._tensors = {"mean": features_ND.mean(0), "scale": scale_D}
        said_NZ = self._said(self.fitted_codes(self.encode(features_ND)))
        found_ZD = torch.linalg.lstsq(said_NZ.double(), features_ND.double(), driver="gelsd").solution
        self._tensors["map"] = found_ZD.float()

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L + D] int64 of both branches; neither depends on the other."""
        fitted = self._fitted()
        features_ND = residual.check_features(features_ND, len(fitted["mean"]))
        bounded_ND = ((features_ND - fitted["mean"]) / fitted["scale"]).tanh()
        fine_ND = rounded(bounded_ND, (self.grid_size,) * features_ND.shape[1])
        return torch.cat([self.coarse.encode(features_ND), fine_ND], 1)

    def fitted_codes(self, codes_NL: Tensor) -> Tensor:
        """The codes of the items of the last fit, whose first ones the residual quantizer may have set otherwise."""
        if not isinstance(self.coarse, HasFittedCodes):
            return codes_NL
        levels = len(self.coarse.codebook_sizes)
        return torch.cat([self.coarse.fitted_codes(codes_NL[:, :levels]), codes_NL[:, levels:]], 1)

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Reconstructed features [N, D] of both branches, or of the first where only its codes are given."""
        fitted, levels = self._fitted(), len(self.coarse.codebook_sizes)
        if codes_NL.ndim == 2 and codes_NL.shape[1] <= levels:
            return self.coarse.decode(codes_NL)
        if codes_NL.ndim != 2 or codes_NL.shape[1] != len(self.codebook_sizes):
            raise DataError(
                f"codes have shape {tuple(codes_NL.shape)}, expected [items, levels] with 1 to {levels} or with "
                f"{len(self.codebook_sizes)} levels"
            )
        return self._said(codes_NL) @ fitted["map"]

    def state(self) -> ComponentState:
        """The residual quantizer, mean and scale of the features, and the map."""
        own = ComponentState(self._fitted())
        return ComponentState.merged(self.coarse.state().under("coarse"), own)

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        self.coarse.restore(state.part("coarse"))
        self._tensors = {name: state.tensors[name] for name in ("mean", "scale", "map")}

    def _said(self, codes_NL: Tensor) -> Tensor:
        """What both branches say, and a one for the constant, [N, Z]."""
        levels = len(self.coarse.codebook_sizes)
        fine_ND = grid_values(codes_NL[:, levels:], self.codebook_sizes[levels:])
        return torch.cat([self.coarse.decode(codes_NL[:, :levels]), fine_ND, fine_ND.new_ones(len(fine_ND), 1)], 1)

    def _fitted(self) -> dict[str, Tensor]:
        if not self._tensors:
            raise NotFittedError("RQFSQ has no codebooks yet: call fit or restore first")
        return self._tensors
