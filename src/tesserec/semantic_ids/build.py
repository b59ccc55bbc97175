"""From a quantizer and embeddings, or from codes of the user's own, to the table of Semantic IDs.

Dimensions: N items · D features · L levels.
"""

import dataclasses

from torch import Tensor

from tesserec.errors import DataError
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.residual import fingerprint
from tesserec.semantic_ids.table import Collisions, build_semantic_ids
from tesserec.types import Catalog, HasFittedCodes, ItemEmbeddings, Quantizer, SemanticIds, SideInformation

__all__ = ["fit_semantic_ids"]


def fit_semantic_ids(
    source: Quantizer | CodesFile,
    catalog: Catalog,
    embeddings: ItemEmbeddings | None,
    side: SideInformation,
    *,
    collisions: Collisions = "digit",
    popularity_N: Tensor | None = None,
) -> SemanticIds:
    """The table of a catalog: a quantizer is fitted on ``embeddings`` first, codes of the user's own are read.

    Items without an embedding do not take part in the fit; they get the codes of their zero vector, one bucket for
    all of them. Raises ``DataError`` where a quantizer has no embeddings, or those of another catalog.
    """
    if isinstance(source, CodesFile):
        codes_NL, sizes, content = source.read(catalog.items)
        return build_semantic_ids(codes_NL, sizes, content, collisions, popularity_N)
    if embeddings is None:
        raise DataError(f"{type(source).__name__} needs item embeddings: name an embedder, or use CodesFile")
    if len(embeddings.vectors_ND) != len(catalog):
        raise DataError(
            f"{len(embeddings.vectors_ND)} embeddings ({embeddings.source}) for {len(catalog)} items: give one each"
        )
    vectors_ND, missing_N = embeddings.vectors_ND, embeddings.missing_N
    rows: Tensor | slice = slice(None)
    if missing_N is not None:
        rows = (~missing_N).nonzero().squeeze(1)
        side = dataclasses.replace(side, item_N=rows)
    source.fit(vectors_ND[rows], side)
    codes_NL = source.encode(vectors_ND)
    if isinstance(source, HasFittedCodes):  # encode does not know which items were there when it was fitted
        codes_NL[rows] = source.fitted_codes(codes_NL[rows])
    return build_semantic_ids(codes_NL, source.codebook_sizes, fingerprint(source.state()), collisions, popularity_N)
