"""The scripts about decoding on twelve items: what they compare is the same search, and what they print."""

import dataclasses

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.decoding import hf_t5, request
from benchmarks.decoding._setting import Setting, mosaic_of, network_of, num_parameters, tiger_of
from tesserec.nn.transformer import TransformerConfig
from tesserec.testing.data import chain, requests_of
from tesserec.types import FitContext, SemanticIds

SHAPE = TransformerConfig(16, 1, 2, head_width=12)
CODES = SemanticIds(torch.cartesian_prod(torch.arange(3), torch.arange(4)), (3, 4), "planted")


@pytest.fixture(scope="module")
def setting():
    requests = requests_of([[[(user + day) % 12] for day in range(5)] for user in range(7)])
    return Setting("twelve", *chain(), FitContext(seed=1, semantic_ids=CODES), requests)


def larger(setting, codes):
    train, catalog = chain(num_items=len(codes))
    return dataclasses.replace(setting, train=train, catalog=catalog, context=FitContext(seed=1, semantic_ids=codes))


def test_requests_start_again_after_the_last(setting):
    items = setting.take(6, 3).history.items.view(3, 5)
    assert items[:, 0].tolist() == [6, 0, 1]


def test_an_open_search_finds_what_a_tree_with_all_tuples_allows(setting):
    tiger = tiger_of(setting, SHAPE, 12)
    tree = tiger.retrieve(setting.requests, 12)
    ((_, scores_BM),) = hf_t5.open_search(tiger, setting.requests)
    torch.testing.assert_close(scores_BM, tree.scores_BK)
    low = dataclasses.replace(tiger, precision="bfloat16")
    low.restore(tiger.state(), setting.catalog, setting.context)
    ((_, low_BM),) = hf_t5.open_search(low, setting.requests)
    assert not torch.equal(low_BM, scores_BM)


def test_lists_that_differ_are_noticed(setting):
    tiger = tiger_of(setting, SHAPE, 3)
    theirs = hf_t5.HuggingFace(tiger)
    hf_t5.check_lists(tiger, theirs, setting.requests)
    tiger._network.t5.head.weight.data *= 1.1
    with pytest.raises(AssertionError, match=r"request 0, tokens .* here, .* there"):
        hf_t5.check_lists(tiger, theirs, setting.requests)


def test_a_comparison_says_what_ran_how(setting, capsys, monkeypatch):
    monkeypatch.setattr(hf_t5, "TIGER_SHAPE", SHAPE)
    monkeypatch.setattr(hf_t5, "MOSAIC_SHAPE", SHAPE)
    monkeypatch.setattr(hf_t5, "BATCH_SIZES", {50: (2,)})
    wide = SemanticIds(torch.cartesian_prod(torch.arange(51), torch.arange(2))[:101], (51, 2), "wide")
    comparison = hf_t5.Comparison(larger(setting, wide), 50, (1,), 4)
    comparison.run(1)
    comparison.report(is_result=False)
    printed = capsys.readouterr().out
    for figure in ("users_per_s_vs_hf_t5.beam50", "constrained_vs_open.beam50", "mosaic_vs_hf_t5.beam50"):
        assert f"decoding.{figure}: " in printed
    assert "theirs bfloat16 (1 thread, batches of 2)" in printed
    assert "Mosaic (1 thread) " in printed


def test_times_of_requests_leave_out_the_warm_ones(setting):
    codes = SemanticIds(torch.cartesian_prod(torch.arange(10), torch.arange(6)), (10, 6), "sixty")
    many = larger(setting, codes)
    mosaic = mosaic_of(many, SHAPE)
    assert len(request.request_times_ms(mosaic, many, 0, 3)) == 3
    every, without_tables = num_parameters(network_of(mosaic))
    assert 0 < without_tables < every
