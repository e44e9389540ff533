"""Which notebooks a study does without, by its methods and by what the user brings."""

import re
from pathlib import Path

import pytest

from searle_lib.data import benchmarks
from searle_lib.releases import folders
from searle_lib.releases.folders import is_trained
from searle_lib.study import plan, workspace

NOTEBOOKS = [path.stem for path in workspace.notebooks(Path(__file__).parents[2])]
BASELINES = ["Image-only", "Text-only", "Image+Text"]
EVERYTHING = [*BASELINES, "SEARLE", "SEARLE-OTI", "FTI4CIR"]
SPLITS = ("fashioniq/val", "cirr/val", "cirr/test", "circo/val", "circo/test")
INVERTED = "nothing is inverted"
NO_PHI = "methods does not hold SEARLE"
NO_FTI = "methods does not hold FTI4CIR"


def values(**changes):
    """A study's parameters as far as they matter here: all is trained, on every data set and split."""
    return {
        "methods": EVERYTHING,
        "phi_checkpoint": "last",
        "fti_weights": "",
        "oti_root": "",
        "datasets": ["fashioniq", "cirr", "circo"],
        "evaluate": ["validation", "test"],
    } | changes


def experiments(root, *places):
    """Folders of OTI tokens, laid out as the authors' code does."""
    for folder in places:
        (root / folder).mkdir(parents=True)
        for name in ("ema_oti_pseudo_tokens.pt", "oti_pseudo_tokens.pt", "image_names.pkl"):
            (root / folder / name).touch()
    return str(root)


def reasons_to_skip(study):
    reasons = {notebook: plan.reason_to_skip(notebook, study) for notebook in NOTEBOOKS}
    return {notebook: reason for notebook, reason in reasons.items() if reason}


KINDS = {
    "everything is trained": (
        {},
        {},
    ),
    "an epoch of a training": (
        {"methods": ["SEARLE"], "phi_checkpoint": "20"},
        {"05_fti4cir": NO_FTI},
    ),
    "a published φ without OTI": (
        {"methods": [*BASELINES, "SEARLE"], "phi_checkpoint": "SEARLE_ViT-B32"},
        {"01_phrases": INVERTED, "03_oti": INVERTED, "05_fti4cir": NO_FTI},
    ),
    "a φ of a file with SEARLE-OTI": (
        {"methods": ["SEARLE", "SEARLE-OTI"], "phi_checkpoint": "models/phi_20.pt"},
        {"05_fti4cir": NO_FTI},
    ),
    "a published φ with FTI4CIR": (
        {"methods": ["SEARLE", "FTI4CIR"], "phi_checkpoint": "SEARLE_ViT-L14"},
        {"01_phrases": INVERTED, "03_oti": INVERTED},
    ),
    "SEARLE-OTI": (
        {"methods": ["SEARLE-OTI"]},
        {"04_phi": NO_PHI, "05_fti4cir": NO_FTI},
    ),
    "FTI4CIR": (
        {"methods": ["FTI4CIR"]},
        {"01_phrases": INVERTED, "03_oti": INVERTED, "04_phi": NO_PHI},
    ),
    "FTI4CIR of released weights": (
        {"methods": ["FTI4CIR"], "fti_weights": "model_60.pth"},
        {"01_phrases": INVERTED, "03_oti": INVERTED, "04_phi": NO_PHI},
    ),
    "no method that inverts": (
        {"methods": BASELINES},
        {"01_phrases": INVERTED, "03_oti": INVERTED, "04_phi": NO_PHI, "05_fti4cir": NO_FTI},
    ),
    "test alone": (
        {"evaluate": ["test"]},
        {"07_results": "evaluate does not hold validation"},
    ),
    "validation alone": (
        {"evaluate": ["validation"]},
        {},
    ),
    "SEARLE-OTI on a data set without the split": (
        {"methods": ["SEARLE-OTI"], "datasets": ["fashioniq"], "evaluate": ["test"]},
        {
            "01_phrases": INVERTED,
            "04_phi": NO_PHI,
            "05_fti4cir": NO_FTI,
            "07_results": "evaluate does not hold validation",
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_does_without_notebooks(kind):
    changes, expected = KINDS[kind]
    assert reasons_to_skip(values(**changes)) == expected


BROUGHT = {
    "all lists of SEARLE-OTI": (
        {"methods": ["SEARLE-OTI"]},
        SPLITS,
        [],
        {"01_phrases": INVERTED, "04_phi": NO_PHI, "05_fti4cir": NO_FTI},
    ),
    "all lists but one": (
        {"methods": ["SEARLE-OTI"]},
        [split for split in SPLITS if split != "circo/test"],
        ["references"],
        {"04_phi": NO_PHI, "05_fti4cir": NO_FTI},
    ),
    "all lists that are evaluated": (
        {"methods": ["SEARLE-OTI"], "evaluate": ["validation"], "datasets": ["cirr", "circo"]},
        ["cirr/val", "circo/val"],
        [],
        {"01_phrases": INVERTED, "04_phi": NO_PHI, "05_fti4cir": NO_FTI},
    ),
    "all lists, and φ": (
        {"methods": ["SEARLE", "SEARLE-OTI"], "phi_checkpoint": "SEARLE_ViT-B32"},
        SPLITS,
        [],
        {"01_phrases": INVERTED, "05_fti4cir": NO_FTI},
    ),
    "all lists and ImageNet, while φ still learns from phrases": (
        {"methods": ["SEARLE", "SEARLE-OTI"]},
        [*SPLITS, "imagenet/test"],
        ["unlabeled"],
        {"05_fti4cir": NO_FTI},
    ),
    "lists that no method uses": (
        {"methods": BASELINES},
        SPLITS,
        [],
        {"01_phrases": INVERTED, "03_oti": INVERTED, "04_phi": NO_PHI, "05_fti4cir": NO_FTI},
    ),
}


@pytest.mark.parametrize("kind", BROUGHT)
def test_a_study_whose_user_brings_words_does_without_notebooks(tmp_path, kind):
    changes, places, inverted, expected = BROUGHT[kind]
    root = experiments(tmp_path / "oti_pseudo_tokens", *(f"{place}/experiment" for place in places))
    study = values(**changes, oti_root=root)
    assert reasons_to_skip(study) == expected
    assert plan.images_to_invert(study) == inverted


@pytest.mark.parametrize(
    ("changes", "inverted"),
    [
        ({}, ["unlabeled", "references"]),
        ({"methods": ["SEARLE"]}, ["unlabeled"]),
        ({"methods": ["SEARLE-OTI"]}, ["references"]),
        ({"phi_checkpoint": "phi_20.pt"}, ["references"]),
        ({"methods": [*BASELINES, "FTI4CIR"]}, []),
    ],
)
def test_images_are_inverted_for_phi_and_for_searle_oti(changes, inverted):
    assert plan.images_to_invert(values(**changes)) == inverted
    assert set(inverted) <= set(benchmarks.IMAGE_LISTS)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"methods": ["SEARLE"], "phi_checkpoint": "20"}, True),
        ({"methods": ["SEARLE"], "phi_checkpoint": "SEARLE_ViT-B32"}, False),
        ({"methods": ["FTI4CIR"]}, True),
        ({"methods": ["FTI4CIR"], "fti_weights": "model_60.pth"}, False),
        ({"methods": ["SEARLE-OTI"]}, False),
    ],
)
def test_unlabeled_images_are_needed_where_a_network_learns(changes, needed):
    assert plan.needs_imagenet(values(**changes)) == needed


def test_methods_need_the_notebooks_that_make_their_words():
    assert plan.required_notebooks(EVERYTHING) == {"03_oti", "04_phi", "05_fti4cir"}
    assert plan.required_notebooks(BASELINES) == set()


@pytest.mark.parametrize(
    ("checkpoint", "trained"),
    [("last", True), ("5", True), ("SEARLE_ViT-B32", False), ("phi_20.pt", False), ("last.pt", False)],
)
def test_a_phi_is_trained_when_its_checkpoint_is_last_or_an_epoch(checkpoint, trained):
    assert is_trained(checkpoint) == trained
    assert plan.trains_phi(["SEARLE"], checkpoint) == trained
    assert not plan.trains_phi(["SEARLE-OTI", "FTI4CIR"], checkpoint)


@pytest.mark.parametrize(
    ("images", "folder"),
    [
        ("imagenet/test", "imagenet/test/oti-b32"),
        ("fashioniq/val/references", "fashioniq/val/exp"),
        ("cirr/test1/references", "cirr/test/exp"),  # the authors' name of the split
        ("cirr/test1/references", "cirr/test1/exp"),
        ("circo/test/references", "circo/test"),
    ],
)
def test_a_list_has_the_tokens_of_its_data_set_and_split(tmp_path, images, folder):
    root = experiments(tmp_path, folder, "circo/val/other", "cirr/val/other", "imagenet/val/other")
    assert folders.find_tokens(root, images) == tmp_path / folder


def test_a_list_has_the_concepts_of_its_data_set_and_split(tmp_path):
    for folder in ("cirr/val", "cirr/test", "imagenet/test"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "ViT-B32_top_250_ensembling_image_texts.csv").touch()
    for images, folder in (("cirr/test1/references", "cirr/test"), ("imagenet/test", "imagenet/test")):
        found = folders.find_concepts(str(tmp_path), images, "ViT-B/32")
        assert found == tmp_path / folder / "ViT-B32_top_250_ensembling_image_texts.csv"
    assert folders.find_concepts(str(tmp_path), "circo/val/references", "ViT-B/32") is None


def concepts_of_b32(root, images):
    return folders.find_concepts(root, images, "ViT-B/32")


@pytest.mark.parametrize("find", [folders.find_tokens, concepts_of_b32])
def test_without_a_root_nothing_is_brought(find):
    assert find("", "cirr/val/references") is None


@pytest.mark.parametrize(("find", "parameter"), [(folders.find_tokens, "oti_root"), (concepts_of_b32, "concepts_root")])
def test_a_root_that_does_not_exist_is_named(tmp_path, find, parameter):
    sentence = rf"{parameter} .*gone does not exist; correct it, or leave it empty to compute"
    with pytest.raises(FileNotFoundError, match=sentence):
        find(str(tmp_path / "gone"), "cirr/val/references")


def test_two_experiments_about_one_list_are_refused_by_name(tmp_path):
    root = experiments(tmp_path, "cirr/val/first", "cirr/val/second", "circo/val/third")
    first, second = (re.escape(str(tmp_path / "cirr" / "val" / name)) for name in ("first", "second"))
    with pytest.raises(
        ValueError, match=rf"oti_root has two files for cirr/val.references, {first}.* and {second}.*; remove one"
    ):
        plan.reason_to_skip("03_oti", values(methods=["SEARLE-OTI"], datasets=["cirr"], oti_root=root))
    assert folders.find_tokens(root, "circo/val/references") == tmp_path / "circo/val/third"


@pytest.mark.parametrize("changes", [{"methods": ["SEARLE-OTI"]}, {"methods": ["SEARLE", "SEARLE-OTI"]}])
def test_two_experiments_are_refused_before_anything_runs_even_where_another_list_has_none(tmp_path, changes):
    root = experiments(tmp_path, "circo/test/first", "circo/test/second")
    with pytest.raises(ValueError, match="oti_root has two files for circo/test"):
        plan.reason_to_skip("01_phrases", values(**changes, oti_root=root))


def test_an_oti_root_that_does_not_exist_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"oti_root .*gone does not exist; correct it"):
        plan.reason_to_skip("01_phrases", values(methods=["SEARLE"], oti_root=str(tmp_path / "gone")))


@pytest.mark.parametrize(("clip", "file"), [("ViT-B/32", "ViT-B32"), ("ViT-L-14", "ViT-L14"), ("RN50x4", None)])
def test_concepts_are_those_of_the_studys_clip(tmp_path, clip, file):
    (tmp_path / "cirr" / "val").mkdir(parents=True)
    for name in ("ViT-B32", "ViT-L14"):
        (tmp_path / "cirr" / "val" / f"{name}_top_250_ensembling_image_texts.csv").touch()
    found = folders.find_concepts(str(tmp_path), "cirr/val/references", clip)
    assert found == (file and tmp_path / "cirr" / "val" / f"{file}_top_250_ensembling_image_texts.csv")


def test_two_files_of_concepts_of_one_clip_are_refused_by_name(tmp_path):
    for kept in (150, 250):
        (tmp_path / "cirr" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cirr" / "val" / f"ViT-B32_top_{kept}_ensembling_image_texts.csv").touch()
    with pytest.raises(
        ValueError, match=r"concepts_root has two files for cirr/val/ref.*, .*top_150.* and .*top_250.*; remove"
    ):
        folders.find_concepts(str(tmp_path), "cirr/val/references", "ViT-B/32")
