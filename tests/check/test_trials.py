"""A trial of every method on random inputs, before anything is computed."""

import pytest

from searle_lib.check import trials, weights
from searle_lib.evaluation import methods
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study

RAISES = (
    "class Mine:\n    def __init__(self, sources): pass\n    def compose(self, references, sentences): return 1 / 0\n"
)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_of_the_library_composes_random_inputs(tiny, name):
    assert trials.try_method(tiny, name, methods.METHODS[name], "exact") == "composes 2 queries of random inputs"


def test_check_names_a_class_that_raises_and_a_product_that_an_index_cannot_rank(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RAISES)
    study = Study("tiny", tmp_path, Store(tmp_path / "artefacts"), tmp_path / "reports")
    values = {"methods": ["Text-only", "Tuned product", "mine.py:Mine"], "index": "faiss", "executor": "serial"}
    values |= {"phi_checkpoint": "last", "phrases_file": "x", "oti_root": "", "datasets": ["cirr"]}
    problems = {one.subject: one.problems for one in weights.check_models(values, study, tiny)}
    assert problems["method Text-only"] == ()
    assert problems["method Tuned product"] == (
        "Tuned product ranks by a product of similarities, which index faiss cannot; set index: exact.",
    )
    assert "mine.py raises ZeroDivisionError (division by zero); correct its class." in problems["method Mine"][0]
