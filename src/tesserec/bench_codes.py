"""What a run of a suite says of its Semantic IDs: what their fit took, and what they are like, as numbers.

Dimensions: N items · L levels · C codes of a level · D features.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tesserec.bundle import Content, load_content, save_content
from tesserec.pipeline import embedded, quantizer_of, tokenized
from tesserec.recipe import Recipe
from tesserec.semantic_ids.diagnostics import CodeOverlap, code_vectors, overlap
from tesserec.semantic_ids.report import LevelReport, diagnose
from tesserec.semantic_ids.table import content_codes
from tesserec.training.measure import Measured
from tesserec.types import Catalog, Interactions, Progress, SemanticIds, Vocabulary

__all__ = ["MeasuredContent", "code_figures", "load_measured", "measured_content", "save_measured"]

_COSTS = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class MeasuredContent:
    """Vectors and codes, and what making the codes of the vectors took."""

    content: Content
    costs: Mapping[str, float] | None
    """``cpu_s``, ``seconds`` and ``peak_rss_bytes`` of the process meanwhile; None where there are no codes, or they
    were made before this was measured."""


def measured_content(recipe: Recipe, catalog: Catalog, train: Interactions, progress: Progress) -> MeasuredContent:
    """As ``make_content``, with what the codes took."""
    vectors = embedded(recipe, catalog, train, progress)
    if recipe.quantizer is None:
        return MeasuredContent(vectors, None)
    with Measured() as cost:
        start = time.process_time()
        content = tokenized(recipe, vectors, catalog, train, progress)
        cpu_s = time.process_time() - start
    return MeasuredContent(content, {"cpu_s": cpu_s, "seconds": cost.seconds, "peak_rss_bytes": cost.peak_rss_bytes})


def save_measured(folder: Path, made: MeasuredContent, items: Vocabulary) -> None:
    """Write content and costs as files of ``folder``."""
    save_content(folder, made.content, items)
    (folder / _COSTS).write_text(json.dumps(made.costs), encoding="utf-8")


def load_measured(folder: Path, items: Vocabulary) -> MeasuredContent:
    """The inverse of ``save_measured``; folders that ``save_content`` alone wrote have no costs."""
    path = folder / _COSTS
    costs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return MeasuredContent(load_content(folder, items), costs)


def code_figures(recipe: Recipe, content: Content, train: Interactions) -> dict[str, Any] | None:
    """The diagnostics of a table as numbers: of the whole, of each level and of each prefix; None without codes.

    Use, coherence and R² are those of ``diagnose``. Overlap and effective capacity are those of ``overlap``, for code
    vectors that are the mean of what the levels before left of the items' vectors, under ``noise`` in each dimension:
    as much as the vectors vary, so that it is the same for all codes of the same vectors.
    """
    table, embeddings = content.semantic_ids, content.embeddings
    if table is None:
        return None
    report = diagnose(table, train.positives(), embeddings, quantizer_of(recipe, content))
    overlaps = [] if embeddings is None else list(_overlaps(table, embeddings.vectors_ND))
    return {
        "unique_share": report.unique_share_content,
        "shared_items_share": report.shared_items_share,
        "largest_bucket": max(report.bucket_sizes),
        "explained_share": report.explained_share,
        "noise": overlaps[0].noise if overlaps else None,
        "levels": [_level(level, overlaps[place] if overlaps else None) for place, level in enumerate(report.levels)],
        "prefixes": [dataclasses.asdict(prefix) for prefix in report.coherence],
    }


def _level(level: LevelReport, confused: CodeOverlap | None) -> dict[str, Any]:
    return {
        "codebook_size": level.codebook_size,
        "num_used": level.num_used,
        "perplexity": level.perplexity,
        "gini": level.gini,
        "most_popular_share": max(level.events_of_code or [0.0]),
        "expected_overlap": None if confused is None else confused.expected_overlap,
        "effective_capacity": None if confused is None else confused.effective_capacity,
    }


def _overlaps(table: SemanticIds, vectors_ND: Tensor) -> Iterator[CodeOverlap]:
    """The overlap of the codes of each level that came from content."""
    codes_NL = content_codes(table)
    rest_ND = vectors_ND - vectors_ND.mean(0)
    noise = max(float(rest_ND.square().mean().sqrt()), 1e-12)
    for code_N, size in zip(codes_NL.unbind(1), table.codebook_sizes, strict=False):
        codebook_CD = code_vectors(code_N, rest_ND, size)
        yield overlap(torch.bincount(code_N, minlength=size), codebook_CD, noise)
        rest_ND = rest_ND - codebook_CD[code_N].float()
