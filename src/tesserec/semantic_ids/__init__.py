"""Semantic IDs: from item vectors to short tuples of codes, and the table that holds them."""

from tesserec.semantic_ids.assigners import Nearest, Sinkhorn
from tesserec.semantic_ids.balanced_kmeans import BalancedResidualKMeans
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.crab import CRAB, CodeSplit, tree_regulariser
from tesserec.semantic_ids.das import DualAlignment
from tesserec.semantic_ids.diagnostics import Churn, CodeOverlap, churn, overlap, popularity_shares
from tesserec.semantic_ids.dos import OrthogonalLevels, UserFlow
from tesserec.semantic_ids.drq import DRQ
from tesserec.semantic_ids.dsirm import QueryBridge
from tesserec.semantic_ids.expansion import ForeignItems, expand
from tesserec.semantic_ids.fsq import FSQ, RQFSQ
from tesserec.semantic_ids.hashed import HashedCodes
from tesserec.semantic_ids.letter import CollaborativeAlignment, Diversity
from tesserec.semantic_ids.namespaces import Namespaces
from tesserec.semantic_ids.plum import CoOccurrence
from tesserec.semantic_ids.product_quantization import ProductQuantization
from tesserec.semantic_ids.report import SemanticIdReport, diagnose, tree
from tesserec.semantic_ids.retokenize import Retokenization, continued_codebooks, retokenize
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.semantic_ids.rq_vae import RQVAE, RQVAEParts, RQVAETraining
from tesserec.semantic_ids.table import (
    Collisions,
    add_items,
    build_semantic_ids,
    content_codes,
    load_semantic_ids,
    remove_items,
    save_semantic_ids,
)

__all__ = [
    "CRAB",
    "DRQ",
    "FSQ",
    "RQFSQ",
    "RQVAE",
    "BalancedResidualKMeans",
    "Churn",
    "CoOccurrence",
    "CodeOverlap",
    "CodeSplit",
    "CodesFile",
    "CollaborativeAlignment",
    "Collisions",
    "Diversity",
    "DualAlignment",
    "ForeignItems",
    "HashedCodes",
    "Namespaces",
    "Nearest",
    "OrthogonalLevels",
    "ProductQuantization",
    "QueryBridge",
    "RQVAEParts",
    "RQVAETraining",
    "ResidualKMeans",
    "Retokenization",
    "SemanticIdReport",
    "Sinkhorn",
    "UserFlow",
    "add_items",
    "build_semantic_ids",
    "churn",
    "content_codes",
    "continued_codebooks",
    "diagnose",
    "expand",
    "fit_semantic_ids",
    "load_semantic_ids",
    "overlap",
    "popularity_shares",
    "remove_items",
    "retokenize",
    "save_semantic_ids",
    "tree",
    "tree_regulariser",
]
