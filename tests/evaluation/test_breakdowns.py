"""Scores by k, caption length, similarity and category, held to loops over queries."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import leave_record, study_of
from safetensors.torch import save_file

from searle_lib.backbone.embeddings import IMAGES, Embeddings
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import breakdowns, intervals
from searle_lib.store.artefacts import write_json

TITLES = {"fashioniq": "FashionIQ", "cirr": "CIRR", "circo": "CIRCO"}
LEAD = {"FashionIQ": "R@10", "CIRR": "R@1", "CIRCO": "mAP@5"}
METHODS = ("SEARLE", "FTI4CIR")
PANELS = (("fashioniq", "dress", 20), ("fashioniq", "shirt", 45), ("fashioniq", "toptee", 12), ("circo", "all", 31))
WORDS = "the same but with one more blue star above a large wooden house near the river at night".split()


def benchmark_of(dataset, category, queries, random, split="val"):
    """Queries over a gallery of 40 images; the captions have three to seventeen words, many have the same number."""
    ids = [f"{dataset}-{category}-{i}" for i in range(40)]
    gallery = pd.DataFrame({"image": ids, "path": [f"{image}.png" for image in ids]})
    table = pd.DataFrame({"query": [f"{category}-{i}" for i in range(queries)]})
    picks = [random.choice(40, 2, replace=False) for _ in range(queries)]
    table["reference"] = [ids[reference] for reference, _ in picks]
    captions = [" ".join(WORDS[:length]) for length in random.integers(3, 18, queries)]
    table["sentences"] = [[caption, f"{caption} again and again"] for caption in captions]
    is_public = split == "val"
    table["target"] = [ids[target] if is_public else "" for _, target in picks]
    table["ground_truths"] = [[target] if target else [] for target in table["target"]]
    table["group"], table["aspects"] = [[] for _ in picks], [[] for _ in picks]
    return Benchmark(dataset, split, category, f"{dataset}/{split}/{category}", gallery, table, (queries, 40))


class World:
    """Benchmarks with random embeddings, rankings and scores of two methods."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.benchmarks = [benchmark_of(*panel, random) for panel in PANELS]
        self.benchmarks.append(benchmark_of("circo", "all", 4, random, split="test"))
        torch.manual_seed(0)
        self.galleries = {
            one.gallery_name: Embeddings(one.gallery_name, tuple(one.gallery["image"]), torch.randn(40, 6), "key")
            for one in self.benchmarks
        }
        rankings, scores = [], []
        for one in self.benchmarks:
            for method in METHODS:
                ranks = random.exponential(20, len(one.queries)).astype(int) if one.is_scored else -1
                table = one.queries[["query"]].assign(category=one.category, split=one.split, method=method)
                rankings.append(table.assign(dataset=one.dataset, rank=ranks))
                if one.is_scored:
                    title = TITLES[one.dataset]
                    value = (ranks < 10).astype(float) if title == "FashionIQ" else random.random(len(table))
                    scores.append(table.assign(dataset=title, metric=LEAD[title], value=value))
        circo = [table.assign(metric="mAP@10") for table in scores if table["dataset"].iat[0] == "CIRCO"]
        aspects = [table.head(9).assign(category="negation") for table in circo]
        self.rankings = pd.concat(rankings, ignore_index=True)
        self.scores = pd.concat([*scores, *circo, *aspects], ignore_index=True)


@pytest.fixture(scope="module")
def world():
    return World()


def test_recall_curves_agree_with_a_loop_over_queries(world):
    table = breakdowns.recall_curves(world.rankings, depth=30).set_index(["dataset", "method", "k"])["value"]
    assert len(table) == 2 * len(METHODS) * 30
    for (dataset, method, k), value in table.items():
        shares = []
        for name, category, _ in PANELS:
            if TITLES[name] == dataset:
                ranks = [
                    row.rank
                    for row in world.rankings.itertuples()
                    if (row.dataset, row.split, row.category, row.method) == (name, "val", category, method)
                ]
                shares.append(sum(rank < k for rank in ranks) / len(ranks))
        assert value == pytest.approx(100 * sum(shares) / len(shares))


def test_the_curve_goes_through_the_results(world):
    results = intervals.summarise(world.scores, "tiny", {"backbone": "tiny", "sizes": {}}, resamples=20)
    average = results[(results["category"] == "average") & (results["metric"] == "R@10")].set_index("method")["value"]
    curves = breakdowns.recall_curves(world.rankings)
    on_curve = curves[(curves["k"] == 10) & (curves["dataset"] == "FashionIQ")].set_index("method")["value"]
    assert on_curve.to_dict() == pytest.approx(average.to_dict(), abs=1e-4)
    assert list(curves["k"].unique()) == list(range(1, 51))


def test_properties_of_a_query_are_those_of_its_caption_and_its_images(world):
    table = breakdowns.query_properties(world.benchmarks, world.galleries)
    assert len(table) == sum(queries for *_, queries in PANELS)
    rows = iter(table.itertuples(index=False))
    for one in world.benchmarks[:4]:
        vectors = dict(zip(one.gallery["image"], world.galleries[one.gallery_name].vectors, strict=True))
        for query in one.queries.itertuples():
            cosine = F.cosine_similarity(vectors[query.reference], vectors[query.target], dim=0).item()
            expected = (TITLES[one.dataset], one.category, query.query, len(query.sentences[0].split(" ")), cosine)
            assert tuple(next(rows)) == pytest.approx(expected, abs=1e-6)


def test_a_study_gives_the_properties_of_what_02_concepts_kept(world, tmp_path):
    study = study_of(tmp_path, "02_concepts")
    benchmarks.keep(study, world.benchmarks, tmp_path)
    for name, gallery in world.galleries.items():

        def make(folder, gallery=gallery):
            save_file({"vectors": gallery.vectors}, folder / "embeddings.safetensors")
            write_json(folder / IMAGES, {"name": gallery.name, "ids": gallery.ids, "clip": ""})

        study.keep(f"embeddings/{name}", {"name": name}, make)
    leave_record(study, data_root=str(tmp_path))
    expected = breakdowns.query_properties(world.benchmarks, world.galleries)
    pd.testing.assert_frame_equal(breakdowns.read_properties(study_of(tmp_path, "07_results")), expected)


def naive_thirds(values):
    """The queries' places in three groups of about equal size, by counting how many values are smaller."""
    ordered = sorted(values)
    ends = [np.quantile(ordered, third) for third in (1 / 3, 2 / 3)]
    return [sum(value > end for end in ends) for value in values]


@pytest.mark.parametrize("name, digits", [("words", 0), ("similarity", 2)])
def test_terciles_agree_with_a_loop_over_queries(world, name, digits):
    properties = breakdowns.query_properties(world.benchmarks, world.galleries)
    table = breakdowns.by_tercile(world.scores, properties, name, resamples=20)
    assert list(table.columns) == breakdowns.COLUMNS
    expected = []
    for dataset in ("FashionIQ", "CIRCO"):
        rows = properties[properties["dataset"] == dataset]
        thirds = naive_thirds(rows[name].tolist())
        for third in range(3):
            members = [row for row, place in zip(rows.itertuples(), thirds, strict=True) if place == third]
            values = [getattr(row, name) for row in members]
            group = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
            keys = {(row.category, row.query) for row in members}
            for method in METHODS:
                scores = [
                    row.value
                    for row in world.scores.itertuples()
                    if (row.dataset, row.method, row.metric) == (dataset, method, LEAD[dataset])
                    and (row.category, row.query) in keys
                ]
                expected.append((dataset, group, len(members), method, LEAD[dataset], 100 * np.mean(scores)))
    columns = ["dataset", "group", "queries", "method", "metric", "value"]
    for row, wanted in zip(table[columns].itertuples(index=False, name=None), expected, strict=True):
        assert row[:5] == wanted[:5] and row[5] == pytest.approx(wanted[5])


def test_captions_of_equal_length_are_one_group(world):
    properties = breakdowns.query_properties(world.benchmarks, world.galleries).assign(words=7)
    table = breakdowns.by_tercile(world.scores, properties, "words", resamples=20)
    assert set(table["group"]) == {"7"} and set(table["queries"]) == {31, 77}


def test_intervals_of_a_group_agree_with_scipys_bootstrap(world):
    properties = breakdowns.query_properties(world.benchmarks, world.galleries).assign(words=7)
    table = breakdowns.by_tercile(world.scores, properties, "words", resamples=6000)
    (row,) = table[(table["dataset"] == "CIRCO") & (table["method"] == "SEARLE")].itertuples()
    is_row = (world.scores["metric"] == "mAP@5") & (world.scores["method"] == "SEARLE")
    expected = scipy.stats.bootstrap(
        (world.scores[is_row]["value"].to_numpy(),),
        np.mean,
        n_resamples=6000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = expected.high - expected.low
    assert (row.ci_low / 100, row.ci_high / 100) == pytest.approx(tuple(expected), abs=0.06 * width)


def test_a_query_without_properties_is_refused(world):
    properties = breakdowns.query_properties(world.benchmarks[1:], world.galleries)
    with pytest.raises(ValueError, match="queries with scores are in no benchmark of the study; run 06_retrieval"):
        breakdowns.by_tercile(world.scores, properties, "words", resamples=20)


def test_a_method_without_a_score_for_a_query_is_named(world):
    properties = breakdowns.query_properties(world.benchmarks, world.galleries)
    hole = world.scores[(world.scores["method"] == "SEARLE") & (world.scores["metric"] == "mAP@5")].index[3]
    with pytest.raises(ValueError):
        breakdowns.by_tercile(world.scores.drop(hole), properties, "words", resamples=20)


def test_categories_and_aspects_are_rows_of_the_results(world):
    results = intervals.summarise(world.scores, "tiny", {"backbone": "tiny", "sizes": {}}, resamples=20)
    table = breakdowns.by_category(results)
    assert list(table.columns) == breakdowns.COLUMNS
    groups = [("FashionIQ", name) for name in ("dress", "shirt", "toptee")] + [("CIRCO", "negation")]
    assert list(dict.fromkeys(table[["dataset", "group"]].itertuples(index=False, name=None))) == groups
    rows = world.scores[(world.scores["category"] == "negation") & (world.scores["method"] == "SEARLE")]
    value = table[(table["group"] == "negation") & (table["method"] == "SEARLE")]["value"]
    assert value.tolist() == pytest.approx([100 * rows["value"].mean()], abs=1e-4)


def test_rank_pairs_hold_both_ranks_of_every_query_with_public_targets(world):
    mixed = world.rankings.sample(frac=1, random_state=0)
    table = breakdowns.rank_pairs(mixed, "FTI4CIR", "SEARLE")
    ranks = {(TITLES[r.dataset], r.category, r.query, r.method): r.rank for r in mixed.itertuples() if r.split == "val"}
    assert len(table) == len(ranks) / 2
    for row in table.itertuples():
        key = (row.dataset, row.category, row.query)
        assert (row.first, row.second) == (ranks[*key, "FTI4CIR"], ranks[*key, "SEARLE"])


def test_an_unknown_method_is_refused_with_those_that_exist(world):
    with pytest.raises(ValueError, match="there are no rankings of SERALE; choose from SEARLE, FTI4CIR"):
        breakdowns.rank_pairs(world.rankings, "SERALE", "FTI4CIR")


def test_secret_targets_leave_empty_tables(world):
    secret = world.rankings[world.rankings["split"] == "test"]
    assert breakdowns.recall_curves(secret).empty and breakdowns.rank_pairs(secret, *METHODS).empty
    assert breakdowns.query_properties(world.benchmarks[4:], world.galleries).empty
