from pathlib import Path

import nbformat
import pytest
import yaml

from searle_lib import parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def known():
    return parameters.declared(NOTEBOOKS)


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
        ("oti_stesp: 3", r"unknown parameter oti_stesp in .*study.yaml; did you mean oti_steps \(03_oti, 04_phi, 06"),
        ("zzz: 3", r"unknown parameter zzz in .*study.yaml; no notebook declares it"),
        ("oti_steps: many", r"oti_steps in .* is 'many', a str, but must be of type int; notebook 03_oti says: optim"),
        ("oti_steps: true", r"oti_steps in .* is True, a bool, but must be of type int"),
        ("oti_steps: 3.5", r"oti_steps in .* is 3.5, a float, but must be of type int"),
        ("oti_learning_rate: 2e-2", r"is '2e-2', a str, .* float \(YAML reads 2e-2 as a string: write 2.0e-2\)"),
        ("preprocess: squash", r"preprocess in .* holds 'squash'; it must be targetpad or clip"),
        ("datasets: [cirr, coco]", r"datasets in .* holds 'coco'; it must be fashioniq or cirr or circo"),
        ("methods: [SEARL]", r"methods in .* holds 'SEARL'; it must be Image-only or Text-only or"),
        ("oti_steps: 0", r"oti_steps in .* is 0; it must be at least 1"),
        ("oti_lambda_gpt: -0.5", r"oti_lambda_gpt in .* is -0.5; it must be at least 0"),
        ("seed: 1\nseed: 2", r"study.yaml sets seed twice; remove one"),
        ("a: [1", r"study.yaml is not valid YAML"),
        ("- 1", r"study.yaml must hold one `name: value` a line, but holds a list"),
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


def test_choices_are_those_that_the_library_knows():
    from searle_lib import backbone, benchmarks, captions, composers, fti_training, images, readable, workspace

    known_to_library = {
        "world": workspace.WORLDS,
        "preprocess": images.PREPROCESSINGS,
        "precision": backbone.PRECISIONS,
        "datasets": benchmarks.PROTOCOLS,
        "evaluate": benchmarks.EVALUATE,
        "fashioniq_gallery": benchmarks.FASHIONIQ_GALLERIES,
        "missing_images": readable.POLICIES,
        "fti_words": tuple(fti_training.UNUSED),
        "fti_without": ("", *fti_training.TERMS),
        "caption_split": captions.SPLITS,
        "methods": composers.METHODS,
    }
    assert {name: tuple(values) for name, values in known_to_library.items()} == parameters.CHOICES


def test_the_mini_study_sets_every_parameter_to_the_default_that_notebooks_declare(known):
    """So that a notebook opened by hand finds what `make study` has left."""
    mini = yaml.safe_load((ROOT / "params" / "mini.yaml").read_text())
    assert {name: yaml.safe_load(facts.default) for name, facts in known.items()} == mini


def test_a_parameter_is_declared_alike_in_every_notebook_and_explained():
    lines = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
        for line in cell.source.splitlines():
            name, _, comment = line.partition(":")[0], *line.partition("#")[1:]
            assert len(comment) > 8, f"{path.stem} does not explain {name}"
            assert lines.setdefault(name, line) == line, f"{path.stem} declares {name} otherwise"


def test_every_option_of_the_published_command_line_is_a_parameter(known):
    """searle.md, section 8, under the field's names."""
    help_texts = " ".join(facts.help for facts in known.values())
    for option in (
        "gpt-neo-2.7B", "max-length: 35", "num-return-sequences: 256", "temperature: 0.5", "no-repeat-ngram-size: 2",
        "dataset-path", "batch-size: 32", "num-workers: 8", "preprocess-type: targetpad",
        "learning-rate: 2e-2", "weight-decay: 0.01", "top-k: 15", "oti-steps: 350", "lambda_gpt: 0.5",
        "lambda_cos: 1", "ema-decay: 0.99", "save-frequency: 10", "seed of every", "phi-dropout: 0.5",
        "batch-size: 256", "learning-rate: 1e-4", "num-epochs: 100", "lambda-distil: 1", "lambda-gpt: 0.75",
        "temperature: 0.25", "exp-name", "submission-name", "resume", "dataset, split, dataset-mode", "save-training",
        "api-key", "validation-frequency: 1", "save-frequency: 5", "top-k-concepts: 150", "workspace",
        "eval-type", "phi-checkpoint-name",
    ):  # fmt: skip
        assert option in help_texts, option


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "params").glob("*.yaml")))
def test_every_shipped_parameter_file_is_accepted(known, file):
    values = parameters.read(ROOT / "params" / file, known)
    assert values["study"] == Path(file).stem


@pytest.mark.parametrize("file", ["searle-b32.yaml", "searle-xl.yaml"])
def test_the_published_studies_leave_nothing_to_the_miniature_defaults(known, file):
    values = parameters.read(ROOT / "params" / file, known)
    without = () if "FTI4CIR" in values["methods"] else ("fti_", "blip_", "caption")
    assert {name for name in known if not name.startswith(without)} <= set(values)
