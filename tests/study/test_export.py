"""What a study has made leaves it in the authors' form, number for number, and comes back in."""

import dataclasses
import json
import pickle
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from problems import FAST, problem

from searle_lib.backbone.model import keep_clip
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import rankings
from searle_lib.evaluation.composers import ImageOnly, Searle, SearleOti, Sources
from searle_lib.releases import folders, searle_files
from searle_lib.searle import distillation, oti, phi
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store
from searle_lib.store.records import MissingInput, Record, StaleInput, Study
from searle_lib.study import export

PHI_FAST = distillation.Settings(epochs=4, batch_size=2, top_k=4, learning_rate=1e-3)
IMAGENET = tuple(f"ILSVRC2012_test_{number:08d}" for number in range(1, 6))
LISTS = {
    "imagenet/test": IMAGENET,
    "cirr/val/references": tuple(f"dev-{number}-0-img1" for number in range(5)),
    "cirr/test1/references": tuple(f"test1-{number}-0-img1" for number in range(5)),
    "circo/val/references": ("7", "1", "30", "4", "12"),
}


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A store with OTI words of each list, φ of two epochs, and φ of a file; and all that a study's records name."""
    root = tmp_path_factory.mktemp("made")
    store, words, images, kept = Store(root / "artefacts"), {}, {}, {}
    vectors, concepts, phrases = problem(tiny)
    third = notebook(root, root / "artefacts", "03_oti")
    for number, (name, ids) in enumerate(LISTS.items()):
        images[name] = dataclasses.replace(vectors, name=name, ids=ids, vectors=vectors.vectors * (number + 1))
        near = dataclasses.replace(concepts, ids=ids)
        words[name] = oti.invert(third, tiny, images[name], near, phrases, FAST).tokens
    known = images["imagenet/test"], words["imagenet/test"], dataclasses.replace(concepts, ids=IMAGENET), phrases
    training = distillation.train(store, tiny, distillation.TrainingSet(*known), PHI_FAST, save_every=2)
    file = searle_files.write_phi(root / "phi_20.pt", 20, Phi(tiny.dimension, tiny.width).state_dict())
    by_checkpoint = {}
    for checkpoint in ("2", "last", "brought"):
        fourth = notebook(root, root / "artefacts", "04_phi")
        if checkpoint == "brought":
            by_checkpoint[checkpoint] = phi.import_phi(fourth, tiny, str(file))
        else:
            by_checkpoint[checkpoint] = distillation.choose(fourth, tiny, training, checkpoint, PHI_FAST.dropout)
        kept[checkpoint] = fourth.made
    return SimpleNamespace(
        root=root / "artefacts", images=images, words=words, phi=by_checkpoint, kept=kept, oti=third.made
    )


def notebook(folder, artefacts, name):
    """The study as one of its notebooks sees it."""
    return Study("little", folder, Store(artefacts, name), folder / "reports" / "little", name)


def leave(study, **parameters):
    """The record of a notebook, as it would write it."""
    study.write(Record(study.notebook, parameters, study.digests, study.made, "code", {"settings": {}}))


def benchmark(split, ids):
    """A benchmark whose images are its references."""
    queries = [(str(row), image, ["is red"], "", [], [], {}) for row, image in enumerate(ids)]
    columns = ["query", "reference", "sentences", "target", "ground_truths", "group", "aspects"]
    gallery = pd.DataFrame({"image": ids, "path": ids})
    table = pd.DataFrame(queries, columns=columns)
    return Benchmark(*split.split("/"), "all", split, gallery, table, (len(ids), len(ids)))


def ranked(folder, clip, made, phi="", inverted=(), splits=("cirr/val", "circo/val"), artefacts=None):
    """A study whose 06_retrieval has ranked by that φ, and by the OTI words of those splits."""
    at = folder, artefacts or made.root
    leave(notebook(*at, "01_phrases"), seed=7, phrases_per_concept=64)
    second = notebook(*at, "02_concepts")
    keep_clip(second, clip)
    leave(second, clip_model="models/tiny-clip.pt", concept_depth=50)
    third = notebook(*at, "03_oti")
    for earlier in ("01_phrases", "02_concepts"):
        third.read(earlier)
    third.made.update(made.oti)
    leave(third, seed=42, oti_steps=FAST.steps, oti_root="")
    if phi:
        fourth = notebook(*at, "04_phi")
        for earlier in ("02_concepts", "03_oti"):
            fourth.read(earlier)
        fourth.made.update(made.kept[phi])
        leave(fourth, seed=43, phi_dropout=0.25, phi_checkpoint=phi)
    sixth = notebook(*at, "06_retrieval")
    for earlier in ("02_concepts", *(["03_oti"] if inverted else []), *(["04_phi"] if phi else [])):
        sixth.read(earlier)
    for split in splits:
        name = f"{split}/references"
        sources = Sources(clip, made.images[name], made.words[name], made.phi.get(phi))
        composers = {"Image-only": ImageOnly(sources)}
        composers |= {"SEARLE": Searle(sources)} if phi else {}
        composers |= {"SEARLE-OTI": SearleOti(sources)} if split in inverted else {}
        rankings.rank_all(sixth, benchmark(split, LISTS[name]), made.images[name], composers)
    leave(sixth, methods=["Image-only", "SEARLE", "SEARLE-OTI"])
    return notebook(*at, "export")


def assert_words(folder, words):
    """Words as the authors' code reads them: a tensor, and a list of names in the same order."""
    assert pickle.loads((folder / "image_names.pkl").read_bytes()) == list(words.ids)
    assert torch.equal(torch.load(folder / "ema_oti_pseudo_tokens.pt", weights_only=True), words.vectors)
    assert torch.equal(
        searle_files.read_tokens(folder, words.ids[::-1], words.vectors.shape[1])[0], words.vectors.flip(0)
    )


def assert_phi(path, phi, epoch):
    saved = torch.load(path, weights_only=True)
    assert saved["epoch"] == epoch and set(saved) == {"epoch", "Phi"}
    weights = searle_files.read_phi(path, phi.layers[0].in_features, phi.layers[6].out_features)
    for name, value in phi.state_dict().items():
        assert torch.equal(saved["Phi"][name], value) and torch.equal(weights[name], value), name


def test_the_words_of_every_split_are_written(tiny, made, tmp_path):
    written = export.export(ranked(tmp_path, tiny, made, inverted=("cirr/val", "circo/val")), tmp_path / "out")
    places = [tmp_path / "out" / "oti_pseudo_tokens" / split / "little" for split in ("cirr/val", "circo/val")]
    assert sorted(written) == sorted(places)
    for folder, name in zip(places, ("cirr/val/references", "circo/val/references"), strict=True):
        assert_words(folder, made.words[name])
    assert not (tmp_path / "out" / "phi_models").exists()


def test_only_splits_that_were_ranked_by_their_words_are_written(tiny, made, tmp_path):
    (folder,) = export.export(ranked(tmp_path, tiny, made, inverted=("circo/val",)), tmp_path / "out")
    assert_words(folder, made.words["circo/val/references"])


def test_the_last_words_are_written_beside_the_ema(tiny, made, tmp_path):
    export.export(ranked(tmp_path, tiny, made, inverted=("cirr/val",)), tmp_path / "out")
    folder = tmp_path / "out" / "oti_pseudo_tokens" / "cirr" / "val" / "little"
    last = torch.load(folder / "oti_pseudo_tokens.pt", weights_only=True)
    ema = made.words["cirr/val/references"].vectors
    assert last.shape == ema.shape and not torch.equal(last, ema)


def test_the_parameters_of_the_records_are_written_beside_the_words(tiny, made, tmp_path):
    (folder,) = export.export(ranked(tmp_path, tiny, made, inverted=("cirr/val",)), tmp_path / "out")
    settings = json.loads((folder / "hyperparameters.json").read_text())
    assert settings == {
        "seed": 42,  # of 03_oti, not of 01_phrases
        "phrases_per_concept": 64,
        "clip_model": "models/tiny-clip.pt",
        "concept_depth": 50,
        "oti_steps": FAST.steps,
        "oti_root": "",
        "clip_model_name": "tiny-clip",
    }


@pytest.mark.parametrize(("checkpoint", "epoch"), [("2", 2), ("last", 4)])
def test_a_trained_phi_is_written_with_its_epoch_and_with_the_words_that_taught_it(
    tiny, made, tmp_path, checkpoint, epoch
):
    written = export.export(ranked(tmp_path, tiny, made, checkpoint), tmp_path / "out")
    (file,) = (tmp_path / "out" / "phi_models" / "little").rglob("*.pt")
    assert file.name == f"phi_{epoch}.pt" and file in written
    assert_phi(file, made.phi[checkpoint].module, epoch)
    taught = [folder for folder in (tmp_path / "out").rglob("little") if (folder / "image_names.pkl").exists()]
    assert taught == [tmp_path / "out" / "oti_pseudo_tokens" / "imagenet" / "test" / "little"]
    back = searle_files.read_tokens(taught[0], IMAGENET, tiny.width)[0]
    assert torch.equal(back, made.words["imagenet/test"].vectors) and len(written) == 2


def test_a_phi_of_a_file_is_written_alone(tiny, made, tmp_path):
    written = export.export(ranked(tmp_path, tiny, made, "brought"), tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.pt")
    assert written == [file] and not (tmp_path / "out" / "oti_pseudo_tokens").exists()
    assert_phi(file, made.phi["brought"].module, 0)


def test_what_is_written_comes_back_in_as_what_a_user_brings(tiny, made, tmp_path):
    written = export.export(ranked(tmp_path, tiny, made, "last", ("cirr/val", "circo/val")), tmp_path / "out")
    assert len(written) == 4
    store, root = Store(tmp_path / "store"), str(tmp_path / "out" / "oti_pseudo_tokens")
    for name in ("imagenet/test", "cirr/val/references", "circo/val/references"):
        back = oti.import_words(store, tiny, made.images[name], folders.find_tokens(root, name))
        assert torch.equal(back.tokens.vectors, made.words[name].vectors), name
    (file,) = (path for path in written if path.suffix == ".pt")
    brought = phi.import_phi(store, tiny, str(file)).module
    vectors = made.images["cirr/val/references"].vectors
    assert torch.equal(brought(vectors), made.phi["last"].module(vectors))


def test_words_of_a_folder_are_written_as_they_came(tiny, made, tmp_path):
    name = "cirr/val/references"
    came = made.words[name]
    place = searle_files.write_tokens(tmp_path / "oti" / "exp", came.ids, came.vectors, came.vectors + 1, {})
    third = notebook(tmp_path, tmp_path / "artefacts", "03_oti")
    words = oti.import_words(third, tiny, made.images[name], place).tokens
    brought = SimpleNamespace(
        root=tmp_path / "artefacts", images=made.images, words={name: words}, phi={}, oti=third.made
    )
    study = ranked(tmp_path, tiny, brought, inverted=("cirr/val",), splits=("cirr/val",))
    (folder,) = export.export(study, tmp_path / "out")
    assert_words(folder, came)
    assert torch.equal(torch.load(folder / "oti_pseudo_tokens.pt", weights_only=True), came.vectors + 1)


def test_a_study_without_phi_and_words_has_nothing_to_export(tiny, made, tmp_path):
    sentence = "06_retrieval of study little ranked neither SEARLE nor SEARLE-OTI, .* to export; add one of them to me"
    with pytest.raises(ValueError, match=sentence):
        export.export(ranked(tmp_path, tiny, made), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_whose_retrieval_has_not_run_is_told_to_run_it(made, tmp_path):
    with pytest.raises(MissingInput, match="needs the record of 06_retrieval in study little; run 06_retrieval first"):
        export.export(notebook(tmp_path, made.root, "export"), tmp_path / "out")


def test_an_artefact_that_is_gone_is_named_with_its_notebook(tiny, made, tmp_path):
    artefacts = shutil.copytree(made.root, tmp_path / "artefacts")
    study = ranked(tmp_path, tiny, made, inverted=("circo/val",), artefacts=artefacts)
    name = made.oti["oti/circo/val/references"]
    shutil.rmtree(artefacts / name)
    with pytest.raises(MissingInput, match=f"03_oti's artefact .*artefacts/{name} is gone; run 03_oti again"):
        export.export(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_half_built_artefact_of_that_key_is_not_taken(tiny, made, tmp_path):
    artefacts = shutil.copytree(made.root, tmp_path / "artefacts")
    study = ranked(tmp_path, tiny, made, inverted=("circo/val",), artefacts=artefacts)
    folder = artefacts / made.oti["oti/circo/val/references"]
    folder.rename(folder.with_name(folder.name + ".partial"))
    with pytest.raises(MissingInput, match="is gone; run 03_oti again"):
        export.export(study, tmp_path / "out")


def test_words_that_were_made_anew_since_the_ranking_are_refused(tiny, made, tmp_path):
    study = ranked(tmp_path, tiny, made, inverted=("cirr/val",))
    third = notebook(tmp_path, made.root, "03_oti")
    third.read("02_concepts")
    third.made.update(made.oti)
    leave(third, seed=42, oti_steps=350, oti_root="")
    sentence = "06_retrieval was made with oti_steps 6, but 03_oti now has 350; run 06_retrieval again"
    with pytest.raises(StaleInput, match=sentence):
        export.export(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What the authors' validate.py, generate_test_submission.py and train_phi.py ask of the folders


def test_the_authors_validation_finds_phi_and_its_settings(tiny, made, tmp_path):
    export.export(ranked(tmp_path, tiny, made, "2"), tmp_path / "out")
    folder = tmp_path / "out" / "phi_models" / "little"
    assert (folder / "checkpoints" / "phi_2.pt").is_file()
    settings = json.loads((folder / "hyperparameters.json").read_text())
    assert settings["clip_model_name"] == "tiny-clip" and settings["phi_dropout"] == PHI_FAST.dropout
    assert settings["seed"] == 43 and settings["phi_checkpoint"] == "2" and settings["oti_steps"] == FAST.steps


def test_the_authors_validation_finds_the_clip_of_words(tiny, made, tmp_path):
    (folder,) = export.export(ranked(tmp_path, tiny, made, inverted=("cirr/val",)), tmp_path / "out")
    assert json.loads((folder / "hyperparameters.json").read_text())["clip_model_name"] == "tiny-clip"


def test_the_authors_submission_finds_words_of_cirr_in_test(tiny, made, tmp_path):
    study = ranked(tmp_path, tiny, made, inverted=("cirr/test1",), splits=("cirr/test1",))
    assert export.export(study, tmp_path / "out") == [
        tmp_path / "out" / "oti_pseudo_tokens" / "cirr" / "test" / "little"
    ]


def test_the_authors_training_finds_imagenet_words_by_file_name(tiny, made, tmp_path):
    export.export(ranked(tmp_path, tiny, made, "2"), tmp_path / "out")
    names = tmp_path / "out" / "oti_pseudo_tokens" / "imagenet" / "test" / "little" / "image_names.pkl"
    assert pickle.loads(names.read_bytes()) == [f"{image}.JPEG" for image in IMAGENET]
