"""Vectors of another model, ranked and scored on the drawn world, held to a sort of each query's gallery."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import forbidden
from PIL import Image
from safetensors.torch import save_file

from searle_lib.data import benchmarks
from searle_lib.evaluation.intervals import summarise
from searle_lib.evaluation.scores import ASPECT_METRIC
from searle_lib.servers import scoring, vectors

WIDTH = 16


def random_vectors(benchmark, seed=0):
    """Vectors of the queries and of the images, by id; some images are alike."""
    random = np.random.default_rng(seed)
    ids = list(benchmark.gallery["image"])
    images = dict(zip(ids, random.normal(size=(len(ids), WIDTH)).astype(np.float32), strict=True))
    for first, second in zip(ids[::5], ids[1::5], strict=False):
        images[first] = images[second]
    queries = list(benchmark.queries["query"])
    return dict(zip(queries, random.normal(size=(len(queries), WIDTH)).astype(np.float32), strict=True)), images


def write(path, vectors_by_id, dtype=torch.float32, form="texts"):
    """A file in one of the forms."""
    tensor = torch.from_numpy(np.stack(list(vectors_by_id.values()))).to(dtype)
    ids = list(vectors_by_id)
    if form == "tensor":
        save_file({"ids": torch.tensor(list(map(int, ids))), "vectors": tensor}, path)
    elif form == "metadata":
        save_file({"vectors": tensor}, path, {"ids": json.dumps(ids)})
    else:
        np.savez(path, ids=list(map(int, ids)) if form == "integers" else ids, vectors=tensor.numpy())
    return path


def write_both(folder, benchmark, ending="npz", **arguments):
    queries, images = random_vectors(benchmark)
    places = folder / f"queries.{ending}", folder / f"gallery.{ending}"
    for place, one in zip(places, (queries, images), strict=True):
        write(place, one, **arguments)
    return places


def full_lists(benchmark, queries, images):
    """The whole gallery by falling cosine, equal ones in gallery order; no reference that takes no rank."""
    unit = {image: vector / np.linalg.norm(vector) for image, vector in images.items()}
    lists = {}
    for query in benchmark.queries.itertuples():
        vector = queries[query.query] / np.linalg.norm(queries[query.query])
        ordered = sorted(unit, key=lambda image: -round(float(unit[image] @ vector), 6))
        excluded = query.reference if benchmark.protocol.excludes_reference else None
        lists[query.query] = [image for image in ordered if image != excluded]
    return lists


@pytest.mark.parametrize(
    ("ending", "form", "dtype"),
    [
        ("npz", "texts", torch.float32),
        ("npz", "integers", torch.float64),
        ("npz", "texts", torch.float16),
        ("safetensors", "tensor", torch.float32),
        ("safetensors", "metadata", torch.bfloat16),
    ],
)
def test_vectors_of_every_form_score_as_full_lists_do(ending, form, dtype, world, tmp_path):
    (circo,) = benchmarks.load("circo", world, "val")
    places = write_both(tmp_path, circo, ending, form=form, dtype=dtype)
    queries, images = (
        {name: torch.from_numpy(vector).to(dtype).double().numpy() for name, vector in one.items()}
        for one in random_vectors(circo)
    )
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(full_lists(circo, queries, images)))
    evaluation = vectors.evaluate(*places, "circo", world)
    assert scoring.report(evaluation) == scoring.score(file, "circo", world)
    assert list(evaluation.rankings["best"][2]) == full_lists(circo, queries, images)["2"][:50]


@pytest.mark.parametrize(("dataset", "category"), [("cirr", None), ("fashioniq", "shirt")])
def test_vectors_follow_the_protocol_of_the_data_set(dataset, category, world, tmp_path):
    (benchmark,) = (b for b in benchmarks.load(dataset, world, "val") if category in (None, b.category))
    lists = full_lists(benchmark, *random_vectors(benchmark))
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(lists | ({"version": "rc2", "metric": "recall"} if dataset == "cirr" else {})))
    evaluation = vectors.evaluate(*write_both(tmp_path, benchmark), dataset, world, category)
    report = scoring.report(evaluation)
    assert report == scoring.score(file, dataset, world, category)
    assert ("Rsubset@1" in report["metrics"]) == (dataset == "cirr")  # the lists hold every whole group


def test_vectors_of_a_csv_file_are_ranked_too(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{number}.png")
    rows = [f"{row}.png,caption {row},{row + 1}.png,{row}.png|{row + 1}.png|8.png" for row in range(5)]
    (tmp_path / "mine.csv").write_text("\n".join(["reference,caption,target,group", *rows]))
    (mine,) = benchmarks.load("mine.csv", tmp_path, "val")
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(full_lists(mine, *random_vectors(mine))))
    evaluation = vectors.evaluate(*write_both(tmp_path, mine), "mine.csv", tmp_path)
    assert scoring.report(evaluation) == scoring.score(file, "mine.csv", tmp_path)
    assert "Rsubset@1" in scoring.report(evaluation)["metrics"]


def test_a_test_split_is_ranked_for_a_study_and_not_scored(world, tmp_path):
    (cirr,) = benchmarks.load("cirr", world, "test1")
    places = write_both(tmp_path, cirr)
    with pytest.raises(ValueError, match=r"holds queries of CIRR test1, whose targets are secret; add --name and --to"):
        vectors.evaluate(*places, "cirr", world)
    evaluation = vectors.evaluate(*places, "cirr", world, name="Mine")
    assert evaluation.scores.empty and scoring.report(evaluation)["metrics"] == {}
    lists = full_lists(cirr, *random_vectors(cirr))
    for row in evaluation.rankings.itertuples():
        assert list(row.best) == lists[row.query][:50] and row.rank == -1
        assert list(row.group) == [image for image in lists[row.query] if image in set(row.group)]


def test_the_intervals_are_those_of_a_study_with_other_methods(world, tmp_path):
    (circo,) = benchmarks.load("circo", world, "val")
    evaluation = vectors.evaluate(*write_both(tmp_path, circo), "circo", world, name="Mine")
    other = evaluation.scores.assign(method="Other", value=1 - evaluation.scores["value"])
    table = summarise(pd.concat([other, evaluation.scores]), "study", {"backbone": "", "sizes": {}})
    rows = table[(table["method"] == "Mine") & (table["category"] == "all")].set_index("metric")
    report = scoring.report(evaluation)
    assert len(rows) == len(report["metrics"]) == 8
    for metric, (low, high) in report["95 % intervals"].items():
        assert [report["metrics"][metric], low, high] == rows.loc[metric, ["value", "ci_low", "ci_high"]].tolist()
        assert low <= report["metrics"][metric] <= high
    assert report[f"{ASPECT_METRIC} by aspect"].keys() == {name for row in circo.queries["aspects"] for name in row}


def test_images_beyond_the_gallery_are_ignored_and_counted(world, tmp_path):
    (circo,) = benchmarks.load("circo", world, "val")
    queries, images = random_vectors(circo)
    place = write(tmp_path / "queries.npz", queries)
    whole = vectors.evaluate(place, write(tmp_path / "gallery.npz", images), "circo", world)
    extra = dict(reversed([*images.items(), *((str(10**6 + n), np.ones(WIDTH, np.float32)) for n in range(3))]))
    more = vectors.evaluate(place, write(tmp_path / "more.npz", extra), "circo", world)
    assert whole.notes == ()
    assert more.notes == (f"ignored images of {tmp_path / 'more.npz'}, which the gallery of circo/val lacks: 3.",)
    pd.testing.assert_frame_equal(more.rankings, whole.rankings)


def test_a_vector_of_any_length_but_zero_is_divided_by_its_norm(tmp_path):
    scales = [1e-40, 1e-20, 1.0, 1e18, 3e37]
    rows = {str(scale): np.array([3, 4], np.float32) * np.float32(scale) for scale in scales}
    _, unit = vectors.read(write(tmp_path / "x.npz", rows))
    assert unit.dtype == torch.float32 and np.allclose(unit, [[0.6, 0.8]] * len(scales), atol=1e-4)


def faulty(tmp_path, circo, edit):
    """Files of CIRCO after an edit of the queries' and the images' vectors."""
    queries, images = random_vectors(circo)
    edit(queries, images)
    return write(tmp_path / "queries.npz", queries), write(tmp_path / "gallery.npz", images)


FAULTS = {
    "a query is absent": (lambda q, g: q.pop("3"), r"queries.npz lacks query 3 of circo/val; add a vector for each\."),
    "images are absent": (
        lambda q, g: [g.pop(image) for image in list(g)[:4]],
        r"gallery.npz lacks image \d+ and 3 more of circo/val; add",
    ),
    "an id is no query": (lambda q, g: q.update(x=q["3"]), r"queries.npz has 'x', which is no query of CIRCO val; rem"),
    "no id is a query": (
        lambda q, g: [q.update({f"x{name}": q.pop(name)}) for name in list(q)],
        r"queries.npz has no query of CIRCO val or test, but x0 for example; write the query ids",
    ),
    "other widths": (
        lambda q, g: [q.update({name: q[name][:9]}) for name in q],
        r"queries.npz has vectors of 9 numbers and .*gallery.npz of 16; write both with the same model",
    ),
    "not finite": (
        lambda q, g: q.update({"3": q["3"] * np.nan}),
        r"the vector of 3 in .*queries.npz is not finite; compute it again\.",
    ),
    "zero": (lambda q, g: q.update({"5": q["5"] * 0}), r"the vector of 5 in .*queries.npz is zero; compute"),
    "an image twice": (
        lambda q, g: g.update({f"00{next(iter(g))}": next(iter(g.values()))}),
        r"gallery.npz has image '\d+' twice; write one vector for it\.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_vectors_that_do_not_fit_are_refused_in_one_sentence(fault, world, tmp_path):
    (circo,) = benchmarks.load("circo", world, "val")
    edit, sentence = FAULTS[fault]
    with pytest.raises(ValueError, match=sentence):
        vectors.evaluate(*faulty(tmp_path, circo, edit), "circo", world)


@pytest.mark.parametrize(
    ("name", "save", "sentence"),
    [
        ("x.npz", lambda path: path.write_bytes(b"PK no"), "is not a file of vectors"),
        ("x.safetensors", lambda path: path.write_bytes(b"\xff" * 99), "is not a file of vectors"),
        ("x.npz", lambda path: np.savez(path, ids=["a"], values=np.ones((1, 2))), "is not a file of vectors"),
        ("x.npz", lambda path: np.savez(path, ids=np.array([{}], object), vectors=np.ones((1, 2))), "is not a file of"),
        (
            "x.npz",
            lambda path: np.savez(path, ids=["a"], vectors=np.ones((1, 2), int)),
            r"shape \[1, 2\] and type torch.i",
        ),
        ("x.npz", lambda path: np.savez(path, ids=["a"], vectors=np.ones(2)), r"has vectors of shape \[2\]"),
        (
            "x.npz",
            lambda path: np.savez(path, ids=["a", "b"], vectors=np.ones((1, 2))),
            "1 vectors and 2 ids; write one",
        ),
        ("x.npz", lambda path: np.savez(path, ids=[0.5], vectors=np.ones((1, 2))), "neither texts nor integers; write"),
        ("x.safetensors", lambda path: save_file({"vectors": torch.ones(1, 2)}, path), "lacks ids; write vectors"),
        ("x.safetensors", lambda path: save_file({"ids": torch.ones(1)}, path), "lacks vectors; write vectors"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(name, save, sentence, tmp_path):
    save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / name))}.*{sentence}"):
        vectors.read(tmp_path / name)


def test_an_archive_that_swells_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "MAX_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", ids=["a"], vectors=np.zeros((1, 1 << 18)))
    monkeypatch.setattr(vectors.np, "load", forbidden(np.load))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 14
    with pytest.raises(ValueError, match=r"x.npz is not a file of vectors \(.*it holds 2,\d+,\d+ bytes, and may hold"):
        vectors.read(tmp_path / "x.npz")


def test_without_cocos_list_there_is_no_gallery_to_rank(world, tmp_path):
    (circo,) = benchmarks.load("circo", world, "val")
    places = write_both(tmp_path, circo)
    (tmp_path / "data" / "CIRCO").mkdir(parents=True)
    (tmp_path / "data" / "CIRCO" / "annotations").symlink_to(world / "CIRCO" / "annotations")
    with pytest.raises(FileNotFoundError, match=r"image_info_unlabeled2017.json of CIRCO val does not exist; put it"):
        vectors.evaluate(*places, "circo", tmp_path / "data")
