"""Searches with options of their own over a fitted TIGER and a fitted Mosaic."""

import pytest
import torch

from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.frontier import Distribution
from tesserec.decoding.sampling import stochastic_beam_search
from tesserec.errors import DataError, NotFittedError
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.mosaic import HeadsConfig, Mosaic, RowsConfig
from tesserec.retrievers.tiger import TIGER
from tesserec.testing.data import catalog_of_size, chain, requests_of
from tesserec.training.loop import TrainingConfig
from tesserec.types import FitContext, ItemEmbeddings, SemanticIds

CODES = torch.tensor([[item // 4, item % 4] for item in range(12)])
REQUESTS = requests_of([[[2], [3]], [[7]]], exclude_history=True)
SHAPE, BRIEFLY = TransformerConfig(32, 1, 2), TrainingConfig(epochs=1)
RETRIEVERS = (
    TIGER(model=SHAPE, num_beams=12, training=BRIEFLY),
    TIGER(model=SHAPE, num_beams=12, training=BRIEFLY, precision="bfloat16"),
    Mosaic(
        model=SHAPE,
        answer="generative",
        rows=RowsConfig(min_events=1),
        heads=HeadsConfig(num_beams=12),
        training=BRIEFLY,
    ),
)


@pytest.fixture(scope="module", params=RETRIEVERS, ids=["TIGER", "TIGER-bfloat16", "Mosaic"])
def retriever(request):
    context = FitContext(
        embeddings=ItemEmbeddings(torch.eye(12), "one each"), semantic_ids=SemanticIds(CODES, (3, 4), "by hand")
    )
    request.param.fit(chain(12)[0], catalog_of_size(12), context)
    return request.param


def test_the_plain_search_is_what_retrieve_does(retriever):
    read = retriever.generation(REQUESTS)
    beams = beam_search(read.step, read.cache, read.trie, num_requests=read.num_requests, num_beams=12, mask=read.mask)
    found, expected = beams_to_items(beams, read.trie, 5, read.mask), retriever.retrieve(REQUESTS, 5)
    assert found.items_BK.tolist() == expected.items_BK.tolist()
    torch.testing.assert_close(found.scores_BK, expected.scores_BK)
    assert not found.scores_BK.requires_grad


def test_a_branch_and_a_sample(retriever):
    read = retriever.generation(REQUESTS)
    given = {"num_requests": 2, "mask": read.mask, "prompts_Bl": torch.tensor([[0], [1]])}
    beams = beam_search(read.step, read.cache, read.trie, num_beams=12, **given)
    found = beams_to_items(beams, read.trie, 12, read.mask).items_BK
    assert [sorted(set(row)) for row in found.tolist()] == [[-1, 0, 1], [-1, 4, 5, 6]]
    read = retriever.generation(REQUESTS)
    sample = stochastic_beam_search(
        read.step,
        read.cache,
        read.trie,
        num_requests=2,
        num_beams=4,
        mask=read.mask,
        distribution=Distribution("allowed"),
        generator=torch.Generator().manual_seed(0),
    )
    drawn = beams_to_items(sample, read.trie, 4, read.mask).items_BK.tolist()
    assert [len(set(row) - {2, 3} if number == 0 else set(row) - {7}) for number, row in enumerate(drawn)] == [4, 4]
    assert bool(((sample.inclusion_BM > 0) & (sample.inclusion_BM <= 1)).all())


def test_what_cannot_be_read_is_refused(retriever):
    with pytest.raises(NotFittedError):
        type(retriever)().generation(REQUESTS)
    if isinstance(retriever, Mosaic):
        with pytest.raises(DataError, match=r"^request 1 has no history, so nothing can be generated: ask retrieve"):
            retriever.generation(requests_of([[[1]], []]))
