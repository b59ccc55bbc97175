"""The scripts of the claims on a shop of eight topics: a cell of each, figures of two, what they measure by hand."""

import itertools
import json

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks import _record
from benchmarks.claims import cold_auc, crab, dsirm, expansion, rq_fsq
from benchmarks.claims._cells import Cell, cells_of
from tesserec.semantic_ids import RQVAE, RQVAETraining
from tesserec.types import PAD, SemanticIds, SideInformation

DAY_S = 86_400
TOPICS = ("lamp", "spade", "pencil", "cradle", "kettle", "rug", "drum", "scarf")
WORDS = ("red", "blue", "oak", "steel", "tiny", "large", "round", "flat", "soft", "loud", "new", "old")
SUITE = """
[datasets.shop]
events = "events.parquet"
items = "items.parquet"
t1 = {t1}
t2 = {t2}
[[grid]]
datasets = ["shop"]
protocols = ["last_out"]
methods = ["popularity"]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """96 users, each of one topic, buy eight of its twelve items, of which one is rare and two come late.

    Nobody buys the other 360 items; there have to be more items than codes of a level. Makers are of no consequence.
    """
    folder = tmp_path_factory.mktemp("shop")
    words = [*WORDS, *(f"{first} {second}" for first, second in itertools.combinations(WORDS[:10], 2))]
    names = itertools.product(TOPICS, words)
    items = [{"item_id": f"{t}-{w}", "title": f"{t} {t} {w} maker{i % 29}"} for i, (t, w) in enumerate(names)]
    generator = torch.Generator().manual_seed(0)
    events = []
    for user in range(96):
        early = torch.randperm(9, generator=generator)[:7].tolist()
        late = 9 + int(torch.randint(3, (), generator=generator))
        if user < len(TOPICS):
            early[0], late = 9, 10
        for day, word in enumerate((*early, late)):
            item = f"{TOPICS[user % len(TOPICS)]}-{WORDS[word]}"
            events.append({"user_id": f"u{user}", "item_id": item, "timestamp": (10 + day) * DAY_S})
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    (folder / "methods").mkdir()
    (folder / "methods" / "popularity.toml").write_text(
        '[retriever]\nclass = "tesserec.retrievers.popularity:Popularity"\n'
    )
    (folder / "suite.toml").write_text(SUITE.format(t1=16 * DAY_S, t2=17 * DAY_S))
    return folder


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    training = RQVAETraining(num_steps=20, batch_size=64, collapse_share=0.0)  # too short for codes to come into use
    monkeypatch.setattr(dsirm, "TRAINING", training)


def arguments(shop, tmp_path, *more):
    places = ["--data", str(shop), "--suite", str(shop / "suite.toml"), "--dataset", "shop"]
    return [*places, "--work", str(tmp_path / "work"), "--results", str(tmp_path), "--seeds", "1", *more]


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "claims.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("script", "cell", "least"),
    [
        (rq_fsq, "dense.seed0", 0.7),
        (cold_auc, "pieces_3840.seed0", 0.55),
        (expansion, "codes_50.seed0", 0.0),
        (crab, "split_10.seed0", 0.0),
        (dsirm, "base.seed0", 0.5),
    ],
)
def test_one_cell_is_run_once_and_recorded(script, cell, least, shop, tmp_path):
    name = script.__name__.rpartition(".")[2]
    for _ in range(2):
        assert script.main(arguments(shop, tmp_path, "--only", cell)) == 0
    (line,) = [line for line in lines(tmp_path) if ".cells." in line["figure"]]
    assert line["figure"] == f"claims.{name}.cells.{cell}"
    assert least <= line["low"] <= line["value"] <= line["high"] <= 1
    assert (line["dataset"], line["seeds"]) == ("shop", [0])
    assert line["command"] == f"python -m benchmarks.claims.{name} --data DATA --dataset shop --only '{cell}'"
    (file,) = (tmp_path / "work").iterdir()
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"commit": line["commit"]}


@pytest.mark.parametrize(
    ("script", "first", "second", "figures"),
    [
        (rq_fsq, "ids", "dense", {"rq_fsq.ids_over_dense": "auc"}),
        (cold_auc, "memory_3840", "hashed_3840", {"prefixmem.cold_auc": "cold_auc", "prefixmem.auc": "auc"}),
        (cold_auc, "pieces_3840", "hashed_3840", {"sentencepiece.cold_auc": "cold_auc", "sentencepiece.auc": "auc"}),
        (expansion, "codes_50", "hashed_50", {"expansion.recall50_over_hashed": "recall50"}),
        (crab, "split_10", "plain", {"crab.exposure_gap": "exposure", "crab.ndcg10": "ndcg10"}),
        (dsirm, "strong", "plain", {f"dsirm.{name}_strong": name for name in ("match_auc", "near_match_auc")}),
    ],
)
def test_a_figure_is_the_first_side_less_the_second(script, first, second, figures, shop, tmp_path):
    for only in (second, first):
        assert script.main(arguments(shop, tmp_path, "--only", f"{only}.*")) == 0
    found = {line["figure"]: line for line in lines(tmp_path)}
    sides = [load_file(next((tmp_path / "work").glob(f"*.{name}.seed0.*"))) for name in (first, second)]
    for figure, metric in figures.items():
        line = found[f"claims.{figure}"]
        assert line["value"] == pytest.approx(float((sides[0][metric] - sides[1][metric]).nanmean()))
        assert not torch.equal(sides[0][metric], sides[1][metric])
        assert line["low"] <= line["value"] <= line["high"]
        assert "arXiv" in line["protocol"]
    assert not any(name.startswith("claims.rq_fsq.auc_over") for name in found), "sides that were not run"


def drawn(variants, metrics, num_requests, num_items=96):
    """Two cells of each variant, of other values each; the first variant's lists hold one item only."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for place, name in enumerate(variants):
        found[name] = {}
        for seed in (0, 1):
            values = {m: torch.rand(num_requests, generator=generator, dtype=torch.float64) for m in metrics}
            values["lists"] = torch.randint(num_items, (num_requests, 10), generator=generator).double() * (place > 0)
            found[name][seed] = Cell(values, _record.commit(), is_new=True)
    return found


def mean(side, metric):
    return float(torch.stack([side[seed].values[metric] for seed in (0, 1)]).mean())


def sides_of(strengths, main, figures):
    """Name of each figure at each strength → its sides and metric."""
    return {
        name + ("" if end == main else f"_{end}"): (first, second, metric)
        for end, (first, second) in strengths.items()
        for name, metric in figures.items()
    }


RQ_FSQ = {
    **{"auc_over_dense_15x": ("rq_fsq_15x", "dense"), "auc_over_dense": ("rq_fsq_30x", "dense")},
    **{"auc_over_dense_60x": ("rq_fsq_60x", "dense"), "auc_over_ids": ("rq_fsq_30x", "ids")},
    **{f"auc_over_{name}": ("rq_fsq_30x", name) for name in ("kmeans_341x", "kmeans_30x")},
    **{f"{name}_over_dense": (name, "dense") for name in ("codes_fsq_30x", "wide_fsq_30x", "grid_33x", "ids")},
}
AUC = {name: name for name in ("cold_auc", "rare_auc", "auc")}
CRAB = {"exposure_gap": "exposure", **{name: name for name in ("code_exposure", "ndcg10", "recall10")}}
COLD = {
    **sides_of(
        {n: (f"memory_{n}", f"hashed_{n}") for n in (1536, 3840, 13056)},
        3840,
        {f"prefixmem.{name}": name for name in AUC},
    ),
    **sides_of(
        {n: (f"pieces_{n}", f"hashed_{n}") for n in (1536, 3840, 13056)},
        3840,
        {f"sentencepiece.{name}": name for name in AUC},
    ),
}
EXPANDED = {n: (f"codes_{n}", f"hashed_{n}") for n in (5, 50, 500)}
ASKED = {
    **sides_of(
        {name: (name, "plain") for name in ("queries", "weak", "base", "strong")},
        "base",
        {f"dsirm.{metric}": metric for metric in dsirm.METRICS},
    ),
    **{f"dsirm.ranker_auc_of_{name}_over_cosine": (name, "cosine", "ranker_auc") for name in dsirm.WEIGHTS},
}
SPLIT = {f"split_{n}": (f"split_{n}", "plain") for n in (5, 10, 20)}


@pytest.mark.parametrize(
    ("script", "wanted", "more"),
    [
        (rq_fsq, {f"rq_fsq.{name}": (*pair, "auc") for name, pair in RQ_FSQ.items()}, 1),
        (cold_auc, COLD, 0),
        (expansion, sides_of(EXPANDED, 50, {"expansion.recall50_over_hashed": "recall50"}), 3),
        (crab, sides_of(SPLIT, "split_10", {f"crab.{name}": metric for name, metric in CRAB.items()}), 4),
        (dsirm, ASKED, 0),
    ],
)
def test_every_figure_has_its_sides(script, wanted, more, shop, tmp_path):
    cells = cells_of(script.__name__.rpartition(".")[2], None, arguments(shop, tmp_path, "--seeds", "2"))
    variants = dict.fromkeys(name for first, second, _ in wanted.values() for name in (second, first))
    given = [crab.shop_of(cells)] if script is crab else []
    num_requests = len(given[0].holdout) if given else 50
    found = drawn(variants, {metric for *_, metric in wanted.values()}, num_requests)
    script.save(cells, *given, found)
    told = {line["figure"]: line for line in lines(tmp_path)}
    assert len(told) == len(wanted) + more
    for name, (first, second, metric) in wanted.items():
        line = told[f"claims.{name}"]
        assert line["value"] == pytest.approx(mean(found[first], metric) - mean(found[second], metric)), name
        assert "; cells of " not in line["protocol"]


def test_times_hashed_and_compression_are_ratios(shop, tmp_path):
    cells = cells_of("expansion", None, arguments(shop, tmp_path, "--seeds", "2"))
    found = drawn([name for pair in EXPANDED.values() for name in pair], {"recall50"}, 50)
    expansion.save(cells, found)
    found |= drawn(rq_fsq.VARIANTS, {"auc"}, 50)
    rq_fsq.save(cells, found)
    told = {line["figure"]: line for line in lines(tmp_path)}
    for end, (codes, hashed) in EXPANDED.items():
        line = told["claims.expansion.times_hashed" + ("" if end == 50 else f"_{end}")]
        assert line["value"] == pytest.approx(
            (mean(found[codes], "recall50") + 0.01) / (mean(found[hashed], "recall50") + 0.01)
        )
    assert told["claims.rq_fsq.compression"]["value"] == pytest.approx(256 * 32 / (62 * 4 + 3 * 8))


def test_the_gap_before_and_the_change_of_gini_by_hand(shop, tmp_path):
    cells = cells_of("crab", None, arguments(shop, tmp_path, "--seeds", "2"))
    given = crab.shop_of(cells)
    found = drawn(("plain", *SPLIT), set(CRAB.values()), len(given.holdout))
    crab.save(cells, given, found)
    told = {line["figure"]: line for line in lines(tmp_path)}
    counts_N = given.parts.train.item_counts()
    shares = []
    for seed in (0, 1):
        code_N = crab.plain_table(given, seed)[0].codes_NL[:, 1].long()
        events_C = torch.bincount(code_N, counts_N.double())
        over_C = events_C > 2 * events_C.sum() / (events_C > 0).sum()
        shares.append(float(events_C[over_C].sum() / events_C.sum()))
    line = told["claims.crab.exposure_gap_before"]
    assert 0.05 < min(shares) <= max(shares) < 0.95
    assert line["value"] == pytest.approx(mean(found["plain"], "exposure") - sum(shares) / 2)
    assert told["claims.crab.gini10"]["value"] < -0.1, "one item is shown before, many after"
    assert told["claims.crab.code_exposure"]["protocol"].startswith("change of the share of the first ten places of")


def test_a_figure_is_recorded_again_only_with_a_cell_that_was_run_now(shop, tmp_path):
    cells = cells_of("cold_auc", None, arguments(shop, tmp_path, "--seeds", "2"))
    found = drawn(("pieces_3840", "hashed_3840"), set(AUC), 50)
    empty = {f"{kind}_{n}": {} for kind in ("hashed", "memory", "pieces") for n in cold_auc.ROWS}

    def save(*commits):
        given = {
            name: {seed: Cell(cell.values, commit, is_new) for seed, cell in found[name].items()}
            for name, (commit, is_new) in zip(found, commits, strict=True)
        }
        cold_auc.save(cells, empty | given)
        return lines(tmp_path)

    old, now = "0123456789ab", _record.commit()
    assert len(save((now, False), (now, False))) == 3, "a script that was stopped before its figures"
    assert len(save((now, False), (now, False))) == 3
    told = save((old, False), (now, True))
    assert len(told) == 6
    assert all(line["protocol"].endswith(f"; cells of {', '.join(sorted((old, now)))}") for line in told[3:])


def test_an_unknown_data_set_is_refused(shop, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cells_of("crab", None, [*arguments(shop, tmp_path), "--dataset", "shoop"])
    assert "no data set 'shoop'" in capsys.readouterr().err


def test_withheld_items_come_last_and_nothing_else_changes(shop, tmp_path):
    cells = cells_of("expansion", None, arguments(shop, tmp_path))
    moved = expansion.withheld_last(cells)
    num_warm = len(moved.train.items)
    assert sorted(moved.catalog.items.ids.to_pylist()) == sorted(cells.catalog.items.ids.to_pylist())
    assert moved.catalog.frame["item_id"].to_list() == moved.catalog.items.ids.to_pylist()
    assert int(moved.train.item_counts().min()) > 0
    assert int(moved.holdout.requests.history.items.max()) < num_warm <= int(moved.holdout.relevant.values.min())
    bought = {
        (u, cells.interactions.items.ids[i].as_py())
        for u, i in zip(cells.interactions.user_E.tolist(), cells.interactions.item_E.tolist(), strict=True)
    }
    for user, item in zip(moved.train.user_E.tolist(), moved.train.item_E.tolist(), strict=True):
        assert (user, moved.train.items.ids[item].as_py()) in bought


def test_over_popular_items_and_their_share_of_lists_by_hand():
    table = SemanticIds(torch.tensor([[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 2, 1]]), (1, 3, 2), "books")
    items_N = crab.over_popular(table, torch.tensor([1, 1, 3, 2]))  # shares 1/7, 1/7, 5/7 of three codes in use
    assert items_N.tolist() == [False, False, True, True]
    lists_BK = torch.tensor([[0, 2, 3], [1, PAD, PAD], [PAD, PAD, PAD]])
    share_B = crab.share_of_lists(lists_BK, items_N)
    assert share_B[:2].tolist() == [pytest.approx(2 / 3), 0.0]
    assert share_B[2].isnan()


def test_held_out_items_answer_no_query_of_the_loss_and_all_that_are_judged(shop, tmp_path):
    given = dsirm.shop_of(cells_of("dsirm", None, arguments(shop, tmp_path)))
    judged, seen = given.judged, set(given.tables["query_items"][:, 1].tolist())
    num_held = round(dsirm.HELD_SHARE * len(given.vectors_NF))
    assert not seen & set(judged.items_MC.flatten().tolist())
    assert 1 < len(judged.items_MC.unique()) <= num_held
    assert judged.items_MC.shape[1] == 1 + dsirm.NUM_NEAR + dsirm.NUM_RANDOM
    assert bool(judged.legal_MC[:, 0].all())
    cosine_M = torch.cosine_similarity(given.queries_BF[judged.query_M], given.vectors_NF[judged.items_MC[:, 3]])
    assert torch.allclose(judged.cosine_MC[:, 3], cosine_M, atol=1e-5)
    answers = set(zip(judged.query_M.tolist(), judged.items_MC[:, 0].tolist(), strict=True))
    for query, items, legal in zip(judged.query_M.tolist(), judged.items_MC, judged.legal_MC, strict=True):
        own = [(query, item) in answers for item in items[1:].tolist()]
        assert legal[1:].tolist() == [not answer for answer in own]


def test_candidates_are_the_answer_its_neighbours_and_others(monkeypatch):
    monkeypatch.setattr(dsirm, "NUM_NEAR", 1)
    vectors = torch.tensor([[1.0, 0], [1, 0.01], [1, 0.1], [0, 1], [0.1, 1]])
    held = torch.tensor([True, False, True, True, True])
    found = dsirm.candidates(vectors, held, torch.tensor([2, 4, 0]))
    assert found[:, :2].tolist() == [[2, 0], [4, 3], [0, 2]]  # 1 is nearer to 0, but not held out
    assert set(found[:, 2:].flatten().tolist()) == {0, 2, 3, 4}


def test_tuples_are_nearest_first_and_begin_with_the_codes():
    features = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    model = RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(), num_latents=6, training=dsirm.TRAINING)
    model.fit(features, SideInformation())
    found = dsirm.tuples(model, features)
    assert found.shape == (200, dsirm.NUM_TUPLES, 2)
    assert all(len(one.unique(dim=0)) == dsirm.NUM_TUPLES for one in found)
    network = model._fitted()
    first, second = network.codebooks
    latents = network.latents(features)
    errors = torch.cdist(latents[:, None], (first[:, None] + second).flatten(0, 1)[None])[:, 0]
    own = errors.gather(1, found[..., 0] * 8 + found[..., 1])
    assert bool((own.diff(dim=1) >= -1e-5).all())
    share = ((own - errors.topk(dsirm.NUM_TUPLES, largest=False).values).abs() < 1e-5).float().mean()
    assert share > 0.9, "five prefixes of eight are nearly all that the best five tuples begin with"
    assert (found == model.encode(features)[:, None]).all(2).any(1).float().mean() > 0.9


def judged_of(query, items, legal=None, cosine=None):
    items = torch.tensor(items)
    legal = torch.ones_like(items, dtype=torch.bool) if legal is None else torch.tensor(legal)
    cosine = torch.zeros(items.shape) if cosine is None else torch.tensor(cosine)
    return dsirm.Judged(torch.tensor(query), items, legal, cosine)


def test_the_deepest_prefix_by_hand():
    tuples = torch.tensor([[[1, 2, 3], [1, 5, 6]], [[7, 2, 3], [0, 0, 0]]])
    codes = torch.tensor([[1, 5, 3], [1, 2, 3], [0, 2, 3], [7, 0, 3]])
    judged = judged_of([0, 1], [[0, 1, 2, 3], [0, 1, 2, 3]])
    assert dsirm.matched(tuples, codes, judged).tolist() == [[2, 3, 0, 0], [0, 0, 1, 1]]


def test_auc_of_a_query_by_hand():
    legal = [
        [True, True, True, False],
        [True, True, True, True],
        [True, False, False, True],
        [True, False, False, False],
    ]
    judged = judged_of([0, 1, 1, 2], [[0, 1, 2, 3]] * 4, legal)
    scores = torch.tensor([[2.0, 1, 2, 0], [1, 2, 2, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    found = dsirm.auc(scores, judged)
    assert found[:2].tolist() == [0.75, pytest.approx((1 / 3 + 1) / 2)]
    assert found[2].isnan()
    near = torch.tensor([[False, True, False, False]]).expand(4, 4)
    assert dsirm.auc(scores, judged, near)[:2].tolist() == [1.0, 0.0]


def test_a_ranker_learns_from_the_other_half_of_the_queries():
    generator = torch.Generator().manual_seed(0)
    depth = torch.randint(2, (200, 5), generator=generator)
    depth[:, 0] = 1
    judged = judged_of(
        list(range(200)), [[0, 1, 2, 3, 4]] * 200, cosine=torch.rand(200, 5, generator=generator).tolist()
    )
    found = dsirm.ranked(judged, 0, 1, depth)
    assert bool((found[depth == 1].min() > found[depth == 0].max()).all())
    changed = dsirm.ranked(judged, 0, 1, torch.cat([depth[:1].flip(1), depth[1:]]))
    half = torch.randperm(200, generator=torch.Generator().manual_seed(0)) % 2
    assert torch.equal((changed != found).any(1)[1:], (half != half[0])[1:]), "fitted with the first query"
    assert not torch.equal(dsirm.ranked(judged, 0), dsirm.ranked(judged, 1)), "halves are those of the seed"
