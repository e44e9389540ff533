"""Parameters: read from files, checked, and declared once each by the notebooks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from searle_lib.data import benchmarks
from searle_lib.evaluation import methods
from searle_lib.study import parameters, plan

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def known():
    return parameters.read_declarations(NOTEBOOKS)


def written(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return file


def test_values_and_overrides_are_read_with_their_types(tmp_path, known):
    file = written(tmp_path, "study: mine\noti_learning_rate: 1\ndatasets: [cirr]\n")
    values = parameters.read(file, known, ["oti_steps=50", "clip_model=ViT-B/32", "phi_checkpoint=5"])
    assert values == {
        "study": "mine",
        "oti_learning_rate": 1.0,
        "datasets": ["cirr"],
        "oti_steps": 50,
        "clip_model": "ViT-B/32",
        "phi_checkpoint": "5",
    }
    assert type(values["oti_learning_rate"]) is float


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("oti_stesp: 3", r"unknown parameter oti_stesp in .*study.yaml; did you mean oti_steps \(03_oti\)"),
        ("zzz: 3", r"unknown parameter zzz in .*study.yaml; no notebook declares it"),
        ("oti_steps: many", r"oti_steps in .* is 'many', a str, but must be of type int; notebook 03_oti says: optim"),
        ("oti_steps: true", r"oti_steps in .* is True, a bool, but must be of type int"),
        ("oti_steps: 3.5", r"oti_steps in .* is 3.5, a float, but must be of type int"),
        ("oti_learning_rate: 2e-2", r"is '2e-2', a str, .* float \(YAML reads 2e-2 as a string: write 2.0e-2\)"),
        ("preprocess: squash", r"preprocess in .* holds 'squash'; it must be targetpad or clip"),
        ("datasets: [cirr, coco]", "datasets in .*: there is no dataset coco; datasets may name fashioniq, cirr,"),
        ("datasets: [7]", r"datasets in .* holds 7; it must be fashioniq or cirr or circo"),
        ("datasets: [CIRR.csv]", "datasets in .*: CIRR.csv has the name of a published data set; rename the file"),
        ("datasets: [a/me.csv, b/Me.csv]", "datasets in .*: a/me.csv and b/Me.csv name the same data set; rename one"),
        ("datasets: [me.csv, me.csv]", r"datasets in .* holds 'me.csv' twice; name each once"),
        ("datasets: ['my data.csv']", "datasets in .*: my data.csv names the data set 'my data'; rename the file"),
        ("datasets: []", r"datasets in .* is empty; name at least one of fashioniq, cirr, circo"),
        ("methods: []", r"methods in .* is empty; name at least one of Image-only, Text-only, "),
        ("images_to_invert: [pictures]", r"images_to_invert in .* holds 'pictures'; it must be unlabeled or referenc"),
        ("fti_words: neither", r"fti_words in .* is 'neither'; it must be 'both', 'subject' or 'attributes'"),
        ("index: fast", r"index in .* holds 'fast'; it must be exact or faiss"),
        ("methods: [SEARL]", r"methods in .* holds 'SEARL'; it must be Image-only or Text-only or"),
        ("oti_steps: 0", r"oti_steps in .* is 0; it must be greater than 0"),
        ("oti_lambda_gpt: -0.5", r"oti_lambda_gpt in .* is -0.5; it must be greater than or equal to 0"),
        ("phi_dropout: 7.5", r"phi_dropout in .* is 7.5; it must be less than 1"),
        ("fti_temperature: .nan", r"fti_temperature in .* is nan; it must be a finite number"),
        ("seed: 99999999999999999999", r"seed in .* is 9+; it must be less than 9223372036854775808"),
        ("workers: 0", r"workers in .* is 0; it must be greater than 0"),
        ("seed: 1\nseed: 2", r"study.yaml sets seed twice; remove one"),
        ("a: [1", r"study.yaml is not valid YAML"),
        ("seed: " + "[" * 3000, r"study.yaml is not valid YAML"),
        ("seed: !!timestamp x", r"study.yaml is not valid YAML"),
        ("seed: !!int x", r"study.yaml is not valid YAML"),
        ("seed: 2020-99-99", r"study.yaml is not valid YAML"),
        ("seed: " + "9" * 5000, r"study.yaml is not valid YAML"),
        ("#" * 70_000, r"study.yaml is not valid YAML .*it may have 65,536 bytes"),
        ("methods: [SEARLE, SEARLE]", r"methods in .* holds 'SEARLE' twice; name each once"),
        ("study: ''", r"study in .* is ''; it must be the name of a folder"),
        ("study: ../esc", r"study in .* is '../esc'; it must be the name of a folder"),
        ("study: .hidden", r"study in .* is '.hidden'; it must be the name of a folder"),
        ('study: "a\\nb"', r"study in .* is 'a\\nb'; it must be a text of .* that can be printed"),
        ('data_root: "a\\0b"', r"data_root in .* is 'a\\x00b'; it must be a text"),
        ("phi_temperature: 0.0", r"phi_temperature in .* is 0.0; it must be greater than 0"),
        ("oti_ema_decay: 2.0", r"oti_ema_decay in .* is 2.0; it must be less than 1"),
        ("oti_learning_rate: .inf", r"oti_learning_rate in .* is inf; it must be a finite number"),
        ("oti_learning_rate: 1.0e-300", r"oti_learning_rate in .* is 1e-300; it must be 0, or between"),
        ("oti_steps: 99999999999", r"oti_steps in .* is 99999999999; it must be at most 2147483647"),
        ("oti_steps: -99999999999999999999", r"oti_steps in .*; it must be greater than 0"),
        ("workers: 99999", r"workers in .* is 99999; it must be less than or equal to 256"),
        ("? [1, 2]\n: 3", r"study.yaml"),
        ("- 1", r"study.yaml must hold one `name: value` per line, but holds a list"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(tmp_path, known, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parameters.read(written(tmp_path, text), known)


def test_a_missing_parameter_file_is_named(tmp_path, known):
    with pytest.raises(FileNotFoundError, match=r"parameter file .*gone.yaml does not exist"):
        parameters.read(tmp_path / "gone.yaml", known)


def test_an_override_without_a_value_is_refused(tmp_path, known):
    with pytest.raises(ValueError, match="-p oti_steps must be written name=value"):
        parameters.read(written(tmp_path, ""), known, ["oti_steps"])
    with pytest.raises(ValueError, match="-p datasets is not valid YAML"):
        parameters.read(written(tmp_path, ""), known, ["datasets=[cirr"])


def test_an_empty_list_of_images_to_invert_is_accepted(tmp_path, known):
    values = parameters.read(written(tmp_path, "images_to_invert: []"), known)
    assert values == {"images_to_invert": []}


def test_choices_are_looked_up_where_they_stand(known, monkeypatch):
    assert parameters.choices("datasets") == tuple(benchmarks.PROTOCOLS)
    assert parameters.choices("methods") == tuple(methods.METHODS)
    assert parameters.choices("oti_steps") == ()
    added = {**methods.METHODS, "Mine": methods.Method("composers:TextOnly")}
    monkeypatch.setattr(methods, "METHODS", added)  # as a new line of the table would
    assert parameters.check("methods", ["Mine"], known, "here") == ["Mine"]


@pytest.mark.parametrize("name", parameters.CHOICES)
def test_every_choice_exists_and_the_declared_default_is_among_them(known, name):
    allowed, default = parameters.choices(name), known[name].default
    assert allowed and set(default if isinstance(default, list) else [default]) <= set(allowed)


def test_defaults_are_accepted_without_an_import_of_what_lists_their_choices():
    """So that a notebook's start waits for nothing it does not need."""
    script = (
        "import sys; from searle_lib.study import parameters, workspace; "
        "known = parameters.read_declarations(workspace.notebooks(workspace.project_root())); "
        "[parameters.check(n, v, known, 'here') for n, v in parameters.defaults(known).items()]; "
        "print('torch' in sys.modules, 'papermill' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_the_mini_study_sets_every_parameter_to_the_default_that_notebooks_declare(known):
    """So that a notebook opened by hand finds what `make study` has left."""
    mini = yaml.safe_load((ROOT / "params" / "mini.yaml").read_text())
    assert parameters.defaults(known) == {"images_to_invert": plan.images_to_invert(mini)} | mini


def test_every_parameter_stands_in_one_notebook_except_the_common_ones(known):
    several = {name for name, parameter in known.items() if len(parameter.notebooks) > 1}
    assert several <= set(parameters.COMMON) <= set(known)


def test_common_parameters_have_one_default():
    declarations = [parameters.read_declarations([path]) for path in NOTEBOOKS]
    for name in parameters.COMMON:
        assert len({repr(one[name].default) for one in declarations if name in one}) == 1, name


def test_every_notebook_declares_its_places():
    for path in NOTEBOOKS:
        own = parameters.names_of_notebook(parameters.read_declarations(NOTEBOOKS), path.stem)
        assert own[0] == "study" and {"artefact_root", "report_root"} <= set(own), path.stem


def test_no_notebook_declares_more_than_its_reader_can_survey(known):
    counts = {
        path.stem: len({*parameters.names_of_notebook(known, path.stem)} - {*parameters.EXECUTION})
        for path in NOTEBOOKS
    }
    assert max(counts.values()) <= 22
    assert counts["06_retrieval"] <= 9 and counts["07_results"] <= 8


def test_every_parameter_is_explained():
    for path in NOTEBOOKS:
        for name, parameter in parameters.read_declarations([path]).items():
            assert len(parameter.help) > 8, f"{path.stem} does not explain {name}"


def test_parameters_that_change_no_result_are_those_that_say_so():
    statements = {
        (name, "changes no result" in parameter.help)
        for path in NOTEBOOKS
        for name, parameter in parameters.read_declarations([path]).items()
    }
    assert {name for name, neutral in statements if neutral} == set(parameters.SPEED)
    assert {name for name, neutral in statements if not neutral}.isdisjoint(
        parameters.SPEED
    )  # in each of its notebooks


def test_places_and_speed_decide_nothing(known):
    deciding = parameters.result_parameters(parameters.defaults(known))
    assert set(known) - set(deciding) == {*parameters.PLACES, *parameters.SPEED}
    assert {"seed", "methods", "oti_steps", "world", "images_to_invert"} <= set(deciding)


def notebook(tmp_path, source):
    """A notebook whose parameters cell is this, between cells that are none."""
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# title"]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source.splitlines(keepends=True)},
        {"cell_type": "code", "metadata": {}, "source": ["beside = 3"]},
    ]
    path = tmp_path / "01_one.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_a_parameter_is_its_name_type_default_and_comment(tmp_path):
    path = notebook(tmp_path, 'steps: int = 3  # how many, of 5 # at most\nnames: list = ["a#b"]\nfile: str = ""\n')
    assert parameters.read_declarations([path]) == {
        "steps": parameters.Declaration(int, 3, "how many, of 5 # at most", ("01_one",)),
        "names": parameters.Declaration(list, ["a#b"], "", ("01_one",)),
        "file": parameters.Declaration(str, "", "", ("01_one",)),
    }


@pytest.mark.parametrize("source", ["steps = 3", "steps: dict = {}", "steps: int = 3\nprint(steps)"])
def test_a_declaration_without_a_known_type_is_refused(tmp_path, source):
    with pytest.raises(ValueError, match=r"01_one.ipynb declares .* without a type of str, int, float, bool, list"):
        parameters.read_declarations([notebook(tmp_path, source)])


def test_every_option_of_the_published_command_line_is_a_parameter():
    """The options of the authors' scripts, github.com/miccunifi/SEARLE, are parameters under the field's names.

    Options without a parameter: api-key and workspace are Comet's own environment variables. Every kept epoch is
    validated, so there is no validation-frequency and no save-training.
    """
    each = [parameters.read_declarations([path]) for path in NOTEBOOKS]
    help_texts = " ".join(parameter.help for of_one in each for parameter in of_one.values())
    for option in (
        "gpt-neo-2.7B", "max-length: 35", "num-return-sequences: 256", "temperature: 0.5", "no-repeat-ngram-size: 2",
        "dataset-path", "batch-size: 32", "num-workers: 8", "preprocess-type: targetpad",
        "learning-rate: 2e-2", "weight-decay: 0.01", "top-k: 15", "oti-steps: 350", "lambda_gpt: 0.5",
        "lambda_cos: 1", "ema-decay: 0.99", "save-frequency: 10", "seed of every", "phi-dropout: 0.5",
        "batch-size: 256", "learning-rate: 1e-4", "num-epochs: 100", "lambda-distil: 1", "lambda-gpt: 0.75",
        "temperature: 0.25", "exp-name", "submission-name", "resume", "dataset, split, dataset-mode",
        "save-frequency: 5", "top-k-concepts: 150", "eval-type", "phi-checkpoint-name",
    ):  # fmt: skip
        assert option in help_texts, option


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "params").glob("*.yaml")))
def test_every_shipped_parameter_file_is_accepted(known, file):
    values = parameters.read(ROOT / "params" / file, known)
    assert values["study"] == Path(file).stem


@pytest.mark.parametrize("file", ["searle-b32.yaml", "searle-xl.yaml"])
def test_the_published_studies_leave_nothing_to_the_miniature_defaults(known, file):
    values = parameters.read(ROOT / "params" / file, known)
    values["images_to_invert"] = plan.images_to_invert(values)  # as `run` does
    without = () if "FTI4CIR" in values["methods"] else ("fti_", "blip_", "caption")
    assert {name for name in known if not name.startswith(without)} <= set(values)


def test_published_values_are_read_from_the_declarations(known):
    published = parameters.published_values(known)
    assert published["oti_steps"] == 350 and published["fti_learning_rate"] == 4e-5
    assert published["clip_model"] == "ViT-B/32" and published["caption_split"] == "reference"
    assert not {"study", "data_root", "artefact_root", "datasets", "methods", "bootstrap_resamples"} & set(published)


def test_a_file_that_is_no_text_is_refused_with_its_name(tmp_path, known):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"study.yaml is not valid YAML .*; correct it"):
        parameters.read(tmp_path / "study.yaml", known)


@pytest.mark.parametrize("override", ["seed=!!timestamp x", "seed=[[" + "[" * 3000, "study=a\ud800", "seed=\x00"])
def test_an_override_of_any_form_is_refused_in_one_sentence(tmp_path, known, override):
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}.*; (correct it|it must)"):
        parameters.read(written(tmp_path, ""), known, [override])
