"""The index of FAISS, held to a full sort; and its recall, in every place that shows its numbers."""

import sys

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from bs4 import BeautifulSoup
from conftest import study_of

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import indexes, intervals, rankings, scores
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.reporting import explorer, tables
from searle_lib.store.artefacts import Store

pytest.importorskip("faiss")


def problem(images, queries=20, width=16):
    """Random unit queries, a gallery that is not normalised, and the scores of all images."""
    random = torch.Generator().manual_seed(3)
    units = F.normalize(torch.randn(queries, width, generator=random), dim=-1)
    vectors = 3 * torch.randn(images, width, generator=random)
    ids = tuple(f"image-{i}" for i in range(images))
    return units, Embeddings("drawn", ids, vectors, "key"), units @ F.normalize(vectors, dim=-1).T


def found_by(gallery, queries, k, candidates=None, members=None, excluded=None):
    none = torch.full((len(queries), 1), -1)
    rows = [none if rows is None else rows for rows in (candidates, members)]
    return indexes.of_gallery(gallery, "faiss").search(queries, k, *rows, excluded)


def test_an_index_of_a_few_images_finds_what_a_full_sort_finds():
    queries, gallery, cosines = problem(300)
    excluded = cosines.argmax(1)
    expected = cosines.scatter(1, excluded[:, None], -2).argsort(dim=1, descending=True)[:, :40]
    answers = found_by(gallery, queries, 40, excluded=excluded)
    is_found = (answers.top.unsqueeze(2) == expected.unsqueeze(1)).any(1)
    assert is_found.double().mean() > 0.99 and not (answers.top == excluded[:, None]).any()  # half precision
    assert torch.allclose(answers.scores, cosines.gather(1, answers.top), atol=1e-3)
    assert (answers.scores.diff(dim=1) <= 0).all()
    assert all(values.is_contiguous() for values in vars(answers).values())  # else they could not be saved


def test_an_index_gives_the_same_answers_again():
    queries, gallery, _ = problem(3000)
    first, second = (found_by(gallery, queries, 10) for _ in range(2))
    assert torch.equal(first.top, second.top) and torch.equal(first.scores, second.scores)


def test_recall_is_the_share_of_the_best_images_that_an_index_finds(monkeypatch):
    monkeypatch.setattr(indexes, "LIST_PROBES", 4)
    queries, gallery, cosines = problem(2000)
    excluded, top = cosines.argmax(1), found_by(gallery, queries, 11).top[:, 1:]
    expected = []
    for row, images in enumerate(cosines.argsort(dim=1, descending=True)[:, 1:11].tolist()):
        expected.append(len({*images} & {*top[row].tolist()}) / 10)
    index = indexes.of_gallery(gallery, "faiss")
    assert index.recall(queries, top, excluded).tolist() == pytest.approx(expected)
    assert 0.1 < sum(expected) / len(expected) < 0.99
    monkeypatch.setattr(indexes, "SAMPLE", 5)
    assert index.recall(queries, top, excluded).tolist() == pytest.approx(expected[::4])


def test_ranks_are_known_to_the_depth_of_the_list_and_those_of_a_group_always():
    queries, gallery, cosines = problem(300)
    top = found_by(gallery, queries, 10, excluded=torch.full((20,), 7)).top
    candidates = torch.stack([top[:, 3], cosines.argmin(1), torch.full((20,), -1), torch.full((20,), 7)], dim=1)
    members = torch.stack([cosines.argmin(1), top[:, 0], torch.full((20,), 7), torch.full((20,), -1)], dim=1)
    answers = found_by(gallery, queries, 10, candidates, members, torch.full((20,), 7))
    assert answers.ranks.tolist() == [[3, UNLISTED, -1, -1]] * 20
    assert answers.order.tolist() == [[1, 0, -1, -1]] * 20


def test_a_query_whose_lists_hold_too_few_images_is_compared_with_all(monkeypatch):
    monkeypatch.setattr(indexes, "LIST_PROBES", 1)
    queries, gallery, cosines = problem(300)
    answers = found_by(gallery, queries, 200)
    assert all(len({*rows}) == 200 and min(rows) >= 0 for rows in answers.top.tolist())
    assert torch.equal(answers.top[:, 0], cosines.argmax(1))


def test_without_faiss_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    _, gallery, _ = problem(3)
    assert indexes.of_gallery(gallery, "exact") is None
    with pytest.raises(ValueError, match="index faiss needs FAISS; run: pip install faiss-cpu, or set index: exact"):
        indexes.of_gallery(gallery, "faiss")


class Random:
    """A composer of random queries."""

    key = "random"

    def compose(self, references, sentences):
        return problem(1, len(references))[0]


@pytest.fixture
def circo(tmp_path, monkeypatch):
    """A drawn CIRCO val with 2,000 images, and its rankings by an index, read again from the store."""
    monkeypatch.setattr(indexes, "LIST_PROBES", 4)
    _, gallery, cosines = problem(2000)
    images = pd.DataFrame({"image": gallery.ids, "path": [f"{image}.png" for image in gallery.ids]})
    names = [
        [gallery.ids[row] for row in rows] for rows in cosines.argsort(dim=1, descending=True)[:, [2, 1500]].tolist()
    ]
    queries = pd.DataFrame(
        {
            "query": [str(number) for number in range(20)],
            "reference": gallery.ids[:20],
            "sentences": [["is red"]] * 20,
            "target": [first for first, _ in names],
            "ground_truths": names,
            "group": [[]] * 20,
            "aspects": [[]] * 20,
        }
    )
    benchmark = Benchmark("circo", "val", "all", "circo", images, queries, (20, 2000))
    store, index = Store(tmp_path / "artefacts"), indexes.of_gallery(gallery, "faiss")
    for _ in range(2):
        ranked = rankings.rank(store, benchmark, gallery, "Text-only", Random(), index)
    exact = rankings.rank(store, benchmark, gallery, "Text-only", Random())
    assert len(list(tmp_path.rglob("rankings.safetensors"))) == 2
    return benchmark, ranked, exact


def test_numbers_of_an_index_count_what_it_finds(circo):
    benchmark, ranked, exact = circo
    assert exact.recall is None and ranked.recall.shape == (20,)
    is_listed = (ranked.top == exact.top[:, 2:3]).any(1)
    assert torch.equal(ranked.target < rankings.DEPTH, is_listed) and (ranked.truths[:, 1] == UNLISTED).all()
    assert 0 < is_listed.sum() < 20
    both = [scores.score_queries(benchmark, one, "Text-only") for one in (ranked, exact)]
    in_50 = [table[table["metric"] == "R@50"]["value"] for table in both]
    assert in_50[0].tolist() == is_listed.double().tolist() and in_50[1].tolist() == [1] * 20


def test_the_recall_of_an_index_stands_beside_every_number_that_it_made(circo, tmp_path, monkeypatch):
    benchmark, ranked, exact = circo
    runs = [(benchmark, {"Text-only": ranked, "SEARLE": ranked})]
    study = study_of(tmp_path, "06_retrieval")
    table, answers = scores.keep_scores(study, runs)
    note = (
        f"ranked by a FAISS index, recall@50 against exact search: Text-only {100 * ranked.recall.mean():.1f} %, SEARLE"
    )
    assert rankings.index_notes(answers)["circo/val"].startswith(note)
    assert rankings.index_notes(rankings.ranking_table(benchmark, exact, "Text-only")) == {}
    with_lists = pd.concat([answers, answers.assign(method="Lists").drop(columns="recall")])  # of another model
    assert rankings.index_notes(with_lists) == rankings.index_notes(answers)
    monkeypatch.setattr(scores, "clip_facts", lambda study: {"name": "tiny", "sha256": "abcdef0123"})
    monkeypatch.setattr(scores.benchmarks, "read", lambda study: [benchmark])
    monkeypatch.setattr(type(study), "read", lambda *_: study_of(tmp_path, world="real"))
    provenance = scores.provenance(study, answers)
    results = intervals.summarise(table, "tiny", provenance, resamples=20)
    assert results["evaluated_on"].str.contains(note, regex=False).all()
    for file in tables.write_files(results, provenance, {}, tmp_path / "tables"):
        text = file.read_text()
        text = BeautifulSoup(text, "html.parser").text if file.suffix == ".html" else text.replace("\\%", "%")
        assert note in text
    names = pd.DataFrame(columns=["dataset", "method", "reference", "names"])
    page = explorer.data([benchmark], table, answers, names)
    assert note in page["selection"] and {query["ranks"][0] for query in page["queries"]} >= {None}
