"""Queries of one's own on a study that has run, held to the study's own rankings."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from searle_lib.backbone.texts import encode_texts
from searle_lib.data.benchmarks import Example
from searle_lib.evaluation import own_query
from searle_lib.evaluation.rankings import rank_example
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study

pytestmark = pytest.mark.slow

SCORED = ["fashioniq/val/dress", "fashioniq/val/toptee", "cirr/val", "circo/val"]
FEW = 2  # queries of each benchmark


@pytest.fixture(scope="module")
def study(quick, tmp_path_factory):
    """A copy of a study that has run."""
    project = shutil.copytree(quick[0], tmp_path_factory.mktemp("own") / "project")
    return Study("quick", project, Store(project / "data" / "artefacts"), project / "reports" / "quick")


@pytest.fixture(scope="module")
def retriever(study):
    return own_query.load_retriever(study, "cpu")


def copy_of_reference(retriever, benchmark, folder):
    """A copy of a query's reference under the same name, the reference's id, and the query's caption."""
    query = own_query.query_of_study(retriever, benchmark, 2)
    file = folder / f"{query.reference}{query.path.suffix}"
    shutil.copy(query.path, file)
    return file, query.reference, query.benchmark.queries["sentences"][2][0]


@pytest.mark.parametrize("name", SCORED)
def test_a_query_of_the_study_is_ranked_as_the_study_ranks_it(study, retriever, name):
    benchmark = retriever.benchmarks[name]
    for row in range(FEW):
        expected = rank_example(study, Example(benchmark, row), retriever.composers).set_index("method")
        query = own_query.query_of_study(retriever, name, row)
        assert list(query.composers) == list(retriever.methods)
        for method in query.composers:
            ranking = own_query.rank(retriever, query, method, benchmark.queries["sentences"][row], depth=50)
            assert ranking.best == list(expected.at[method, "best"])
            assert ranking.target == expected.at[method, "rank"]
            assert_close(torch.tensor(ranking.scores), torch.from_numpy(expected.at[method, "scores"]))


@pytest.mark.parametrize("name", ["fashioniq/val/shirt", "circo/val"])
def test_a_file_that_is_a_reference_of_the_study_gives_the_same_answer_by_every_method(retriever, name, tmp_path):
    file, reference, caption = copy_of_reference(retriever, name, tmp_path)
    own = own_query.retrieve(retriever, file, caption, name, depth=5)
    expected = own_query.retrieve(retriever, reference, caption, name, depth=5)
    assert list(own["method"].unique()) == list(retriever.methods)
    assert own.drop(columns="score").equals(expected.drop(columns="score"))
    assert own["score"].to_numpy() == pytest.approx(expected["score"].to_numpy(), abs=1e-4)


def test_the_reference_of_cirr_takes_no_rank_and_a_file_excludes_nothing(retriever, tmp_path):
    file, reference, caption = copy_of_reference(retriever, "cirr/val", tmp_path)
    own, annotated = (
        own_query.retrieve(retriever, image, caption, "cirr/val", ["Image-only"])["image"].tolist()
        for image in (file, reference)
    )
    assert own[0] == reference and reference not in annotated


def test_another_wording_is_ranked_as_a_sort_by_cosine(retriever):
    query = own_query.query_of_study(retriever, "circo/val", 0)
    gallery = retriever.gallery(query.benchmark.gallery_name)
    cosines = (gallery.unit @ F.normalize(encode_texts(retriever.clip, ["is red"]), dim=-1)[0]).tolist()
    order = sorted(gallery.ids, key=lambda image: -cosines[gallery.ids.index(image)])
    ranking = own_query.rank(retriever, query, "Text-only", ["is red"], depth=7)
    assert ranking.best == order[:7]
    assert ranking.target == min(order.index(target) for target in query.targets)


def test_secret_targets_have_no_rank(retriever):
    query = own_query.query_of_study(retriever, "circo/test", 0)
    assert query.targets == () and own_query.rank(retriever, query, "Image-only", ["is red"]).target == -1


def test_oti_of_a_file_comes_last_and_shows_every_step(retriever, tmp_path):
    file, _, _ = copy_of_reference(retriever, "circo/val", tmp_path)
    query = own_query.query_of_image(retriever, "circo/val", file)
    assert own_query.slow_methods(retriever, query) == ["SEARLE-OTI"] and "SEARLE-OTI" not in query.composers
    shares = []
    assert own_query.invert(retriever, query, shares.append) == {}
    assert shares == [1 / 4, 2 / 4, 3 / 4, 1.0] and "SEARLE-OTI" in query.composers


def test_a_method_that_cannot_invert_says_why(quick, tmp_path):
    project = shutil.copytree(quick[0], tmp_path / "project")
    study = Study("quick", project, Store(project / "data" / "artefacts"), project / "reports" / "quick")
    retriever = own_query.load_retriever(study, "cpu")
    query = own_query.query_of_image(retriever, "circo/val", own_query.query_of_study(retriever, "circo/val", 0).path)
    (study.reports / "records" / "01_phrases.json").unlink()
    reason = own_query.invert(retriever, query, print)["SEARLE-OTI"]
    assert reason.endswith("needs the record of 01_phrases in study quick; run 01_phrases first.")


def test_a_method_that_the_study_does_not_have_is_refused(retriever):
    reference = own_query.query_of_study(retriever, "circo/val", 0).reference
    with pytest.raises(ValueError, match=r"Slerp cannot answer: the study does not have it\."):
        own_query.retrieve(retriever, reference, "is red", "circo/val", ["Slerp"])


def test_a_method_that_a_split_does_not_compare_is_left_out(retriever):
    fair = {split: dict(list(by_method.items())[:-1]) for split, by_method in retriever.composers.items()}
    reference = own_query.query_of_study(retriever, "cirr/val", 0).reference
    table = own_query.retrieve(replace(retriever, composers=fair), reference, "is red", "cirr/val")
    assert list(table["method"].unique()) == [method for method in retriever.methods if method != "FTI4CIR"]


def test_exploring_leaves_no_trace_in_the_record_of_a_notebook(study):
    notebook = replace(study, digests={})
    own_query.load_retriever(notebook, "cpu")
    assert notebook.digests == {}


@pytest.mark.parametrize(
    "image, benchmark, kind, sentence",
    [
        ("absent.png", "", FileNotFoundError, "image absent.png is neither a file nor a reference of circo/val; "),
        ("absent.png", "circo", ValueError, "the study has no benchmark circo; choose one of fashioniq/val/dress, "),
        (Path(__file__), "", ValueError, "cannot be decoded"),
    ],
)
def test_an_image_or_benchmark_that_does_not_exist_is_refused(retriever, image, benchmark, kind, sentence):
    with pytest.raises(kind, match=sentence):
        own_query.retrieve(retriever, image, "is red", benchmark)
