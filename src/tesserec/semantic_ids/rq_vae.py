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
from typing import Annotated, Literal

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import NotFittedError, RecipeError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.assigners import Assigner
from tesserec.semantic_ids.composition import LevelTransform, LossRecord, QuantizerLoss
from tesserec.semantic_ids.rq_network import Network, StepLoss, loss_modules, train
from tesserec.semantic_ids.sources import check_widths
from tesserec.types import ComponentState, SideInformation

__all__ = ["RQVAE", "RQVAEParts", "RQVAETraining"]

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
    """Share of its codebook below which the perplexity of a level raises the alarm: one note in the progress, and a
    warning where it is so at the end."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the products of encoder and decoder in training; weights, codes and losses stay float32."""


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
        self._network: Network | None = None

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
            losses = loss_modules(self.losses, network, features_ND, side)
            if self.parts.transform is not None:
                network.write_by(self.parts.transform)
        train(network, self._step(network, features_ND, side), losses, len(features_ND), self.training, generator, side)
        network.finish(features_ND, generator)
        self._network = network.cpu().eval().requires_grad_(False)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the nearest of its level to what the levels before left of the latents."""
        network = self._fitted()
        features_ND = residual.check_features(features_ND, len(network.mean))
        latents_NZ = network.latents_in_parts(features_ND, self.training.batch_size)
        return network.quantize(latents_NZ).codes_BL

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

    def _fitted(self) -> Network:
        if self._network is None:
            raise NotFittedError("RQVAE has no codebooks yet: call fit or restore first")
        return self._network

    def _new(self, num_features: int, sizes: Sequence[int]) -> Network:
        parts = self.parts
        return Network(num_features, self.hidden_sizes, self.num_latents, sizes, parts.assigners, parts.source_widths)

    def _step(self, network: Network, features_ND: Tensor, side: SideInformation) -> StepLoss:
        depths = torch.Generator().manual_seed(side.seed)

        def loss(rows_B: Tensor, step: int) -> tuple[Tensor, LossRecord]:
            depth_B = None
            if self.parts.depth_masking:
                depth_B = torch.randint(1, self.num_levels + 1, (len(rows_B),), generator=depths).to(rows_B.device)
            return network.loss(features_ND[rows_B], self.commitment_weight, rows_B, depth_B, step)

        return loss
