"""Semantic IDs: from item vectors to short tuples of codes, and the table that holds them."""

from tesserec.semantic_ids.balanced_kmeans import BalancedResidualKMeans
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.crab import CRAB, CodeSplit, tree_regulariser
from tesserec.semantic_ids.diagnostics import Churn, CodeOverlap, churn, overlap, popularity_shares
from tesserec.semantic_ids.expansion import ForeignItems, expand
from tesserec.semantic_ids.namespaces import Namespaces
from tesserec.semantic_ids.product_quantization import ProductQuantization
from tesserec.semantic_ids.report import SemanticIdReport, diagnose, tree
from tesserec.semantic_ids.retokenize import Retokenization, continued_codebooks, retokenize
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.semantic_ids.rq_vae import RQVAE, RQVAETraining
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
    "RQVAE",
    "BalancedResidualKMeans",
    "Churn",
    "CodeOverlap",
    "CodeSplit",
    "CodesFile",
    "Collisions",
    "ForeignItems",
    "Namespaces",
    "ProductQuantization",
    "RQVAETraining",
    "ResidualKMeans",
    "Retokenization",
    "SemanticIdReport",
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
