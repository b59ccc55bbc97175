"""LETTER: codes that follow collaborative vectors, and that are taken evenly.

Paper: LETTER, https://arxiv.org/abs/2405.07314
Adds: InfoNCE between quantized vectors and frozen collaborative ones; code vectors of a cluster attract each other and
    push away the rest. Sinkhorn on the last level is ``RQVAE.parts.assigners`` (``assigners.py``).
Differs: collaborative vectors are of any embedder (LETTER: of a trained SASRec), turned to the width of the latents by
    their principal axes, and compared by cosines (LETTER: dot products, which grow with the vectors); items without
    one take no part; clusters are found every 100 steps by optimal transport with a capacity of ⌈codes / clusters⌉,
    and a code that is alone in its cluster takes no part (the released code draws for ever there).
Checked: tests/semantic_ids/test_letter.py (both losses by hand; a quiet factor that only the collaborative vectors
    tell; clusters against all assignments of a small case).

Dimensions: N rows of the features · B batch · Z latent features · C codes of a level · K clusters.
"""

import warnings
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component, fresh
from tesserec.errors import DataError, RecipeError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.composition import LossRecord, LossSetup, info_nce
from tesserec.types import Embedder, as_numpy

__all__ = ["CollaborativeAlignment", "Diversity", "collaborative_vectors", "even_clusters"]

_ROUNDS_OF_CLUSTERS = 5


@component
class CollaborativeAlignment:
    """Pulls the quantized vector of an item towards its collaborative vector, away from those of other items."""

    source: Embedder
    """What makes the collaborative vectors, ``CooccurrenceSVD`` or ``VectorsFile``; they stay as they are."""
    weight: Annotated[float, Field(ge=0)] = 0.01
    """α: strength."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the softmax over the batch."""

    def module(self, setup: LossSetup) -> nn.Module:
        """Raises ``DataError`` where there is no catalog, or no item has a collaborative vector."""
        return _Alignment(*collaborative_vectors(self.source, setup), self.temperature)


def collaborative_vectors(source: Embedder, setup: LossSetup) -> tuple[Tensor, Tensor]:
    """(vectors [N, Z] of an embedder, along their principal axes; which rows have one, [N] bool).

    Axes beyond the vectors' own are zero. Raises ``DataError`` where there is no catalog or no vector.
    """
    side = setup.side
    if side.catalog is None:
        raise DataError("collaborative vectors are made of the catalog: fit in a pipeline, or give SideInformation its")
    made = fresh(source).embed(side.catalog, side.train)
    vectors_ND = made.vectors_ND[setup.items_N].float()
    known_N = vectors_ND.any(1)
    if not bool(known_N.any()):
        raise DataError(f"no item has a vector of {made.source}: use other vectors, or leave the loss out")
    _, _, axes_RD = torch.linalg.svd(vectors_ND[known_N], full_matrices=False)
    turned_NZ = vectors_ND @ axes_RD[: setup.num_latents].T
    device = setup.features_ND.device
    return F.pad(turned_NZ, (0, setup.num_latents - turned_NZ.shape[1])).to(device), known_N.to(device)


class _Alignment(nn.Module):
    def __init__(self, vectors_NZ: Tensor, known_N: Tensor, temperature: float) -> None:
        super().__init__()
        self._vectors_NZ, self._known_N, self._temperature = vectors_NZ, known_N, temperature

    def forward(self, record: LossRecord) -> Tensor:
        known_B = self._known_N[record.rows_B]
        rows_B, own_BZ = record.rows_B[known_B], record.quantized.straight_through()[known_B]
        if not len(own_BZ):
            return own_BZ.sum()
        same_BB = (rows_B == rows_B[:, None]).fill_diagonal_(False)
        return info_nce(own_BZ, self._vectors_NZ[rows_B], self._temperature, same_BB)


@component
class Diversity:
    """Makes the code vectors of a cluster attract each other and push away those of other clusters."""

    weight: Annotated[float, Field(ge=0)] = 1e-4
    """β: strength."""
    num_clusters: Annotated[int, Field(gt=0)] = 10
    """Clusters of the codes of a level."""
    cluster_every: Annotated[int, Field(gt=0)] = 100
    """Steps after which the clusters are found anew."""

    def module(self, setup: LossSetup) -> nn.Module:
        """Takes nothing but the codebooks; raises ``RecipeError`` where none are trained, as in DRQ and FSQ.

        Warns where they have no more codes than there are clusters: each code is then alone in its own.
        """
        if not setup.codebook_sizes:
            raise RecipeError("Diversity spreads codebooks in training, as RQVAE has them: leave it out elsewhere")
        if max(setup.codebook_sizes) <= self.num_clusters:
            warnings.warn(
                f"Diversity in {self.num_clusters} clusters does nothing to codebooks of {list(setup.codebook_sizes)} "
                "codes: lower num_clusters, or leave it out",
                stacklevel=2,
            )
        return _Diversity(self, setup.generator)


class _Diversity(nn.Module):
    def __init__(self, settings: Diversity, generator: torch.Generator) -> None:
        super().__init__()
        self._settings, self._generator = settings, generator
        self._cluster: list[Tensor] = []

    def forward(self, record: LossRecord) -> Tensor:
        s = self._settings
        if not self._cluster or record.step % s.cluster_every == 0:
            self._cluster = [even_clusters(c.detach().cpu(), s.num_clusters) for c in record.codebooks]
        loss = record.quantized.latents_BZ.new_zeros(())
        for level, codebook_CZ in enumerate(record.codebooks):
            codes_B = record.quantized.codes_BL[:, level].cpu()
            has_B, others_B = self._drawn(codes_B, self._cluster[level])
            if not bool(has_B.any()):
                continue
            codes_B, others_B = codes_B[has_B].to(loss.device), others_B.to(loss.device)
            logits_BC = codebook_CZ[codes_B] @ codebook_CZ.T
            itself_BC = F.one_hot(codes_B, len(codebook_CZ)).bool()
            loss = loss + F.cross_entropy(logits_BC.masked_fill(itself_BC, float("-inf")), others_B)
        return loss

    def _drawn(self, codes_B: Tensor, cluster_C: Tensor) -> tuple[Tensor, Tensor]:
        """(which codes are not alone in their cluster, [B] bool; for each of them another code of its cluster)."""
        mates_CC = (cluster_C[:, None] == cluster_C).float().fill_diagonal_(0)
        has_B = (mates_CC.sum(1) > 0)[codes_B]
        if not bool(has_B.any()):
            return has_B, codes_B[has_B]
        return has_B, torch.multinomial(mates_CC[codes_B[has_B]], 1, generator=self._generator).squeeze(1)


def even_clusters(codebook_CZ: Tensor, num_clusters: int) -> Tensor:
    """The cluster of each code, [C] int64, none of more than ⌈C / ``num_clusters``⌉ codes.

    k-means in which each round places all codes at the smallest sum of squared distances that the capacity allows.
    """
    capacity = -(-len(codebook_CZ) // num_clusters)
    centroids_KZ = residual.k_means(codebook_CZ, num_clusters, seed=0)
    if len(centroids_KZ) < num_clusters:  # fewer distinct codes than clusters: each is its own
        return residual.nearest(codebook_CZ, centroids_KZ)
    cluster_C = torch.zeros(len(codebook_CZ), dtype=torch.int64)
    for _ in range(_ROUNDS_OF_CLUSTERS):
        distances_CK = torch.cdist(codebook_CZ, centroids_KZ).square()
        from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

        _, place_C = linear_sum_assignment(as_numpy(distances_CK.repeat_interleave(capacity, dim=1)))
        cluster_C = torch.from_numpy(place_C) // capacity
        for cluster in set(cluster_C.tolist()):
            centroids_KZ[cluster] = codebook_CZ[cluster_C == cluster].mean(0)
    return cluster_C
