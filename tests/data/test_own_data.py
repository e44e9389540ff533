"""A folder of pictures and a CSV as a data set: what is read, and what is refused in one sentence."""

import csv
import json
import re
import shlex
import shutil
import time
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from conftest import study_of
from PIL import Image
from projects import ROOT, command, run

from searle_lib.check import findings
from searle_lib.data import benchmarks, own_data
from searle_lib.evaluation import intervals, scores
from searle_lib.evaluation.rankings import Rankings
from searle_lib.servers import scoring
from searle_lib.store.reading import FileRefused

COLUMNS = ("reference", "caption", "target")
PAGE = (
    (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## Your own data")[2].partition("\n## ")[0]
)


def draw(folder, names):
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * place % 256, 90, 160)).save(folder / name)


def write(file, rows, columns=COLUMNS, names=("a.png", "b.png", "c.png", "deep/d.jpg")):
    """A data set with these rows and pictures; the file, relative to its data root."""
    draw(file.parent / "images", names)
    with file.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text).writerows([columns, *rows])
    return file


def load(file):
    (benchmark,) = benchmarks.load(file.name, file.parent, "val")
    return benchmark


def test_a_row_is_a_query_and_every_picture_is_in_the_gallery(tmp_path):
    file = write(tmp_path / "mine.csv", [("a.png", "is red", "b.png"), ("deep/d.jpg", "is blue", "./a.png")])
    draw(file.parent / "images", ["e.PNG", ".thumbs/f.png"])
    (file.parent / "images" / "notes.txt").write_text("no picture")
    benchmark = load(file)
    assert (benchmark.name, benchmark.gallery_name, benchmark.is_scored) == ("mine/val", "mine/val", True)
    assert benchmark.gallery["image"].tolist() == ["a.png", "b.png", "c.png", "deep/d.jpg", "e.PNG"]
    assert all(Path(path).is_file() for path in benchmark.gallery["path"])
    assert benchmark.queries.iloc[1].to_dict() == {
        "query": "2",
        "reference": "deep/d.jpg",
        "sentences": ["is blue"],
        "target": "a.png",
        "ground_truths": ["a.png"],
        "group": [],
        "aspects": [],
    }
    assert [name for name, _ in benchmark.protocol.metrics] == ["R@1", "R@5", "R@10", "R@50"]
    assert benchmark.protocol.title == "mine" and benchmark.protocol.excludes_reference


def test_the_optional_columns_give_ids_groups_categories_and_a_split(tmp_path):
    columns = (*COLUMNS, "query", "group", "category", "split")
    rows = [
        ("a.png", "is red", "b.png|c.png", "q1", "a.png|b.png|c.png", "colour|size", "val"),
        ("a.png", "is blue", "c.png", "q2", "a.png|c.png", "", "test"),
    ]
    benchmark = load(write(tmp_path / "mine.csv", rows, columns))
    assert len(benchmark.queries) == 1 and benchmark.size == benchmark.full_size == (1, 4)
    query = benchmark.queries.iloc[0]
    assert (query["query"], query["target"], query["ground_truths"]) == ("q1", "b.png", ["b.png", "c.png"])
    assert (query["group"], query["aspects"]) == (["b.png", "c.png"], ["colour", "size"])
    kinds = [name.split("@")[0] for name, _ in benchmark.protocol.metrics]
    assert kinds == ["R"] * 4 + ["mAP"] * 4 + ["Rsubset"] * 3


def test_a_caption_may_hold_commas_quotes_and_newlines(tmp_path):
    caption = 'is "red",\nand has 2 of them; ½'
    benchmark = load(write(tmp_path / "mine.csv", [("a.png", caption, "b.png")]))
    assert benchmark.queries["sentences"][0] == [caption]
    content = (tmp_path / "mine.csv").read_text(encoding="utf-8")
    (tmp_path / "mine.csv").write_text(content + "\n\n", encoding="utf-8-sig")  # as spreadsheets save it
    assert load(tmp_path / "mine.csv").key == benchmark.key


ROW = ("a.png", "is red", "b.png")
FAULTS = {
    "no target column": ([("a.png", "is red")], COLUMNS[:2], "has no column target .*; add the column"),
    "another column": (
        [(*ROW, "x")],
        (*COLUMNS, "spilt"),
        "has a column 'spilt', which is none of reference, .*remove",
    ),
    "a column twice": ([(*ROW, "x")], (*COLUMNS, "caption"), "has a column 'caption' twice; remove it"),
    "no rows": ([], COLUMNS, "has no row below its columns; write one for each query"),
    "no row of val": ([(*ROW, "test")], (*COLUMNS, "split"), "has no row of split val; write one"),
    "an unknown split": ([(*ROW, "dev")], (*COLUMNS, "split"), "line 2 .* has the split 'dev'; write train or val or"),
    "an absent picture": ([("z.png", "is red", "b.png")], COLUMNS, "line 2 .* the reference 'z.png', .* 4 pictures of"),
    "an unknown target": ([("a.png", "is red", "b.png|z.png")], COLUMNS, "line 2 .* has the target 'z.png', .*correct"),
    "an empty target": ([("a.png", "is red", "b.png|")], COLUMNS, "line 2 .* has an empty target; name a picture"),
    "outside, above": ([("../a.png", "is red", "b.png")], COLUMNS, "'../a.png', which is outside of images; put"),
    "outside, absolute": ([("a.png", "is red", "/b.png")], COLUMNS, "target '/b.png', which is outside of images; put"),
    "a target twice": ([("a.png", "is red", "b.png|./b.png")], COLUMNS, "names a picture twice in its target"),
    "its own target": ([("a.png", "is red", "a.png")], COLUMNS, "has its reference a.png as a target; remove it"),
    "a query twice": ([ROW, ROW], COLUMNS, "line 3 .* stands there before; remove one, or add a column query"),
    "an id twice": ([(*ROW, "1"), ("b.png", "is", "a.png", "1")], (*COLUMNS, "query"), "line 3 .* has the query '1'"),
    "an empty id": ([(*ROW, " ")], (*COLUMNS, "query"), "line 2 .* has the query ' ', which must be a name"),
    "an empty caption": ([("a.png", " \n", "b.png")], COLUMNS, "line 3 .* has no caption; write what is to change"),
    "a bare comma": ([("a.png", "is red", "b.png", "c.png")], COLUMNS, "line 2 .* has 4 fields, not 3; put quotes"),
    "no target in a group": ([(*ROW, "a.png|c.png")], (*COLUMNS, "group"), "target b.png, which is not in its group"),
    "a row without a group": ([(*ROW, "")], (*COLUMNS, "group"), "line 2 .* has an empty group; name a picture"),
    "a reserved category": ([(*ROW, "all")], (*COLUMNS, "category"), "has the category 'all'; write printable names"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_a_fault_is_refused_in_a_sentence(fault, tmp_path):
    rows, columns, sentence = FAULTS[fault]
    file = write(tmp_path / "mine.csv", rows, columns)
    with pytest.raises(ValueError, match=sentence) as refusal:
        load(file)
    assert str(file) in str(refusal.value)


def test_what_is_no_csv_and_what_is_absent_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine.csv does not exist; correct its name in datasets"):
        benchmarks.load("mine.csv", tmp_path, "val")
    file = write(tmp_path / "mine.csv", [ROW])
    with pytest.raises(ValueError, match="mine has no split test; use val"):
        benchmarks.load("mine.csv", tmp_path, "test")
    file.write_bytes("reference,caption,target\na.png,größer,b.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine.csv is not a valid CSV file .*; write it in UTF-8, with quotes around"):
        load(file)
    file.write_text('reference,caption,target\na.png,"is "red",b.png\n')
    with pytest.raises(ValueError, match=r"mine.csv is not a valid CSV file .*; write it in UTF-8, with quotes around"):
        load(file)
    draw(tmp_path / "images", ["x|y.png"])
    with pytest.raises(ValueError, match=r"images holds a picture 'x\|y.png'; rename it: printable, and without \|"):
        load(file)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"images does not exist; put the pictures of mine.csv there"):
        load(file)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"images holds no pictures .*; put those of mine.csv there"):
        load(file)


def test_broken_files_are_read_or_refused_in_a_sentence_with_the_files_name(tmp_path):
    columns = (*COLUMNS, "query", "group", "category", "split")
    row = ("a.png", 'is "red"', "b.png|c.png", "q1", "a.png|b.png", "warm", "val")
    file, random = write(tmp_path / "mine.csv", [row], columns), Random(0)
    whole, refused = file.read_bytes(), 0
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            place = random.randrange(len(content))
            content[place : place + random.randint(0, 6)] = random.choice(
                [b"", b'"', b",", b"|", b"\0", b"\xff", b"\n/"]
            )
        file.write_bytes(bytes(content))
        try:
            load(file)
        except FileRefused as refusal:
            refused += 1
            assert str(file) in str(refusal) and str(refusal).isprintable() and str(refusal).endswith(".")
    assert 0 < refused < 600


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_read_in_seconds(tmp_path):
    names = [f"{place:05}.png" for place in range(100_000)]
    write(tmp_path / "mine.csv", [(a, "is red", b) for a, b in zip(names, [*names[1:], names[0]], strict=True)])
    for name in names:
        (tmp_path / "images" / name).touch()
    start = time.process_time()
    assert load(tmp_path / "mine.csv").size == (100_000, 100_004)
    assert time.process_time() - start < 10  # measured: 2


def test_the_running_example_of_a_data_root_without_published_data_is_an_own_query(tmp_path):
    (tmp_path / "other.csv").write_text("/m/1,thing\n")  # as a vocabulary
    file = write(tmp_path / "mine" / "mine.csv", [ROW])
    assert benchmarks.first_example(tmp_path).query["reference"] == "a.png"
    own = load(file)
    assert benchmarks.example([own]).benchmark is own
    assert [str(path) for path in own_data.list_files(tmp_path)] == [str(file)]


def own_scores(benchmark, rank_of):
    import torch

    count = len(benchmark.queries)
    sizes = benchmark.queries["ground_truths"].map(len)
    parts = []
    for method, first in rank_of.items():
        target = torch.full((count,), first)
        truths = torch.tensor(
            [[first + place if place < size else -1 for place in range(sizes.max())] for size in sizes]
        )
        empty = torch.empty(count, 0)
        rankings = Rankings(target, truths, empty, target, top=empty, scores=empty)
        parts.append(scores.score_queries(benchmark, rankings, method))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("target", "lead", "main"),
    [("b.png", "R@1", ["R@1", "R@10"]), ("b.png|c.png", "mAP@10", ["mAP@10", "R@1", "R@10"])],
)
def test_the_metrics_follow_from_the_number_of_targets(tmp_path, target, lead, main):
    rows = [("a.png", f"is {n}", target, "warm" if n % 2 else "cold") for n in range(4)]
    table = own_scores(load(write(tmp_path / "mine.csv", rows, (*COLUMNS, "category"))), {"One": 0, "Two": 7})
    results = intervals.summarise(table, "s", {"backbone": "b", "sizes": {}}, resamples=20)
    assert [metric for *_, metric in intervals.main_panels(results)] == main
    assert intervals.lead_metrics(results) == {"mine": lead}
    assert intervals.aspects(results, "mine") == {"warm", "cold"}
    by_category = results[results["category"] == "warm"]
    assert set(by_category["metric"]) == {"mAP@10" if "|" in target else "R@10"} and set(by_category["queries"]) == {2}


def test_check_counts_an_own_data_set_and_misses_no_published_number(tmp_path):
    file = write(tmp_path / "data" / "mine.csv", [ROW])
    values = {"data_root": str(file.parent), "world": "real", "missing_images": "error", "workers": 1}
    values |= {
        "datasets": ["mine.csv"],
        "evaluate": ["validation"],
        "fashioniq_gallery": "split",
        "methods": ["Text-only"],
    }
    study = study_of(tmp_path)
    results = list(findings.check_data(values | {"phi_checkpoint": "last"}, study))
    assert [(one.subject, one.expected, one.observed) for one in results] == [
        ("mine/val: queries", "", "1"),
        ("mine/val: images", "", "4 listed, 4 readable"),
    ]
    assert not any(one.notes or one.problems for one in results)
    (absent,) = findings.check_data(values | {"datasets": ["no.csv"], "phi_checkpoint": "last"}, study)
    assert absent.observed == "absent" and not absent.notes


def test_predictions_for_an_own_data_set_are_scored_from_a_file(tmp_path):
    write(tmp_path / "mine.csv", [("a.png", "is red", "b.png|c.png"), ("b.png", "is blue", "deep/d.jpg")])
    file = tmp_path / "predictions.json"
    lists = {"1": ["c.png", "b.png", "deep/d.jpg"], "2": ["a.png", "deep/d.jpg", "c.png"]}
    file.write_text(json.dumps(lists))
    scored = scoring.score(file, "mine.csv", tmp_path)
    assert (scored["dataset"], scored["split"], scored["queries"]) == ("mine", "val", 2)
    assert list(scored["metrics"]) == [f"R@{k}" for k in (1, 5, 10, 50)] + [f"mAP@{k}" for k in (5, 10, 25, 50)]
    assert (scored["metrics"]["R@1"], scored["metrics"]["R@5"], scored["metrics"]["mAP@5"]) == (0, 100, 75)
    for change, sentence in (
        (
            {"1": ["a.png", "b.png", "c.png"]},
            "query 1 of predictions.json lists a.png, its own reference; leave it out",
        ),
        ({"1": ["b.png", "c.png"]}, "query 1 of predictions.json lists 2 images; list at least 3 different images"),
        ({"3": lists["1"]}, "query 3 of predictions.json is not a query of mine val; remove it"),
    ):
        file.write_text(json.dumps(lists | change))
        with pytest.raises(ValueError, match=sentence):
            scoring.score(file, "mine.csv", tmp_path)
    file.write_text(json.dumps(list(lists)))
    with pytest.raises(ValueError, match=r"predictions.json is a list; write an object"):
        scoring.score(file, "mine.csv", tmp_path)


def page_example(folder):
    """The page's files in a project's folder, with pictures of these names, and the command that it prints."""
    (path,) = re.findall(r"`(\S+\.csv)`:\n\n```csv", PAGE)
    (content,) = re.findall(r"```csv\n(.*?)```", PAGE, re.S)
    file = folder / path
    rows = list(csv.DictReader(content.splitlines()))
    names = {name for row in rows for name in [row["reference"], *row["target"].split("|")]}
    draw(file.parent / "images", [*sorted(names), "other.png"])
    file.write_text(content, encoding="utf-8")
    (line,) = re.findall(r"```\n(\.venv/bin/python -m searle_lib run .*?)\n```", PAGE, re.S)
    return path, line.replace("\\\n", " ")


def test_the_pages_example_is_read_as_printed(tmp_path):
    path, _ = page_example(tmp_path)
    (benchmark,) = benchmarks.load(path, tmp_path, "val")
    assert len(benchmark.queries) == 3 and benchmark.queries["ground_truths"].map(len).max() == 2


@pytest.mark.slow
def test_the_pages_study_runs_as_printed_and_one_of_own_data_alone(quick, world, tmp_path):
    project = shutil.copytree(quick[0], tmp_path / "project", symlinks=True)
    shutil.copytree(world, project / "data" / "mini")
    path, line = page_example(project)
    quick_file = project / "params" / "quick.yaml"
    quick_file.write_text(quick_file.read_text().replace(f"data_root: {world}\n", "data_root: data/mini\n"))
    shutil.copy(quick_file, project / "params" / "mini.yaml")  # the page's parameter file, cut to seconds
    done = command(project, *shlex.split(line)[3:])
    assert done.returncode == 0, done.stderr
    title = Path(path).stem
    assert f"{title} R@1" in done.stdout and "CIRR R@1" in done.stdout
    mine = project / "reports" / "mine"
    assert set(pd.read_csv(mine / "results.csv")["dataset"]) == {title, "CIRR"}
    for page in ("index.html", "explorer.html", "07_results.html", f"tables/{title}.md"):
        assert title in (mine / page).read_text(encoding="utf-8").replace("\\", "")
    assert title in (project / "reports" / "index.html").read_text(encoding="utf-8")  # the list of studies
    assert not list((mine / "submissions").glob(f"{title}*"))
    run(project, "-p", f"datasets=[{project / path}]", "-p", "methods=[Text-only, SEARLE-OTI]", "-p", "study=alone")
    results = pd.read_csv(project / "reports" / "alone" / "results.csv")
    assert set(results["dataset"]) == {title} and set(results["method"]) == {"Text-only", "SEARLE-OTI"}
    assert "no published number" not in (project / "reports" / "alone" / "07_results.html").read_text(encoding="utf-8")
