"""TREC's files: what others compute from them, and what comes back from them."""

import re

import ir_measures
import numpy as np
import pandas as pd
import pytest
import torch
from ir_measures import AP, Success
from PIL import Image

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data import benchmarks
from searle_lib.evaluation import rankings, scores
from searle_lib.servers import scoring, trec

METHOD = "Tuned 50% sum"
ODD = ["a b.png", "50%20.png", "100%.png", "c  d.png", "é.png", *(f"p{number}.png" for number in range(8))]


def own_data(folder):
    """A data set whose names hold white space and percent signs, with two targets in some rows."""
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(ODD):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / "images" / name)
    rows = [f"{ODD[row]},caption {row},{ODD[row + 1]}|{ODD[row + 3]},my query {row}" for row in range(9)]
    (folder / "odd.csv").write_text("\n".join(["reference,caption,target,query", *rows]), encoding="utf-8")
    return str(folder / "odd.csv")


@pytest.fixture(scope="module")
def study(world, tmp_path_factory):
    """Every benchmark of the drawn world and one of one's own, ranked by few distinct scores; its files and scores."""
    loaded = [
        one for of_split in benchmarks.load_all(["fashioniq", "cirr", "circo"], world).values() for one in of_split
    ]
    loaded += benchmarks.load(own_data(tmp_path_factory.mktemp("odd")), world, "val")
    random, tables, values = torch.Generator().manual_seed(0), [], []
    for benchmark in loaded:
        vectors = torch.randint(-1, 2, (len(benchmark.gallery), 3), generator=random).float() + 0.1
        gallery = Embeddings(benchmark.name, tuple(benchmark.gallery["image"]), vectors, "")
        queries = torch.nn.functional.normalize(torch.randn(len(benchmark.queries), 3, generator=random), dim=1)
        ranks = rankings.compare(benchmark, gallery, queries, rankings.DEPTH)
        tables.append(rankings.ranking_table(benchmark, ranks, METHOD))
        if benchmark.is_scored:
            values.append(scores.score_queries(benchmark, ranks, METHOD).assign(benchmark=benchmark.name))
    folder = tmp_path_factory.mktemp("runs")
    paths = trec.write_all(folder, pd.concat(tables), loaded)
    return loaded, pd.concat(tables), pd.concat(values), folder, paths


def scored(study):
    return [benchmark for benchmark in study[0] if benchmark.is_scored]


def stem(benchmark):
    return benchmark.name.replace("/", "-")


def test_each_benchmark_has_a_run_and_each_public_split_qrels(study):
    loaded, _, _, folder, paths = study
    runs = [f"{stem(b)}-{METHOD}.trec" for b in loaded] + [f"cirr-{s}-subset-{METHOD}.trec" for s in ("val", "test1")]
    assert sorted(path.name for path in paths) == sorted([*runs, *(f"{stem(b)}.qrels" for b in scored(study))])
    assert sorted(folder.iterdir()) == sorted(paths)


def test_ir_measures_gives_our_numbers(study):
    for benchmark in scored(study):
        qrels = list(ir_measures.read_trec_qrels(str(study[3] / f"{stem(benchmark)}.qrels")))
        run = list(ir_measures.read_trec_run(str(study[3] / f"{stem(benchmark)}-{METHOD}.trec")))
        values = study[2][study[2]["benchmark"] == benchmark.name]
        truths = benchmark.queries.set_index("query")["ground_truths"].map(len)
        for name in (name for name, under in benchmark.protocol.metrics if not under):
            kind, k = name.split("@")
            rows = values[(values["metric"] == name) & (values["category"] == benchmark.category)]
            few = rows[rows["query"].map(truths) <= int(k)] if kind == "mAP" else rows
            measure = Success(rel=2) @ int(k) if kind == "R" else AP @ int(k)
            theirs = {trec.unquote(one.query_id): one.value for one in ir_measures.iter_calc([measure], qrels, run)}
            assert len(few) and dict(zip(few["query"], few["value"], strict=True)) == pytest.approx(
                {query: theirs[query] for query in few["query"]}
            ), (benchmark.name, name)


def test_scores_fall_in_float32_and_stay_where_they_are_apart(study):
    for row in study[1].itertuples():
        lines = list(trec._run_lines(row.query, row.best, row.scores, "tag"))
        written = np.array([line.split()[4] for line in lines]).astype(np.float32)
        assert (np.diff(written) < 0).all() and np.allclose(written, row.scores, atol=1e-5)
        first = np.append(True, np.diff(row.scores) < -1e-4)  # of its group of equal scores
        assert (written[first] == np.asarray(row.scores)[first]).all()
    assert any(len(set(row.scores)) < len(row.scores) for row in study[1].itertuples())


def test_a_run_scores_as_the_study_did(study, world, tmp_path):
    for benchmark in scored(study):
        data = str(study[0][-1].gallery["path"][0].rpartition("/images/")[0]) + "/odd.csv"
        dataset = benchmark.dataset if benchmark.dataset != "odd" else data
        category = benchmark.category if dataset == "fashioniq" else None
        names = [f"{stem(benchmark)}-{METHOD}.trec"]
        names += [f"cirr-val-subset-{METHOD}.trec"] if dataset == "cirr" else []
        reports = [scoring.score(study[3] / name, dataset, world, category) for name in names]
        values = study[2][study[2]["benchmark"] == benchmark.name]
        values = values[values["category"].isin([benchmark.category, "subset"])]
        metrics = {name: value for report in reports for name, value in report["metrics"].items()}
        assert metrics == pytest.approx((values.groupby("metric")["value"].mean() * 100).to_dict(), abs=1e-4)
        if dataset == "cirr":
            subset = scoring.evaluate(study[3] / names[1], dataset, world)
            assert subset.rankings.empty and subset.scores["metric"].str.startswith("Rsubset").all()
        evaluation = scoring.evaluate(study[3] / names[0], dataset, world, category)
        table = study[1][(study[1]["dataset"] == benchmark.dataset) & (study[1]["category"] == benchmark.category)]
        table = table[table["split"] == "val"].set_index("query")["best"]
        assert {row.query: list(row.best) for row in evaluation.rankings.itertuples()} == table.map(list).to_dict()


def run_file(tmp_path, *lines):
    file = tmp_path / "mine.trec"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_a_run_is_sorted_by_score_and_equal_scores_by_rank(tmp_path):
    lines = ["b Q0 x 1 0.5 t", "a 0 y 3 -1e3 t", "a Q0 z 2 7 t", "b Q0 w%20%25 0 .5 t", "a Q0 x 1 -1000.0 t"]
    assert trec.is_run(run_file(tmp_path, *lines))
    assert trec.read_run(run_file(tmp_path, *lines)) == {"b": ["w %", "x"], "a": ["z", "x", "y"]}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a Q0 y 2 1", r"line 2 of \S+mine.trec has 5 fields, not 6; write lines of query, Q0, image"),
        ("a Q0 x 2 0.1 t", r"line 2 of \S+mine.trec has x of query a again; keep one of both\."),
        ("a Q0 y two 0.1 t", r"line 2 of \S+mine.trec has rank two and score 0.1; write lines"),
        ("a Q0 y 2 high t", r"line 2 of \S+mine.trec has rank 2 and score high; write lines"),
        ("a Q0 y 2 nan t", r"line 2 of \S+mine.trec has rank 2 and score nan; write lines"),
        ("a Q0 %00 2 0.1 t", r"line 2 of \S+mine.trec has '\\x00', which is no name; write lines"),
        ("\udcff", r"mine.trec is not a TREC run file"),
    ],
)
def test_a_run_that_is_not_right_is_refused_in_one_sentence(line, sentence, tmp_path):
    file = tmp_path / "mine.trec"
    file.write_bytes(f"a Q0 x 1 0.5 t\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=sentence) as refusal:
        trec.read_run(file)
    assert len(str(refusal.value).splitlines()) == 1 and re.search(r"; .*\.$", str(refusal.value))
