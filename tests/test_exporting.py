"""What a study has made leaves it in the authors' form, number for number, and comes back in."""

import dataclasses
import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from test_distillation import FAST as PHI_FAST
from test_inversion import FAST, problem

from searle_lib import authors, distillation, exporting, inversion
from searle_lib.artefacts import Store, write_json
from searle_lib.composers import ImageOnly, Searle, SearleOti, Sources

IMAGENET = tuple(f"ILSVRC2012_test_{number:08d}" for number in range(1, 6))
LISTS = {
    "imagenet/test": IMAGENET,
    "cirr/val/references": tuple(f"dev-{number}-0-img1" for number in range(5)),
    "circo/val/references": ("7", "1", "30", "4", "12"),
}


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Artefacts of a small study: OTI tokens of each list, given φ, and φ of two epochs."""
    root = tmp_path_factory.mktemp("made") / "artefacts"
    store, tokens, images = Store(root), {}, {}
    vectors, concepts, phrases = problem(tiny)
    for number, (name, ids) in enumerate(LISTS.items()):
        images[name] = dataclasses.replace(vectors, name=name, ids=ids, vectors=vectors.vectors * (number + 1))
        near = dataclasses.replace(concepts, ids=ids)
        tokens[name] = inversion.invert(store, tiny, images[name], near, phrases, FAST).tokens
    taught = images["imagenet/test"], tokens["imagenet/test"], dataclasses.replace(concepts, ids=IMAGENET), phrases
    trained = {epoch: distillation.distil(store, tiny, *taught, PHI_FAST, checkpoint=epoch) for epoch in ("2", "last")}
    file = authors.write_phi(root.parent / "given.pt", 20, distillation.Phi(tiny.dimension, tiny.width).state_dict())
    given = distillation.pretrained(store, tiny, str(file))
    return SimpleNamespace(root=root, images=images, tokens=tokens, trained=trained, given=given, file=file)


def leave_word(reports, composers):
    """made_with.json as 06_retrieval leaves it, of composers by split and method."""
    keys = {split: {method: composer.key for method, composer in of.items()} for split, of in composers.items()}
    reports.mkdir(parents=True, exist_ok=True)
    write_json(reports / "made_with.json", {"backbone": "tiny-clip", "seed": 42, "made_from": keys})
    return reports


def study(folder, clip, made, network=None, inverted=()):
    """The reports of a study with that φ and the OTI tokens of those splits."""
    composers = {}
    for split in ("cirr/val", "circo/val"):
        name = f"{split}/references"
        sources = Sources(clip, made.images[name], made.tokens[name], network)
        composers[split] = {"Image-only": ImageOnly(sources)}
        composers[split] |= {"SEARLE": Searle(sources)} if network else {}
        composers[split] |= {"SEARLE-OTI": SearleOti(sources)} if split in inverted else {}
    return leave_word(folder / "reports" / "little", composers)


def assert_tokens(folder, tokens):
    """Tokens as the authors' code reads them: a tensor, and a list of names in the same order."""
    assert pickle.loads((folder / "image_names.pkl").read_bytes()) == list(tokens.ids)
    assert torch.equal(torch.load(folder / "ema_oti_pseudo_tokens.pt", weights_only=True), tokens.vectors)
    assert torch.equal(
        authors.read_tokens(folder, tokens.ids[::-1], tokens.vectors.shape[1])[0], tokens.vectors.flip(0)
    )


def assert_phi(path, phi, epoch):
    saved = torch.load(path, weights_only=True)
    assert saved["epoch"] == epoch and set(saved) == {"epoch", "Phi"}
    weights = authors.read_phi(path, phi.layers[0].in_features, phi.layers[6].out_features)
    for name, value in phi.state_dict().items():
        assert torch.equal(saved["Phi"][name], value) and torch.equal(weights[name], value), name


def test_the_tokens_of_every_split_are_written(tiny, made, tmp_path):
    reports = study(tmp_path, tiny, made, inverted=("cirr/val", "circo/val"))
    written = exporting.export(made.root, reports, tmp_path / "out")
    folders = [tmp_path / "out" / "oti_pseudo_tokens" / split / "little" for split in ("cirr/val", "circo/val")]
    assert sorted(written) == sorted(folders)
    for folder, name in zip(folders, ("cirr/val/references", "circo/val/references"), strict=True):
        assert_tokens(folder, made.tokens[name])
    assert not (tmp_path / "out" / "phi_models").exists()


def test_the_last_tokens_are_written_beside_the_ema(tiny, made, tmp_path):
    exporting.export(made.root, study(tmp_path, tiny, made, inverted=("cirr/val",)), tmp_path / "out")
    folder = tmp_path / "out" / "oti_pseudo_tokens" / "cirr" / "val" / "little"
    last = torch.load(folder / "oti_pseudo_tokens.pt", weights_only=True)
    ema = made.tokens["cirr/val/references"].vectors
    assert last.shape == ema.shape and not torch.equal(last, ema)
    assert json.loads((folder / "hyperparameters.json").read_text())["steps"] == FAST.steps


@pytest.mark.parametrize(("epoch", "number"), [("2", 2), ("last", 4)])
def test_a_trained_phi_is_written_with_its_epoch_and_with_the_tokens_that_taught_it(
    tiny, made, tmp_path, epoch, number
):
    written = exporting.export(made.root, study(tmp_path, tiny, made, made.trained[epoch]), tmp_path / "out")
    (file,) = (tmp_path / "out" / "phi_models" / "little").rglob("*.pt")
    assert file.name == f"phi_{number}.pt" and file in written
    assert_phi(file, made.trained[epoch].phi, number)
    taught = [folder for folder in (tmp_path / "out").rglob("little") if (folder / "image_names.pkl").exists()]
    assert taught == [tmp_path / "out" / "oti_pseudo_tokens" / "imagenet" / "test" / "little"]
    found = authors.read_tokens(taught[0], IMAGENET, tiny.width)[0]
    assert torch.equal(found, made.tokens["imagenet/test"].vectors) and len(written) == 2


def test_a_given_phi_is_written_alone(tiny, made, tmp_path):
    written = exporting.export(made.root, study(tmp_path, tiny, made, made.given), tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.pt")
    assert written == [file] and not (tmp_path / "out" / "oti_pseudo_tokens").exists()
    assert_phi(file, made.given.phi, 0)


def test_what_is_written_comes_back_in_as_what_a_study_is_given(tiny, made, tmp_path):
    network = made.trained["last"]
    reports = study(tmp_path, tiny, made, network, ("cirr/val", "circo/val"))
    written = exporting.export(made.root, reports, tmp_path / "out")
    assert len(written) == 4
    store, root = Store(tmp_path / "store"), str(tmp_path / "out" / "oti_pseudo_tokens")
    for name, images in made.images.items():
        back = inversion.invert(store, tiny, images, None, None, FAST, given=root)
        assert torch.equal(back.tokens.vectors, made.tokens[name].vectors), name
    (file,) = (path for path in written if path.suffix == ".pt")
    phi = distillation.pretrained(store, tiny, str(file)).phi
    vectors = made.images["cirr/val/references"].vectors
    assert torch.equal(phi(vectors), network.phi(vectors))


def test_given_tokens_are_written_as_they_came(tiny, made, tmp_path):
    name = "cirr/val/references"
    came = made.tokens[name]
    authors.write_tokens(tmp_path / "oti" / "cirr" / "val" / "exp", came.ids, came.vectors, came.vectors + 1, {})
    root, images = tmp_path / "artefacts", made.images[name]
    tokens = inversion.invert(Store(root), tiny, images, None, None, FAST, given=str(tmp_path / "oti")).tokens
    composers = {"cirr/val": {"SEARLE-OTI": SearleOti(Sources(tiny, images, tokens))}}
    (folder,) = exporting.export(root, leave_word(tmp_path / "reports" / "little", composers), tmp_path / "out")
    assert_tokens(folder, came)
    assert torch.equal(torch.load(folder / "oti_pseudo_tokens.pt", weights_only=True), came.vectors + 1)


def test_a_study_without_phi_and_tokens_has_nothing_to_export(tiny, made, tmp_path):
    with pytest.raises(ValueError, match="study little has no SEARLE and no SEARLE-OTI among its methods: there is"):
        exporting.export(made.root, study(tmp_path, tiny, made), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_whose_retrieval_has_not_run_is_told_to_run_it(made, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"little/made_with.json does not exist; run 06_retrieval of this"):
        exporting.export(made.root, tmp_path / "reports" / "little", tmp_path / "out")


def test_an_artefact_that_is_gone_is_named(tiny, made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / "artefacts")
    key = made.tokens["circo/val/references"].key
    (folder,) = root.rglob(f"*-{key}")
    shutil.rmtree(folder)
    reports = study(tmp_path, tiny, made, inverted=("circo/val",))
    with pytest.raises(FileNotFoundError, match=f"artefacts holds no artefact {key}, of which the study was made; run"):
        exporting.export(root, reports, tmp_path / "out")


def test_a_half_built_artefact_of_that_key_is_not_taken(tiny, made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / "artefacts")
    (folder,) = root.rglob(f"*-{made.tokens['circo/val/references'].key}")
    folder.rename(folder.with_name(folder.name + ".partial"))
    reports = study(tmp_path, tiny, made, inverted=("circo/val",))
    with pytest.raises(FileNotFoundError, match="holds no artefact"):
        exporting.export(root, reports, tmp_path / "out")


# What the authors' validate.py, generate_test_submission.py and train_phi.py ask of the folders


def test_the_authors_validation_finds_phi_and_its_settings(tiny, made, tmp_path):
    exporting.export(made.root, study(tmp_path, tiny, made, made.trained["2"]), tmp_path / "out")
    folder = tmp_path / "out" / "phi_models" / "little"
    assert (folder / "checkpoints" / "phi_2.pt").is_file()
    settings = json.loads((folder / "hyperparameters.json").read_text())
    assert settings["clip_model_name"] == "tiny-clip" and settings["phi_dropout"] == PHI_FAST.dropout


def test_the_authors_validation_finds_the_clip_of_tokens(tiny, made, tmp_path):
    (folder,) = exporting.export(made.root, study(tmp_path, tiny, made, inverted=("cirr/val",)), tmp_path / "out")
    assert json.loads((folder / "hyperparameters.json").read_text())["clip_model_name"] == "tiny-clip"


def test_the_authors_submission_finds_tokens_of_cirr_in_test(tiny, made, tmp_path):
    name = "cirr/val/references"
    composers = {"cirr/test1": {"SEARLE-OTI": SearleOti(Sources(tiny, made.images[name], made.tokens[name]))}}
    written = exporting.export(made.root, leave_word(tmp_path / "reports" / "little", composers), tmp_path / "out")
    assert written == [tmp_path / "out" / "oti_pseudo_tokens" / "cirr" / "test" / "little"]


def test_the_authors_training_finds_imagenet_tokens_by_file_name(tiny, made, tmp_path):
    exporting.export(made.root, study(tmp_path, tiny, made, made.trained["2"]), tmp_path / "out")
    names = tmp_path / "out" / "oti_pseudo_tokens" / "imagenet" / "test" / "little" / "image_names.pkl"
    assert pickle.loads(names.read_bytes()) == [f"{image}.JPEG" for image in IMAGENET]
