"""The command `score`: what it prints, what it writes, and what it refuses before it reads a file."""

import json

import numpy as np
import pytest
from projects import command

from searle_lib.data import benchmarks
from searle_lib.evaluation.other_models import read_all


@pytest.fixture
def files(world, tmp_path):
    """Vectors of CIRCO's validation split with one image too many, and the options that name the data."""
    (circo,) = benchmarks.load("circo", world, "val")
    random = np.random.default_rng(0)
    for name, ids in (("q", [*circo.queries["query"]]), ("g", [*circo.gallery["image"], "1000000"])):
        np.savez(tmp_path / f"{name}.npz", ids=ids, vectors=random.normal(size=(len(ids), 8)))
    return ["--queries", "q.npz", "--gallery", "g.npz", "--dataset", "circo", "--data-root", str(world)]


def test_it_prints_json_and_notes_apart_and_writes_the_folder_of_the_model(files, tmp_path):
    done = command(tmp_path, "score", *files, "--name", "My model", "--to", "mine")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: ignored images of g.npz, which the gallery of circo/val lacks: 1.\n"
    report = json.loads(done.stdout)
    assert (report["dataset"], report["split"], report["queries"]) == ("CIRCO", "val", 8)
    assert json.loads(command(tmp_path, "score", *files).stdout) == report
    (model,) = read_all(["mine"], [], tmp_path)
    assert model.name == "My model" and set(model.parts[0].scores["method"]) == {"My model"}
    assert {path: len(sha256) for path, sha256 in model.parts[0].facts["files"]["gallery"].items()} == {
        "q.npz": 64,
        "g.npz": 64,
    }
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "circo-val.json",
        "circo-val-scores.parquet",
        "circo-val-rankings.parquet",
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda words: words[2:], "score takes a file of predictions, or both --queries and --gallery; name what you"),
        (lambda words: words[4:], "score takes a file of predictions, or both --queries and --gallery; name what you"),
        (lambda words: ["q.npz", *words], "score takes a file of predictions, or both --queries and --gallery; name"),
        (lambda words: [*words, "--to", "mine"], "--name and --to belong together; add the other one."),
        (lambda words: [*words, "--name", "Mine"], "--name and --to belong together; add the other one."),
        (
            lambda words: [*words, "--to", "mine", "--name", "SEARLE"],
            "--name is 'SEARLE'; write a short text",
        ),
        (lambda words: [*words, "--category", "dress"], "CIRCO has no categories; leave out category dress."),
        (lambda words: ["--queries", "x.npz", *words[2:]], "x.npz does not exist; name a .safetensors or a .npz file."),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_sentence(change, sentence, files, tmp_path):
    refused = command(tmp_path, "score", *change(files))
    assert refused.returncode == 1 and refused.stderr.startswith(f"error: {sentence}")
    assert refused.stdout == "" and not (tmp_path / "mine").exists()
