"""docs/extending.md's scores of another model, run as printed; and a study beside which models answer only parts."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from projects import ROOT, artefacts, command, run

from searle_lib.data import benchmarks
from searle_lib.evaluation import methods
from searle_lib.evaluation.other_models import Evaluation, add
from searle_lib.servers import scoring

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PAGE = PAGE.partition("## Scores of a model of your own")[2].partition("\n## ")[0]
VECTORS, MEASURES, REPRODUCTION = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = {line.split()[0]: line for line in re.findall(r"^\.venv/bin/searle (.*)$", PAGE, re.M)}

pytestmark = pytest.mark.slow


def for_quick_study(text, world):
    """A text of the page, for the quick study and the session's world."""
    return text.replace("data/mini", str(world)).replace("params/mini.yaml", "params/quick.yaml")


def python(project, code):
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=project, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def project(quick, world, tmp_path_factory):
    """A copy of a project whose study has run once, and what the page's `score` printed there."""
    folder = shutil.copytree(quick[0], tmp_path_factory.mktemp("other") / "project", symlinks=True)
    python(folder, for_quick_study(VECTORS, world))
    done = command(folder, *shlex.split(for_quick_study(COMMANDS["score"], world)))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def lists_of(world, dataset):
    """A model that lists the gallery in reverse, as JSON, without cosines."""
    (benchmark,) = benchmarks.load(dataset, world, "val")
    images = list(benchmark.gallery["image"])[::-1]
    head = {"version": "rc2", "metric": "recall"} if dataset == "cirr" else {}
    excluded = benchmark.queries["reference"] if benchmark.protocol.excludes_reference else [""] * len(images)
    pairs = zip(benchmark.queries["query"], excluded, strict=False)
    return head | {query: [image for image in images if image != reference] for query, reference in pairs}


def test_the_pages_commands_put_a_model_beside_the_methods(project, world):
    folder, report = project
    before, old = artefacts(folder, ""), pd.read_csv(folder / "reports/quick/results.csv", dtype=str)
    done = command(folder, *shlex.split(for_quick_study(COMMANDS["run"], world)))
    assert done.returncode == 0, done.stderr
    after = artefacts(folder, "")
    kinds = {path.relative_to(folder / "data/artefacts").parts[0].partition("-")[0] for path in after.keys() - before}
    assert before.items() <= after.items() and kinds == {"scores"}
    results = pd.read_csv(folder / "reports/quick/results.csv", dtype=str)
    rows = results[results["method"] == "Colours"]
    pd.testing.assert_frame_equal(results.drop(rows.index).reset_index(drop=True), old)
    values = rows[rows["category"] == "all"].set_index("metric")["value"].astype(float)
    assert set(rows["dataset"]) == {"CIRCO"} and set(rows["backbone"]) == {"unstated"}
    assert values.to_dict() == report["metrics"]
    unchanged = command(folder, *shlex.split(for_quick_study(COMMANDS["run"], world))).stdout
    assert "unchanged" in unchanged.split("06_retrieval")[1].split("07_results")[0]


def test_every_page_copes_with_models_that_answer_only_parts(project, world, tmp_path):
    folder, _ = project
    evaluations = []
    for dataset in ("cirr", "circo"):
        file = tmp_path / f"{dataset}.json"
        file.write_text(json.dumps(lists_of(world, dataset)))
        evaluations.append(scoring.evaluate(file, dataset, world, name="Lists"))
    cirr, circo = evaluations
    without_subset = cirr.scores[~cirr.scores["metric"].str.startswith("Rsubset")]
    add(folder / "data/lists", "Lists", Evaluation(cirr.benchmark, without_subset, cirr.rankings), [file])
    add(
        folder / "data/groups",
        "Groups",
        Evaluation(cirr.benchmark, cirr.scores.drop(without_subset.index), cirr.rankings[:0]),
        [file],
    )
    queries, images = (benchmarks.load("circo", world, "test")[0].queries["query"], circo.benchmark.gallery["image"])
    random = np.random.default_rng(0)
    for name, ids in (("q", queries), ("g", images)):
        np.savez(folder / f"{name}.npz", ids=ids.to_list(), vectors=random.normal(size=(len(ids), 4)))
    arguments = ["--queries", "q.npz", "--gallery", "g.npz", "--dataset", "circo", "--data-root", world]
    done = command(folder, "score", *arguments, "--name", "Lists", "--to", "data/lists")
    assert done.returncode == 0 and json.loads(done.stdout)["metrics"] == {}

    lines = run(folder, "-p", "other_models=[data/colours, data/lists, data/groups]")
    assert lines["06_retrieval"] == lines["07_results"] == "done"
    report = folder / "reports/quick"
    results = pd.read_csv(report / "results.csv")
    by_model = results.groupby("method")["metric"].agg(set)
    assert by_model["Groups"] == {"Rsubset@1", "Rsubset@2", "Rsubset@3"}
    assert by_model["Lists"] == {"R@1", "R@5", "R@10", "R@50"}
    assert {"circo-test-Lists.json", "circo-test-SEARLE.json"} <= {
        file.name for file in (report / "submissions").iterdir()
    }
    colours = methods.colours(results["method"])
    assert len({colours[name] for name in ("Colours", "Lists", "Groups")}) == 3
    for page in ("06_retrieval.html", "07_results.html", "index.html", "explorer.html"):
        text = (report / page).read_text(encoding="utf-8")
        names = {"07_results.html": {"Groups"}, "index.html": {"Groups"}}.get(page, set()) | {"Colours", "Lists"}
        assert all(name in text for name in names), page
        assert not re.search(r"\bnan\b|NaN", re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S)), (
            page
        )
    page = (report / "explorer.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    place = [method["name"] for method in data["methods"]].index("Lists")
    answers = {
        (query["dataset"], bool(query["best"][place]), bool(query["scores"][place])) for query in data["queries"]
    }
    assert answers == {("FashionIQ", False, False), ("CIRR", True, False), ("CIRCO", False, False)}
    alone = run(folder, "-p", "other_models=[data/lists]", "-p", "datasets=[cirr]", "-p", "evaluate=[validation]")
    assert alone["07_results"] == "done"
    remark = "Lists: circo/test is left out, since the study does not evaluate it."
    assert remark in (report / "06_retrieval.html").read_text(encoding="utf-8")


def test_the_pages_evaluators_read_the_exported_rankings(project, world):
    folder, _ = project
    assert run(folder)["07_results"] in ("done", "unchanged")
    done = command(folder, *shlex.split(for_quick_study(COMMANDS["export"], world)))
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(folder / "reports/quick/results.csv").set_index(["dataset", "category", "method", "metric"])
    recall = results.at[("CIRCO", "all", "SEARLE", "R@10"), "value"] / 100
    numbers_of_page = python(folder, MEASURES)
    assert float(re.search(r"Success\(rel=2\)@10: ([\d.]+)", numbers_of_page)[1]) == pytest.approx(recall)
    numbers = python(folder, REPRODUCTION)
    tau, overlap, error = map(float, re.findall(r"-?\d+\.\d+", numbers))
    assert -1 <= tau < 1 and 0 < overlap < 1 and error > 0
    same = python(folder, REPRODUCTION.replace("SEARLE-OTI.trec", "SEARLE.trec"))
    assert re.findall(r"-?\d+\.\d+", same) == ["1.0", "1.0", "0.0"]


def test_a_model_that_does_not_fit_stops_the_run_before_anything_is_ranked(project):
    folder, _ = project
    before = artefacts(folder, "")
    refused = command(folder, "run", "params/quick.yaml", "-p", "other_models=[data/absent]")
    assert refused.returncode == 1 and "06_retrieval" not in refused.stdout
    sentence = r"error: \S+data/absent holds no scores of a model; write them there by `searle score --to`\.\n"
    assert re.fullmatch(sentence, refused.stderr)
    shutil.copytree(folder / "data/colours", folder / "data/changed")
    file = folder / "data/changed/circo-val.json"
    file.write_text(re.sub(r'"queries": "\w+"', '"queries": "another"', file.read_text()))
    refused = command(folder, "run", "params/quick.yaml", "-p", "other_models=[data/changed]")
    assert refused.returncode == 1 and refused.stderr.count("error: ") == 1
    assert "the queries of circo/val have changed since it was scored; score it again." in refused.stderr
    assert artefacts(folder, "") == before
