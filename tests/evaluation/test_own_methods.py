"""A method of one's own: a class in a file, or an entry point of an installed package; and what is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.evaluation import methods, own_methods
from searle_lib.evaluation.contract import Fusion, Sources
from searle_lib.study import parameters, plan, workspace
from searle_lib.training import TrainedNetwork

GOOD = """
import torch.nn.functional as F

class Mine:
    def __init__(self, sources):
        self.embeddings = sources.embeddings
        self.network = sources.trained_phi

    def compose(self, references, sentences):
        return F.normalize(self.embeddings.select(references), dim=-1)
"""
RETURNS = "        return F.normalize(self.embeddings.select(references), dim=-1)\n"


def sources():
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return Sources(None, Embeddings("list", ("a", "b", "c", "d"), vectors, "vectors"))


def written(folder, source=GOOD):
    (folder / "mine.py").write_text(source)
    return "mine.py:Mine"


def built(folder, source=GOOD, name="Mine", inputs=None):
    ((name, method),) = methods.by_name([written(folder, source)], folder).items()
    return own_methods.build(name, method, inputs or sources())


def test_a_class_in_a_file_is_a_method_with_the_name_of_the_class(tmp_path):
    composer = built(tmp_path)
    assert torch.equal(
        composer.compose(["b", "d"], [["is red"]] * 2), F.normalize(sources().embeddings.vectors[[1, 3]])
    )


def test_a_class_states_its_name_and_what_it_needs_without_being_run(tmp_path):
    text = written(
        tmp_path, 'class Mine(Undefined):\n    name = "SEARLE x text"\n    needs: tuple = ("04_phi", "03_oti")\n'
    )
    ((name, method),) = methods.by_name([text], tmp_path).items()
    assert name == "SEARLE x text" and methods.needed([method]) == {"04_phi", "03_oti"}


def test_a_class_gets_what_it_needs_and_nothing_else(tmp_path):
    inputs = Sources(None, sources().embeddings, trained_phi=TrainedNetwork(None, "network", 0))
    assert built(tmp_path, inputs=inputs).inner.network is None
    with_phi = GOOD.replace("class Mine:\n", 'class Mine:\n    needs = ("04_phi",)\n')
    assert built(tmp_path, with_phi, inputs=inputs).inner.network is inputs.trained_phi


def test_the_key_changes_with_the_file_and_with_what_the_class_uses(tmp_path):
    with_phi = GOOD.replace("class Mine:\n", 'class Mine:\n    needs = ("04_phi",)\n')
    with_key = GOOD.replace("        self.network", '        self.key = "0.3"\n        self.network')
    networks = [Sources(None, sources().embeddings, trained_phi=TrainedNetwork(None, key, 0)) for key in "ab"]
    keys = [built(tmp_path, source).key for source in (GOOD, GOOD + "\n# a comment\n", with_key)]
    keys += [built(tmp_path, with_phi, inputs=inputs).key for inputs in networks]
    assert len(set(keys)) == 5 and built(tmp_path).key == keys[0]
    assert built(tmp_path, GOOD, inputs=networks[0]).key == keys[0]


def test_a_file_that_was_edited_is_imported_again(tmp_path):
    opposite = GOOD.replace("F.normalize(self", "-F.normalize(self")
    first, second = (built(tmp_path, source).compose(["a"], [["x"]]) for source in (GOOD, opposite))
    assert torch.equal(first, -second)


@pytest.mark.parametrize(
    ("text", "source", "sentence"),
    [
        ("absent.py:Mine", "", "{0}/absent.py does not exist; a path starts at the project's folder."),
        ("mine.py:Yours", GOOD, "method mine.py:Yours: {0}/mine.py has no class Yours; it has Mine."),
        ("mine.py:Mine", "", "method mine.py:Mine: {0}/mine.py has no class Mine; it has no class."),
        ("mine.py:SEARLE", "class SEARLE: pass", "has the name SEARLE, which another method has; write name = "),
        ("mine.py:Mine", 'class Mine:\n    name = "a/b"', "has the name 'a/b'; write a short text without / as name."),
        (
            "mine.py:Mine",
            'class Mine:\n    needs = "04_phi"',
            "needs '04_phi'; write a tuple of 03_oti, 04_phi, 05_fti4",
        ),
        ("mine.py:Mine", "class Mine(", "a method's file {0}/mine.py is not Python code ("),
        ("mine.py:Mine", "class Mine:\n    name = f(1)", "a method's file {0}/mine.py is not Python code ("),
        ("Mine", "", "method Mine is not known; write one of Image-only, "),
    ],
)
def test_what_cannot_be_a_method_is_refused_before_its_code_runs(tmp_path, text, source, sentence):
    written(tmp_path, source)
    with pytest.raises((ValueError, FileNotFoundError)) as problem:
        methods.by_name(["SEARLE", text], tmp_path)
    assert sentence.format(tmp_path) in str(problem.value)


def test_two_methods_of_ones_own_cannot_share_a_name(tmp_path):
    (tmp_path / "other.py").write_text(GOOD)
    with pytest.raises(ValueError, match=r"method other\.py:Mine has the name Mine, which another method has"):
        methods.by_name([written(tmp_path), "other.py:Mine"], tmp_path)


FUSED = (
    "        v = self.embeddings.select(references)\n        return Fusion(F.normalize(v, dim=-1)[:, None], {}, {})\n"
)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("        return 1 / 0\n", "raises ZeroDivisionError (division by zero); correct its class."),
        ("        return [1, 2]\n", "returns list for 2 queries; return a tensor of [2, 6]."),
        ("        return self.embeddings.vectors\n", "returns [4, 6] for 2 queries; return a tensor of [2, 6]."),
        ("        return self.embeddings.vectors[:2] * 0 / 0\n", "returns a vector that is not finite; correct its c"),
        ("        return 3 * F.normalize(self.embeddings.vectors[:2])\n", "of norm 3; return vectors of unit norm."),
        (FUSED.format('"mean"', "(1,)"), "names the fusion mean; name sum or product."),
        (FUSED.format('"sum"', "(1, 1)"), "returns [2, 1, 6] for 2 queries; return a tensor of [2, 2, 6]."),
        (FUSED.format('"product"', "(-1,)"), "has the weights [-1.0]; none of a product is negative, nor all 0."),
        (FUSED.format('"sum"', "(0,)"), "has the weights [0.0]; none of a product is negative, nor all 0."),
    ],
)
def test_what_would_rank_wrong_is_refused_in_one_sentence(tmp_path, returned, sentence):
    source = "from searle_lib.evaluation.contract import Fusion\n" + GOOD.replace(RETURNS, returned)
    with pytest.raises(ValueError) as problem:
        built(tmp_path, source).compose(["a", "b"], [["is red"]] * 2)
    assert str(problem.value).startswith(f"method Mine of {tmp_path}/mine.py ") and sentence in str(problem.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (GOOD.replace("sources.trained_phi", "sources.trained"), "raises AttributeError ('Sources' object has no attr"),
        (
            "import no_such_package\nclass Mine: pass\n",
            "raises ModuleNotFoundError (No module named 'no_such_package')",
        ),
    ],
)
def test_a_class_that_cannot_be_made_is_refused_in_one_sentence(tmp_path, source, sentence):
    with pytest.raises(ValueError) as problem:
        built(tmp_path, source)
    assert f"method Mine of {tmp_path}/mine.py {sentence}" in str(problem.value)


def test_a_fusion_of_ones_own_passes(tmp_path):
    source = "from searle_lib.evaluation.contract import Fusion\n"
    source += GOOD.replace(RETURNS, FUSED.format('"product"', "(0.5,)"))
    assert isinstance(built(tmp_path, source).compose(["a", "b"], [["is red"]] * 2), Fusion)


def test_an_entry_point_of_an_installed_package_is_a_method(tmp_path, monkeypatch):
    written(tmp_path)
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[searle_lib.methods]\nTheirs = mine:Mine\nGone = gone.module:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = {"methods": parameters.Declaration(list, ["SEARLE"], "", ("06_retrieval",))}
    assert parameters.check("methods", ["Theirs", "SEARLE"], known, "here") == ["Theirs", "SEARLE"]
    name, method = next(iter(methods.by_name(["Theirs", "SEARLE"], tmp_path).items()))
    composer = own_methods.build(name, method, sources())
    assert name == "Theirs" and len(composer.compose(["a"], [["is red"]])) == 1
    monkeypatch.delitem(sys.modules, "mine")
    with pytest.raises(
        ValueError, match=r"method Gone: module gone\.module cannot be found \(No module named 'gone'\)"
    ):
        methods.by_name(["Gone"], tmp_path)


def test_the_plan_of_a_study_follows_the_needs_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "project_root", lambda: tmp_path)
    text = written(tmp_path, GOOD.replace("class Mine:\n", 'class Mine:\n    needs = ("04_phi",)\n'))
    values = {"methods": [text], "phi_checkpoint": "last", "images_to_invert": ["unlabeled"]}
    assert plan.required_notebooks([text]) == {"04_phi"} and plan.trains_phi([text], "last")
    assert plan.reason_to_skip("05_fti4cir", values) == "methods does not hold FTI4CIR"
    assert plan.reason_to_skip("04_phi", values) == ""


def test_the_digest_of_a_notebook_changes_with_the_file_of_a_method(tmp_path, monkeypatch):
    text, digests = written(tmp_path), []
    monkeypatch.setattr(workspace, "code", SimpleNamespace(notebook_code_digest=lambda path: "library"))
    for source in (GOOD, GOOD + "# more\n"):
        written(tmp_path, source)
        digests.append(workspace.notebook_digest(tmp_path, "06_retrieval", {"methods": ["SEARLE", text]}))
    assert len({*digests, "library"}) == 3
    assert workspace.notebook_digest(tmp_path, "06_retrieval", {"methods": ["SEARLE"]}) == "library"
