"""Folders of other models: what comes back from them, and what does not fit a study."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import study_of
from projects import ROOT

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data import benchmarks
from searle_lib.evaluation import other_models, rankings, scores
from searle_lib.evaluation.other_models import Evaluation, add, read_all, require_name, select
from searle_lib.store.artefacts import file_sha256
from searle_lib.study import workspace


def evaluation(benchmark, seed=0):
    """What random vectors retrieve."""
    random = torch.Generator().manual_seed(seed)
    gallery = Embeddings(
        "", tuple(benchmark.gallery["image"]), torch.randn(len(benchmark.gallery), 8, generator=random), ""
    )
    queries = torch.nn.functional.normalize(torch.randn(len(benchmark.queries), 8, generator=random), dim=1)
    ranks = rankings.compare(benchmark, gallery, queries, rankings.DEPTH)
    table = scores.score_queries(benchmark, ranks, "Mine")
    table = table if benchmark.is_scored else table.iloc[:0]
    return Evaluation(benchmark, table, rankings.ranking_table(benchmark, ranks, "Mine"))


@pytest.fixture(scope="module")
def loaded(world):
    """The benchmarks of a study, by name."""
    splits = benchmarks.load_all(["fashioniq", "cirr", "circo"], world)
    return {benchmark.name: benchmark for of_split in splits.values() for benchmark in of_split}


@pytest.fixture
def source(tmp_path):
    """A file that an evaluation may come from."""
    (tmp_path / "lists.json").write_text("{}")
    return [tmp_path / "lists.json"]


def of_kind(one, kind):
    """The part of a CIRR evaluation that one of the server's two files gives."""
    is_subset = one.scores["metric"].str.startswith("Rsubset")
    if kind == "recall":
        return Evaluation(one.benchmark, one.scores[~is_subset], one.rankings)
    return Evaluation(one.benchmark, one.scores[is_subset], one.rankings[:0])


def rows(table):
    """A table's rows as text, in any order."""
    return sorted(
        table.map(lambda cell: list(cell) if hasattr(cell, "__len__") else cell).astype(str).agg("|".join, axis=1)
    )


def assert_same(model, *evaluations):
    for kind in ("scores", "rankings"):
        tables = [pd.concat([getattr(one, kind) for one in ones]) for ones in (model.parts, evaluations)]
        assert rows(tables[0]) == rows(tables[1])


def test_a_folder_gives_back_what_was_added(loaded, source, tmp_path):
    evaluations = [evaluation(loaded[name]) for name in ("circo/val", "circo/test", "cirr/val")]
    for one in evaluations:
        add(tmp_path / "mine", "Mine", one, source)
    (model,) = read_all(["mine"], [], tmp_path)
    assert model.name == "Mine" and [part.benchmark for part in model.parts] == ["circo/test", "circo/val", "cirr/val"]
    assert_same(model, *evaluations)
    selected, notes = select(model, [loaded["cirr/val"], loaded["circo/val"]])
    assert notes == ["Mine: circo/test is left out, since the study does not evaluate it."]
    assert_same(selected, evaluations[0], evaluations[2])


@pytest.mark.parametrize("order", [("recall", "subset"), ("subset", "recall")])
def test_cirrs_two_files_fill_one_place_in_any_order_and_a_later_one_replaces_its_part(order, loaded, source, tmp_path):
    old, new = (evaluation(loaded["cirr/val"], seed) for seed in (1, 2))
    for kind in order:
        add(tmp_path / "mine", "Mine", of_kind(old, kind), source)
    assert_same(read_all(["mine"], [], tmp_path)[0], old)
    add(tmp_path / "mine", "Mine", of_kind(new, "recall"), source)
    expected = Evaluation(
        old.benchmark, pd.concat([of_kind(old, "subset").scores, of_kind(new, "recall").scores]), new.rankings
    )
    assert_same(read_all(["mine"], [], tmp_path)[0], expected)
    add(tmp_path / "mine", "Mine", new, source)
    assert_same(read_all(["mine"], [], tmp_path)[0], new)
    add(tmp_path / "mine", "Mine", of_kind(old, "recall"), source)  # its groups were not of a file of their own
    assert_same(read_all(["mine"], [], tmp_path)[0], of_kind(old, "recall"))


def test_the_key_and_the_code_of_06_change_with_what_a_folder_holds_and_with_nothing_else(loaded, source, tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    hashes, digests = [], []
    for seed in (1, 1, 2):
        add(tmp_path / "mine", "Mine", evaluation(loaded["circo/val"], seed), source)
        hashes += other_models.sha256(["mine"], tmp_path)
        digests.append(workspace.notebook_digest(tmp_path, "06_retrieval", {"other_models": ["mine"]}))
    assert hashes[0] == hashes[1] != hashes[2] and digests[0] == digests[1] != digests[2]
    assert other_models.sha256(["absent"], tmp_path) == [""] and other_models.sha256([], tmp_path) == []


@pytest.mark.parametrize("name", ["", "a/b", "x" * 61, "SEARLE", "a\nb"])
def test_a_name_that_cannot_stand_in_a_table_is_refused(name, tmp_path):
    with pytest.raises(
        ValueError, match=r"--name is .*; write a short text without / that is not the name of a method"
    ):
        require_name(tmp_path, name)


def test_a_folder_belongs_to_one_model(loaded, source, tmp_path):
    add(tmp_path / "mine", "Mine", evaluation(loaded["circo/val"]), source)
    with pytest.raises(ValueError, match=r"mine holds scores of Mine; name another folder for Yours, or delete it\."):
        add(tmp_path / "mine", "Yours", evaluation(loaded["cirr/val"]), source)


def test_two_models_or_a_method_of_ones_own_may_not_share_a_name(loaded, source, tmp_path):
    for folder in ("mine", "again"):
        add(tmp_path / folder, "Mine", evaluation(loaded["circo/val"]), source)
    with pytest.raises(ValueError, match=r"again holds scores of Mine, and \S+mine has that name, too; score it again"):
        read_all(["mine", "again"], [], tmp_path)
    (tmp_path / "methods.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(ValueError, match=r"mine holds scores of Mine, and a method of the study has that name, too"):
        read_all(["mine"], ["SEARLE", "methods.py:Mine"], tmp_path)


def without_a_column(folder):
    """A table of another program, with its hash."""
    file = folder / "circo-val.json"
    table = folder / "circo-val-scores.parquet"
    old = file_sha256(table)
    pd.read_parquet(table).drop(columns="metric").to_parquet(table)
    file.write_text(file.read_text().replace(old, file_sha256(table)))


DAMAGES = {
    "no folder": (
        lambda folder: [file.unlink() for file in folder.iterdir()],
        r"mine holds no scores of a model; write",
    ),
    "a cut table": (
        lambda folder: (folder / "circo-val-scores.parquet").write_bytes(b"PAR1"),
        r"circo-val-scores.parquet has changed since circo-val.json was written; delete its folder, and",
    ),
    "no table": (
        lambda folder: (folder / "circo-val-rankings.parquet").unlink(),
        r"circo-val-rankings.parquet does not exist; delete its folder, and",
    ),
    "no column": (without_a_column, r"circo-val-scores.parquet lacks one of the columns category, d"),
    "no JSON": (
        lambda folder: (folder / "circo-val.json").write_text("{"),
        r"circo-val.json does not say what scores these are .*; delete its folder, and",
    ),
    "other JSON": (
        lambda folder: (folder / "circo-val.json").write_text('{"name": 1}'),
        r"circo-val.json lacks one of name",
    ),
    "two models": (
        lambda folder: (folder / "a.json").write_text((folder / "circo-val.json").read_text().replace("Mine", "Yours")),
        r"a-scores.parquet does not exist; delete its folder, and",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_absent_or_damaged_is_refused_in_one_sentence(damage, loaded, source, tmp_path):
    add(tmp_path / "mine", "Mine", evaluation(loaded["circo/val"]), source)
    edit, sentence = DAMAGES[damage]
    edit(tmp_path / "mine")
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        read_all(["mine"], [], tmp_path)


def other(benchmark, queries=None, gallery=None):
    """The same benchmark with other tables."""
    queries, gallery = (
        own if one is None else one for own, one in ((benchmark.queries, queries), (benchmark.gallery, gallery))
    )
    return benchmarks.Benchmark(*benchmark.name.split("/"), "all", "", gallery, queries, (0, 0))


MISFITS = {
    "a query less": (
        lambda one: other(one, queries=one.queries.iloc[1:].reset_index(drop=True)),
        r"mine: of circo/val it has query 0, which the study lacks \(1 in all\); score the model on",
    ),
    "a query more": (
        lambda one: other(one, queries=pd.concat([one.queries, one.queries.iloc[:2].assign(query=["98", "99"])])),
        r"mine: of circo/val it lacks query 98 \(2 in all\); score the model on the data of the study",
    ),
    "another target": (
        lambda one: other(one, queries=one.queries.assign(target=one.queries["reference"])),
        r"mine: the queries of circo/val have changed since it was scored; score it again",
    ),
    "a smaller gallery": (
        lambda one: other(one, gallery=one.gallery.iloc[:60]),
        r"mine: it was scored on another gallery of circo/val than the study's 60 images; set fashioniq_gallery",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_scores_of_other_queries_or_images_are_refused_in_one_sentence(misfit, loaded, source, tmp_path):
    add(tmp_path / "mine", "Mine", evaluation(loaded["circo/val"]), source)
    edit, sentence = MISFITS[misfit]
    with pytest.raises(ValueError, match=sentence):
        select(read_all(["mine"], [], tmp_path)[0], [edit(loaded["circo/val"])])


def test_an_image_outside_of_the_gallery_is_refused_where_the_list_of_images_was_absent(loaded, source, tmp_path):
    scored = evaluation(loaded["circo/val"])
    unlisted = replace(scored, benchmark=other(scored.benchmark, gallery=scored.benchmark.gallery.iloc[:0]))
    add(tmp_path / "mine", "Mine", unlisted, source)
    (model,) = read_all(["mine"], [], tmp_path)
    assert select(model, [loaded["circo/val"]])[0].parts == model.parts
    with pytest.raises(ValueError, match=r"mine: it ranks image \d+, which the study's gallery of circo/val lacks \("):
        select(model, [other(loaded["circo/val"], gallery=loaded["circo/val"].gallery.iloc[:60])])


def test_a_part_of_fashioniqs_categories_and_a_model_without_the_studys_splits_are_refused(loaded, source, tmp_path):
    categories = [one for name, one in loaded.items() if name.startswith("fashioniq")]
    for one in categories[:2]:
        add(tmp_path / "mine", "Mine", evaluation(one), source)
    (model,) = read_all(["mine"], [], tmp_path)
    with pytest.raises(ValueError, match=r"mine lacks fashioniq/val/toptee, without which there is no average; score"):
        select(model, categories)
    with pytest.raises(
        ValueError, match=r"mine holds scores of fashioniq/val/dress, fashioniq/val/shirt, and the study"
    ):
        select(model, [loaded["circo/val"]])


def test_a_study_keeps_the_rows_of_its_models_under_a_key_of_their_own(loaded, source, tmp_path):
    circo, cirr = loaded["circo/val"], loaded["cirr/val"]
    add(tmp_path / "mine", "Mine", evaluation(circo), source)
    add(tmp_path / "mine", "Mine", of_kind(evaluation(cirr), "subset"), source)
    study = study_of(tmp_path, "06_retrieval")
    study.values |= {"other_models": ["mine"], "methods": []}
    models, notes = other_models.read(study, [circo, cirr])
    assert notes == []
    values, ranked = scores.keep_scores(study, [], models)
    assert set(values["method"]) == set(ranked["method"]) == {"Mine"} and set(ranked["dataset"]) == {"circo"}
    assert set(values["dataset"]) == {"CIRCO", "CIRR"}
    (manifest,) = (tmp_path / "artefacts").glob("scores-*/manifest.json")
    facts = json.loads(manifest.read_text())["facts"]
    assert facts.pop("models") == [model.sha256 for model in models] == other_models.sha256(["mine"], tmp_path)
    assert facts.keys() == {"code"}  # as in a study without other models
