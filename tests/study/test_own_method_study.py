"""docs/extending.md's commands for methods, run as printed; and the baselines behind the line of params/mini.yaml."""

import re
import shlex
import shutil

import pandas as pd
import pytest
import yaml
from projects import ROOT, artefacts, command, run
from releases import test_pic2word_file

from searle_lib.backbone.model import load_clip
from searle_lib.data.benchmarks import Example
from searle_lib.evaluation import methods, own_query
from searle_lib.evaluation.rankings import rank_example
from searle_lib.releases import searle_files
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
OWN = ["Text-only", "SEARLE", "Slerp", "SEARLE x caption"]

pytestmark = pytest.mark.slow


FILE = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[1]
COMMAND = re.search(r"^\.venv/bin/searle (run .*my_methods.*)$", PAGE, re.M)[1]
NETWORKS = re.search(r"^\.venv/bin/searle (run [^`]*lincir_checkpoint[^`]*)```$", PAGE, re.M)[1]


@pytest.fixture
def project(quick, tmp_path):
    """A copy of a project whose study has run once, with the page's file in it."""
    folder = shutil.copytree(quick[0], tmp_path / "project", symlinks=True)
    (folder / "my_methods.py").write_text(FILE)
    return folder


def new_rankings(project, before):
    """The methods that were ranked since."""
    return {path.name.rpartition("-")[0] for path in artefacts(project, "rankings").keys() - before.keys()}


def test_the_pages_example_runs_as_printed_and_computes_nothing_else_again(project):
    arguments = shlex.split(COMMAND.replace("params/mini.yaml", "params/quick.yaml"))
    before = artefacts(project, "")
    done = command(project, *arguments)
    assert done.returncode == 0, done.stderr
    after = artefacts(project, "")
    assert before.items() <= after.items() and new_rankings(project, before) == {"Slerp", "SEARLE x caption"}
    kinds = {path.relative_to(project / "data/artefacts").parts[0].partition("-")[0] for path in after.keys() - before}
    assert kinds <= {"rankings", "scores", "nearest"}, kinds
    report = project / "reports/quick"
    assert list(pd.read_csv(report / "results.csv")["method"].unique()) == OWN
    colours = methods.colours(OWN)
    for page in ("explorer.html", "index.html"):
        assert all(colours[name] in (report / page).read_text() for name in OWN), page
    assert all(name in (report / "07_results.html").read_text() for name in OWN)
    files = {file.name for file in (report / "submissions").iterdir()}
    assert {"cirr-test1-Slerp.json", "circo-test-SEARLE x caption.json"} <= files

    study = Study("quick", project, Store(project / "data/artefacts"), report)
    retriever = own_query.load_retriever(study, "cpu")
    query = own_query.query_of_study(retriever, "circo/val", 0)
    ranked = rank_example(study, Example(query.benchmark, 0), retriever.composers).set_index("method")
    sentences = query.benchmark.queries["sentences"][0]
    assert all(
        own_query.rank(retriever, query, name, sentences).best == list(ranked.at[name, "best"][:10]) for name in OWN
    )
    own = own_query.retrieve(retriever, query.path, sentences[0], "circo/val", depth=5)  # as a file
    assert [list(images) for _, images in own.groupby("method", sort=False)["image"]] == [
        list(ranked.at[name, "best"][:5]) for name in OWN
    ]

    before = artefacts(project, "")
    (project / "my_methods.py").write_text(FILE.replace("0.3 * angle", "0.4 * angle"))
    assert command(project, *arguments).returncode == 0
    assert new_rankings(project, before) == {"Slerp", "SEARLE x caption"}  # the methods of the file
    assert "unchanged" in command(project, *arguments).stdout.split("06_retrieval")[1]


def test_a_method_that_cannot_be_used_stops_the_run_in_one_sentence(project):
    refused = command(project, "run", "params/quick.yaml", "-p", "methods=['absent.py:Mine']")
    assert (
        refused.returncode != 0 and "absent.py does not exist; a path starts at the project's folder." in refused.stderr
    )
    assert "06_retrieval" not in refused.stdout
    (project / "wrong.py").write_text(FILE.replace("F.normalize(", "3 * F.normalize("))
    before = artefacts(project, "rankings")
    refused = command(project, "run", "params/quick.yaml", "-p", "methods=[Text-only, 'wrong.py:Slerp']")
    assert refused.returncode != 0 and "returns a vector of norm 3; return vectors of unit norm." in refused.stderr
    assert "Traceback" not in refused.stderr and artefacts(project, "rankings") == before


def test_the_baselines_stand_behind_one_line_of_the_mini_study(project):
    (line,) = re.findall(r"^# (methods: .*)$", (ROOT / "params" / "mini.yaml").read_text(), re.M)
    names = yaml.safe_load(line)["methods"]
    assert sorted(names) == sorted(name for name, method in methods.METHODS.items() if not method.checkpoint)
    before = artefacts(project, "")
    assert run(project, "-p", line.replace("methods: ", "methods="))["07_results"] == "done"
    assert before.items() <= artefacts(project, "").items()
    results = pd.read_csv(project / "reports/quick/results.csv")
    assert list(results["method"].unique()) == names
    table = "".join(file.read_text() for file in (project / "reports/quick/tables").glob("*.md"))
    assert re.search(r"Tuned slerp with 0\.\d, chosen on fashioniq/val", table)
    assert re.search(r"SEARLE PDV with [\d.]+, [\d.]+, [\d.]+, chosen on cirr/val", table)


def test_the_pages_command_compares_networks_of_other_authors(project, world):
    clip = load_clip(str(world / "models" / "tiny-clip.pt"))
    (project / "weights").mkdir()
    network = test_pic2word_file.weights_of(2, clip.dimension, clip.width)
    test_pic2word_file.write(project / "weights/pic2word.pt", network)
    searle_files.write_phi(project / "weights/phi_best.pt", 20_000, Phi(clip.dimension, clip.width).state_dict())
    arguments = shlex.split(NETWORKS.replace("params/pretrained-xl.yaml", "params/quick.yaml").replace("\\\n", ""))
    before = artefacts(project, "")
    done = command(project, *arguments)
    assert done.returncode == 0, done.stderr
    assert new_rankings(project, before) == {"Pic2Word", "LinCIR"} and before.items() <= artefacts(project, "").items()
    report = project / "reports/networks"
    names = ["Image-only", "Text-only", "SEARLE", "Pic2Word", "LinCIR"]
    assert list(pd.read_csv(report / "results.csv")["method"].unique()) == names
    assert (report / "submissions/cirr-test1-LinCIR.json").is_file()
    (project / "weights/phi_best.pt").unlink()
    refused = command(project, *arguments)
    assert refused.returncode == 1 and "lincir_checkpoint weights/phi_best.pt is not a file; set it" in refused.stderr
