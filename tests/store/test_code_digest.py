"""The code in an artefact's key: what changes a result changes it, and what cannot does not.

The stages' digests are held to edits of a copy of the library, all of them read by one process that starts in it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import searle_lib
from searle_lib.store import code

pytestmark = pytest.mark.slow  # a process of its own computes the digests under 40 edits

STAGES = {
    "phrases": "searle.phrases:sample",
    "concepts": "searle.concepts:concept_embeddings",
    "embeddings": "backbone.model:encode_images",
    "pixels": "data.images:to_pixels",
    "OTI": "searle.oti:optimise",
    "φ": "searle.distillation:PhiTraining",
    "network": "fti4cir.training:Fti4CirTraining",
    "Image-only": "evaluation.composers:ImageOnly",
    "Text-only": "evaluation.composers:TextOnly",
    "Image+Text": "evaluation.composers:ImageAndText",
    "SEARLE": "evaluation.composers:Searle",
    "SEARLE-OTI": "evaluation.composers:SearleOti",
    "FTI4CIR": "evaluation.composers:Fti4CirQueries",
    "ranks": "evaluation.rankings:compare",
}
WITH_TEXT = {"Text-only", "Image+Text", "SEARLE", "SEARLE-OTI"}
QUERIES = WITH_TEXT | {"Image-only", "FTI4CIR"}
FROM_SENTENCES = WITH_TEXT | {"FTI4CIR"}
READS_TEXT = {"concepts", "OTI", "φ", "network", "FTI4CIR"} | WITH_TEXT

CHANGES = {  # an edit: its module, what stands there, what it becomes; and the stages whose results it may change
    "the phrases' prompt": ("searle.phrases", '"a photo of {} that"', '"a photo of {} which"', {"phrases"}),
    "how many tokens are sampled from": ("searle.phrases", "TOP_K = 50", "TOP_K = 40", {"phrases"}),
    "a template": ("searle.concepts", '"A {}",', '"One {}",', {"concepts", "OTI"}),
    "a colour's mean": ("data.images", "MEAN = (0.48145466,", "MEAN = (0.5,", {"pixels"}),
    "the padding's ratio": ("data.images", "TARGET_RATIO = 1.25", "TARGET_RATIO = 1.5", {"pixels"}),
    "how images are encoded": ("backbone.model", ".encode_image(", ".encode_drawing(", {"embeddings"}),
    "where words start": ("searle.oti", "START_DEVIATION = 0.02", "START_DEVIATION = 0.03", {"OTI"}),
    "OTI's total loss": ("searle.oti", "* gpt) / weight", "* gpt) * weight", {"OTI"}),
    "the phrases' loss": ("searle.phrase_bank", "return 1 - F.cosine", "return 2 - F.cosine", {"OTI", "φ"}),
    "the contrastive loss": ("searle.distillation", "both.T / temperature", "both.T * temperature", {"φ", "network"}),
    "φ's layers": ("searle.phi", "nn.GELU()", "nn.ReLU()", {"φ", "network", "SEARLE"}),
    "the threshold of attributes": ("fti4cir.network", "THRESHOLD = 0.05", "THRESHOLD = 0.06", {"network"}),
    "the number of slots": ("fti4cir.network", "SLOTS = 24", "SLOTS = 25", {"network"}),
    "the orthogonality loss": ("fti4cir.network", "(gram - torch.eye(", "(gram + torch.eye(", {"network"}),
    "FTI4CIR's query": ("fti4cir.prompts", "count}but {", "count}and {", {"FTI4CIR"}),
    "the queries' prompt": ("evaluation.composers", '"a photo of $ that {}"', '"a photo of $ which {}"', WITH_TEXT),
    "the mean of sentences": (
        "evaluation.composers",
        "torch.zeros(queries,",
        "torch.ones(queries,",
        WITH_TEXT | {"FTI4CIR"},
    ),
    "one method's query": ("evaluation.composers", "sum(part.compose(", "max(part.compose(", {"Image+Text"}),
    "the text tower": ("backbone.text_tower", "def features(", "def features(more, ", READS_TEXT),
    "random numbers": ("store.randomness", "def uniform(", "def uniform(more, ", {"phrases", "OTI", "φ"}),
    "what a rank of no image is": ("evaluation.rankings", "answers.ranks, -1)", "answers.ranks, -2)", {"ranks"}),
}
OTHER_CHANGES = {  # whose effect on keys alone is asked for
    "how an image is opened": ("data.images", "        image.load()\n", "        image.draft(None, None)\n"),
    "how phrases are cleaned": ("searle.phrases", 're.sub(r"\\n+", ". ", text)', 're.sub(r"\\n+", "; ", text)'),
    "how phrases get their placeholder": ("searle.phrase_bank", '("first", 1)', '("first", 2)'),
    "how deep rankings are": ("evaluation.rankings", "DEPTH = 50", "DEPTH = 60"),
    "how patch tokens are read": ("backbone.model", "visual.ln_pre(x)", "visual.ln_post(x)"),
    "how a score is counted": ("evaluation.metrics", "def recall_at(", "def recall_at(more, "),
}
NO_CHANGES = {
    "a comment": ("searle.oti", "START_DEVIATION = 0.02", "START_DEVIATION = 0.02  # as the authors do"),
    "blank lines": ("searle.oti", "    ema = words.detach()", "\n\n    ema = words.detach()"),
    "a line that is broken": (
        "searle.distillation",
        "return F.cross_entropy(logits,",
        "return F.cross_entropy(\n        logits,",
    ),
    "other quotes": ("searle.phrases", '"a photo of {} that"', "'a photo of {} that'"),
    "a docstring": (
        "evaluation.composers",
        "The sum of the reference's and the caption's unit embeddings.",
        "Both, added.",
    ),
    "a module's docstring": (
        "data.images",
        "Images from disk to CLIP's input pixels",
        "CLIP's input pixels from images",
    ),
    "an error's sentence": ("searle.oti", "is not finite; lower ", "is no number; lower "),
    "a table of results": ("reporting.tables", "Percent; with each value", "Percent; under each value"),
    "a download": ("releases.downloads", "def fetch(", "def fetch(more, "),
    "how artefacts are kept": ("store.artefacts", "FORMAT = 5", "FORMAT = 6"),
    "how rows are kept": ("store.shards", "def run(", "def run(more, "),
}

FROM_IMAGES = {"embeddings", "references", "patches", "fti-words", "fti4cir-training"}
KEY_CHANGES = {  # the same of the keys of artefacts, apart from the keys of what they are made from
    "a colour's mean": FROM_IMAGES,
    "how images are encoded": {"embeddings", "references"},
    "how an image is opened": FROM_IMAGES | {"verdicts"},
    "the phrases' prompt": {"phrases"},
    "how phrases are cleaned": {"phrases"},
    "a template": {"concepts", "oti"},
    "how phrases get their placeholder": {"phrase-bank"},
    "where words start": {"oti"},
    "the phrases' loss": {"oti", "phi-training"},
    "the threshold of attributes": {"fti-words", "fti4cir-training"},
    "one method's query": {"rankings"},
    "how deep rankings are": {"rankings"},
    "how patch tokens are read": {"patches", "fti-words", "fti4cir-training"},
    "how a score is counted": {"scores", "phi-validation"},
    "an error's sentence": set(),
}

PRINT = """
import importlib, json, sys
from pathlib import Path
folder, world, stages, edits = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
sys.path.insert(0, str(folder))
import pandas as pd
import torch
from searle_lib.data import annotations, benchmarks, images, readable
from searle_lib.store import artefacts
from searle_lib.backbone.model import load_clip
from searle_lib.fti4cir import captions, network, training as fti_training, patches
from searle_lib.evaluation import composers, rankings, scores, validation
from searle_lib.searle import concepts, distillation, oti, phrase_bank, phrases
from searle_lib.backbone import embeddings
from searle_lib.store import code
from searle_lib.training import TrainedNetwork
assert code.PACKAGE == folder / "searle_lib", code.PACKAGE
roots = {}
for stage, where in stages.items():
    module, _, name = where.partition(":")
    roots[stage] = getattr(importlib.import_module(f"searle_lib.{module}"), name)

class Asked(Exception): ...

class Keys:
    # a store that only says what it is asked for
    made = {}

    def hash_files(self, paths):
        return [path.name for path in paths]

    def keep(self, name, facts, make):
        raise Asked(name.split("/")[0], artefacts.digest(facts))

clip = load_clip(str(world / "models" / "tiny-clip.pt"))
unlabeled, loaded = annotations.imagenet(world), benchmarks.load("cirr", world, "val")
ones = torch.ones(len(unlabeled), clip.dimension)
vectors = embeddings.Embeddings("list", tuple(unlabeled["image"]), ones, "vectors")
near = concepts.Concepts(vectors.ids, torch.zeros(len(unlabeled), 1, dtype=torch.int64), ("Star",), "concepts")
names = concepts.Vocabulary(("Star",), "vocabulary")
written = phrases.from_table(pd.DataFrame({"concept": ["Star"], "phrase": ["a Star"]}))
known = captions.Captions(vectors.ids[:2], ("a star", "a star"), ("on it", "off it"))
composer = composers.ImageAndText(composers.Sources(clip, vectors))
log = pd.DataFrame({"epoch": [1]})
training = artefacts.Store(folder / "store").keep("training", {}, lambda made: log.to_csv(made / "log.csv"))
few = distillation.Settings(batch_size=1), fti_training.Settings(batch_size=1)
store, model = Keys(), str(world / "models" / "tiny-gpt-neo")
reader = images.Reader(8, 1)
trained = TrainedNetwork(None, "network", 0)
calls = [
    lambda: phrases.generate(store, names, model, phrases.Settings()),
    lambda: concepts.associate(store, clip, vectors, names, 1),
    lambda: embeddings.encode(store, clip, "list", unlabeled, reader),
    lambda: embeddings.keep_references(store, clip, loaded, {}),
    lambda: readable.check_images(store, "list", unlabeled),
    lambda: patches.encode(store, clip, "list", unlabeled, reader),
    lambda: patches.keep_words(store, clip, trained, "list", unlabeled, reader),
    lambda: phrase_bank.prepare(store, clip, written),
    lambda: oti.invert(store, clip, vectors, near, written, oti.Settings()),
    lambda: distillation.train(store, clip, distillation.TrainingSet(vectors, vectors, near, written), few[0]),
    lambda: fti_training.train(store, clip, fti_training.TrainingSet(unlabeled, known), few[1]),
    lambda: rankings.rank(store, loaded[0], vectors, "Image+Text", composer),
    lambda: scores.keep_scores(store, []),
    lambda: validation._log(store, training, "phi", [], None),
]

def key_of(call, number):
    try:
        call()
    except Asked as asked:
        name, key = asked.args
        return ("references" if number == 3 else name), key
    raise AssertionError(f"call {number} asks for no artefact")

def digests():
    for cached in (code.code_digest, code._definition, code._source):
        cached.cache_clear()
    found = {stage: code.code_digest(root) for stage, root in roots.items()}
    return found, dict(key_of(call, number) for number, call in enumerate(calls))

found = {"": digests()}
for name, (module, old, new) in edits.items():
    file = folder / "searle_lib" / f"{module.replace('.', '/')}.py"
    text = file.read_text()
    assert old in text, f"{old!r} is not in {module}"
    file.write_text(text.replace(old, new))
    found[name] = digests()
    file.write_text(text)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    """The digests of all stages and the keys of all artefacts by edit, "" for none, from one process in a copy."""
    folder = tmp_path_factory.mktemp("copy")
    library = Path(searle_lib.__file__).parent
    shutil.copytree(library, folder / "searle_lib", ignore=shutil.ignore_patterns("miniworld", "__pycache__"))
    edits = {name: edit[:3] for name, edit in (CHANGES | NO_CHANGES | OTHER_CHANGES).items()}
    ran = [sys.executable, "-c", PRINT, str(folder), str(world), json.dumps(STAGES), json.dumps(edits)]
    done = subprocess.run(ran, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def digests(found):
    """The digests of all stages by edit, "" for none."""
    return {edit: stages for edit, (stages, _) in found.items()}


@pytest.mark.parametrize("edit", KEY_CHANGES)
def test_an_edit_gives_new_keys_to_exactly_those_artefacts_that_it_may_change(found, edit):
    before, after = found[""][1], found[edit][1]
    assert len(before) == 14 and after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == KEY_CHANGES[edit]


def changed(digests, edit):
    return {stage for stage in STAGES if digests[edit][stage] != digests[""][stage]}


@pytest.mark.parametrize("edit", CHANGES)
def test_an_edit_changes_the_digest_of_exactly_those_stages_that_it_may_change(digests, edit):
    assert changed(digests, edit) == CHANGES[edit][3]


@pytest.mark.parametrize("edit", NO_CHANGES)
def test_what_can_change_no_result_changes_no_digest(digests, edit):
    assert changed(digests, edit) == set()


def test_every_stage_has_a_digest_of_its_own(digests):
    assert len(set(digests[""].values())) == len(STAGES)


def test_the_digest_of_several_roots_does_not_depend_on_which_other_process_asks(digests):
    from searle_lib.data import images

    assert code.code_digest(images.to_pixels) == digests[""]["pixels"]


# Which names are followed


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Writes modules of a library of its own, and gives the digest of `root` in its module `start`."""
    (tmp_path / "searle_lib").mkdir()
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "searle_lib")

    def digest(**modules):
        for name, text in modules.items():
            file = tmp_path / "searle_lib" / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        for cached in (code.code_digest, code._definition, code._source, code._module_file):
            cached.cache_clear()

        def root(): ...

        root.__module__, root.__qualname__ = "searle_lib.start", "root"
        return code.code_digest(root)

    yield digest
    for cached in (code.code_digest, code._definition, code._source, code._module_file):
        cached.cache_clear()


FOLLOWED = {
    "a constant": ("def root():\n    return X\n\n\nX = {}\n", ""),
    "a constant with a type": ("def root():\n    return X\n\n\nX: int = {}\n", ""),
    "one of several constants in a line": ("def root():\n    return X\n\n\nX, Y = {}, 0\n", ""),
    "a constant that another one is made of": ("def root():\n    return Y\n\n\nX = {}\nY = X + 1\n", ""),
    "a constant that is changed afterwards": ("def root():\n    return X\n\n\nX = 1\nX += {}\n", ""),
    "a default": ("def root(x={}):\n    return x\n", ""),
    "a decorator": ("def root():\n    return f()\n\n\n@g\ndef f(): ...\n\n\ndef g(f):\n    return {}\n", ""),
    "a method": ("def root():\n    return C().f()\n\n\nclass C:\n    def f(self):\n        return {}\n", ""),
    "the class of an argument": (
        "def root(c: C):\n    return c.f()\n\n\nclass C:\n    def f(self):\n        return {}\n",
        "",
    ),
    "a class that is inherited from": (
        "def root():\n    return D()\n\n\nclass C:\n    x = {}\n\n\nclass D(C): ...\n",
        "",
    ),
    "a function that calls itself": ("def root():\n    return root() + {}\n", ""),
    "a module's function": (
        "from searle_lib import other\n\n\ndef root():\n    return other.f()\n",
        "def f():\n    return {}\n",
    ),
    "a module under another name": (
        "from searle_lib import other as o\n\n\ndef root():\n    return o.f()\n",
        "def f():\n    return {}\n",
    ),
    "a function that is imported": (
        "from searle_lib.other import f\n\n\ndef root():\n    return f()\n",
        "def f():\n    return {}\n",
    ),
    "a function under another name": (
        "from searle_lib.other import f as g\n\n\ndef root():\n    return g()\n",
        "def f():\n    return {}\n",
    ),
    "a function that is imported where it is called": (
        "def root():\n    from searle_lib.other import f\n\n    return f()\n",
        "def f():\n    return {}\n",
    ),
    "a constant of another module's function": (
        "from searle_lib.other import f\n\n\ndef root():\n    return f()\n",
        "X = {}\n\n\ndef f():\n    return X\n",
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_a_function_reaches_is_in_its_digest(library, name):
    start, other = FOLLOWED[name]
    before = library(start=start.replace("{}", "1"), other=other.replace("{}", "1"))
    assert library(start=start.replace("{}", "2"), other=other.replace("{}", "2")) != before


def test_a_name_that_a_module_only_passes_on_is_followed_to_where_it_is_defined(library):
    start = "from searle_lib.other import f\n\n\ndef root():\n    return f()\n"
    modules = {"start": start, "other": "from searle_lib.third import f\n"}
    assert library(**modules, third="def f():\n    return 1\n") != library(**modules, third="def f():\n    return 2\n")


def test_what_a_function_does_not_reach_is_not_in_its_digest(library):
    start = "from searle_lib import other\n\n\ndef root():\n    return other.f()\n\n\nX = {}\n"
    before = library(start=start.replace("{}", "1"), other="def f(): ...\n\n\ndef g():\n    return 1\n")
    assert library(start=start.replace("{}", "2"), other="def f(): ...\n\n\ndef g():\n    return 2\n") == before


def test_moving_a_function_to_another_module_changes_no_digest(library):
    here = library(start="def root():\n    return f()\n\n\ndef f():\n    return 1\n")
    there = library(
        start="from searle_lib.other import f\n\n\ndef root():\n    return f()\n", other="def f():\n    return 1\n"
    )
    assert here == there


@pytest.mark.parametrize("module", code.STORAGE_MODULES)
def test_how_results_are_kept_is_not_in_a_digest(library, module):
    start = f"from searle_lib.{module} import f\n\n\ndef root():\n    return f()\n"
    file = module.replace(".", "__")
    before = library(start=start, **{file: "def f():\n    return 1\n"})
    assert library(start=start, **{file: "def f():\n    return 2\n"}) == before


# Notebooks


def notebook(path, *cells):
    """A notebook of (type, source, tags) cells."""
    cells = [{"cell_type": kind, "source": source, "metadata": {"tags": tags}} for kind, source, tags in cells]
    path.write_text(json.dumps({"cells": cells}))
    return path


CELLS = (
    ("markdown", "# Phrases", []),
    ("code", "steps: int = 350", ["parameters"]),
    ("code", "from searle_lib import start\n\nstart.root(steps)  # runs", []),
)


def with_cell(place, source):
    kind, _, tags = CELLS[place]
    return [*CELLS[:place], (kind, source, tags), *CELLS[place + 1 :]]


def test_a_notebooks_code_is_its_cells_and_what_they_reach(tmp_path, library):
    library(start="def root(steps):\n    return 1\n")
    before = code.notebook_code_digest(notebook(tmp_path / "n.ipynb", *CELLS))
    another_call = "from searle_lib import start\n\nstart.root(steps + 1)"
    assert code.notebook_code_digest(notebook(tmp_path / "n.ipynb", *with_cell(2, another_call))) != before
    library(start="def root(steps):\n    return 2\n")
    assert code.notebook_code_digest(notebook(tmp_path / "n.ipynb", *CELLS)) != before


@pytest.mark.parametrize(
    ("place", "source"),
    [
        (0, "# Other words"),
        (1, "steps: int = 50"),
        (2, "from searle_lib import start\n\n\nstart.root(\n    steps\n)"),
    ],
    ids=["text", "parameters", "layout"],
)
def test_a_notebooks_text_parameters_and_layout_are_not_its_code(tmp_path, library, place, source):
    library(start="def root(steps):\n    return 1\n")
    before = code.notebook_code_digest(notebook(tmp_path / "n.ipynb", *CELLS))
    assert code.notebook_code_digest(notebook(tmp_path / "n.ipynb", *with_cell(place, source))) == before


def test_all_that_a_notebook_says_is_in_the_digest_of_its_cells_but_for_its_parameters(tmp_path):
    file = tmp_path / "n.ipynb"
    before = code.cells_digest(notebook(file, *CELLS))
    assert code.cells_digest(notebook(file, *with_cell(0, "# Other words"))) != before
    assert code.cells_digest(notebook(file, *with_cell(2, "start.root(steps)"))) != before
    assert code.cells_digest(notebook(file, *with_cell(1, "steps: int = 50"))) == before
