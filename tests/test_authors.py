"""SEARLE's own files: what is in them is what a study takes, what is broken is refused, and nothing in them runs."""

import json
import os
import pickle
import urllib.request
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FULL, leave_record, study_of
from test_inversion import FAST, problem
from torch.testing import assert_close

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data import benchmarks
from searle_lib.releases import searle_files
from searle_lib.searle import concepts, oti, phi, phrases
from searle_lib.searle.concepts import Vocabulary
from searle_lib.searle.phrases import Settings
from searle_lib.store.artefacts import Store

PHRASES = {
    "Cat": ["a photo of Cat that sleeps", "a photo of Cat that. is big"],
    " Traffic light ": ["a photo of Traffic light that was taken at night"],
    "'Nduja": ["a photo of 'Nduja that é", "a photo of 'Nduja that", "a photo of 'Nduja that é"],
}
TABLE = [(concept.strip(), phrase) for concept, of in PHRASES.items() for phrase in of]
VOCABULARY = Vocabulary(("Traffic light", "Cat"), "two")
IDS = [f"ILSVRC2012_test_{number:08d}" for number in (7, 1, 30, 4)]


class Runs:
    """Unpickling this would run a command that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def without_network(monkeypatch, home):
    """A home folder of its own, on a machine whose network is a closed port."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("no_proxy", "")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it would keep the proxies of an earlier test
    return home / ".cache" / "searle"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where published files are looked for, on a machine without network."""
    return without_network(monkeypatch, tmp_path / "home")


def pickled(path, content):
    """A pickle, in a zip archive where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("GPTNeo27B/hyperparameters.json", "{}")
            archive.writestr("GPTNeo27B/concept_to_phrases.pkl", pickle.dumps(content))
    else:
        path.write_bytes(pickle.dumps(content))
    return path


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Phrases


@pytest.mark.parametrize("name", ["concept_to_phrases.pkl", "GPTNeo27B.zip"])
def test_phrases_of_a_pickle_are_rows_concept_after_concept(tmp_path, name):
    table = searle_files.read_phrases(pickled(tmp_path / name, PHRASES))
    assert list(table.columns) == ["concept", "phrase"]
    assert list(table.itertuples(index=False, name=None)) == TABLE


@pytest.mark.parametrize("name", ["concept_to_phrases.pkl", "GPTNeo27B.zip"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, name):
    file = pickled(tmp_path / name, {"Cat": ["a photo of Cat that"], "Dog": Runs(tmp_path / "ran")})
    with pytest.raises(
        ValueError,
        match=rf"{name} is no pickle of plain lists and texts: it names posix.system, which .*; download it again",
    ):
        searle_files.read_phrases(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (["a photo of Cat that"], "holds a list, not a dictionary of phrases by concept"),
        ("Cat", "holds a str, not a dictionary of phrases by concept"),
        ({}, "holds .*dictionary"),
        ({"Cat": ["a Cat"], "Dog": []}, "holds no list of phrases under 'Dog'; it must map names to lists of text"),
        ({"Cat": ["a Cat", 5]}, "holds no list of phrases under 'Cat'; it must map names to lists of text"),
        ({"Cat": "a Cat"}, "holds no list of phrases under 'Cat'; it must map names to lists of text"),
        ({7: ["a Cat"]}, "holds no list of phrases under 7; it must map names to lists of text"),
        ({"Cat": ["a"], "Dog": ["b"], " Cat": ["c"]}, "has the concept 'Cat' twice but for blanks; remove one"),
    ],
)
def test_a_pickle_that_maps_no_names_to_phrases_is_refused(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=f"phrases.pkl {sentence}"):
        searle_files.read_phrases(pickled(tmp_path / "phrases.pkl", content))


def test_a_pickle_that_is_cut_off_anywhere_is_refused(tmp_path):
    whole = pickle.dumps(PHRASES)
    for end in range(len(whole)):
        (tmp_path / "cut.pkl").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut.pkl is no pickle of plain lists and texts: .*; download it again"):
            searle_files.read_phrases(tmp_path / "cut.pkl")


@pytest.mark.parametrize("name", ["concept_to_phrases.pkl", "GPTNeo27B.zip"])
def test_a_study_given_phrases_takes_exactly_those_and_keeps_them_as_parquet(tmp_path, name):
    file = pickled(tmp_path / name, PHRASES)
    written = phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), given=str(file))
    for concept, of in PHRASES.items():
        assert list(written.of(concept.strip())) == of
    assert list(zip(written.table()["concept"], written.texts, strict=True)) == TABLE
    (kept,) = (tmp_path / "store").glob("phrases-*/phrases.parquet")
    assert list(pd.read_parquet(kept).itertuples(index=False, name=None)) == TABLE


def test_other_given_phrases_have_another_key(tmp_path):
    keys = []
    for content in (PHRASES, PHRASES | {"Cat": ["a photo of Cat that runs"]}, PHRASES):
        file = pickled(tmp_path / "phrases.pkl", content)
        keys.append(phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), given=str(file)).key)
    assert keys[0] == keys[2] != keys[1]


def test_given_phrases_must_be_about_the_whole_vocabulary(tmp_path):
    file = pickled(tmp_path / "phrases.pkl", PHRASES)
    more = Vocabulary(("Tree", "Cat", "Boat"), "more")
    with pytest.raises(
        ValueError,
        match=r"phrases_file .*phrases.pkl has no phrases about 2 of the 3 concepts .*'Boat'\); use the vocabulary",
    ):
        phrases.generate(Store(tmp_path / "store"), more, "none", Settings(), given=str(file))
    assert not list((tmp_path / "store").glob("phrases*"))


def test_a_phrases_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"phrases_file .*gone.pkl is no file; correct it, or leave it empty to sample"
    ):
        phrases.generate(Store(tmp_path), VOCABULARY, "none", Settings(), given=str(tmp_path / "gone.pkl"))


def test_published_phrases_are_taken_from_the_cache_and_another_file_there_is_refused_later(tmp_path, cache):
    pickled(cache / "GPTNeo27B.zip", PHRASES)
    written = phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), given="published")
    assert list(zip(written.table()["concept"], written.texts, strict=True)) == TABLE
    pickled(cache / "GPTNeo27B.zip", {"Cat": ["a Cat"], "Traffic light": ["a Traffic light"]})
    with pytest.raises(ValueError, match=r"GPTNeo27B.zip is not the file that first came .*; delete it"):
        phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), given="published")


def test_without_network_published_phrases_are_asked_for_by_url_and_place(tmp_path, cache):
    with pytest.raises(ConnectionError) as problem:
        phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), given="published")
    assert f"download {phrases.RELEASE} on a machine with network and put it at {cache / 'GPTNeo27B.zip'}." in str(
        problem.value
    )


# Concepts


def similar_concepts(root, folder, names, depth=250, clip="tiny-clip", seed=5):
    """A CSV of the authors about images of those names, in that order; the concepts [N, depth] that it holds."""
    random = np.random.default_rng(seed)
    vocabulary = np.array([f"Concept, {number} " for number in range(2 * depth)])
    cells = np.stack([random.permutation(vocabulary)[:depth] for _ in names])
    table = pd.DataFrame([[name, *row] for name, row in zip(names, cells, strict=True)])
    table.columns = ["Image Name"] + [str(number) for number in range(1, depth + 1)]
    file = root / folder / f"{clip}_top_{depth}_ensembling_image_texts.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    return cells


def image_list(clip, name, ids):
    return Embeddings(name, tuple(ids), torch.ones(len(ids), clip.dimension), "images")


@pytest.mark.parametrize(
    ("name", "folder", "ids", "written"),
    [
        ("imagenet/test", "imagenet/test", IDS, "ILSVRC2012_test_{:08d}.JPEG"),
        ("imagenet/test", "imagenet/test", IDS, "{:08d}"),
        ("circo/val/references", "circo/val", ["7", "1", "30", "4"], "{:012d}"),
        ("circo/test/references", "circo/test", ["7", "1", "30", "4"], "{}"),
        ("cirr/val/references", "cirr/val", [f"dev-{n}-0-img1" for n in (7, 1, 30, 4)], "dev-{}-0-img1"),
        ("cirr/test1/references", "cirr/test", [f"test1-{n}-1-img0" for n in (7, 1, 30, 4)], "test1-{}-1-img0"),
        ("fashioniq/val/references", "fashioniq/val", [f"B00{n:07d}" for n in (7, 1, 30, 4)], "B00{:07d}"),
    ],
)
def test_an_image_has_the_concepts_of_its_row_of_the_authors_csv(tmp_path, tiny, name, folder, ids, written):
    order = (30, 2, 4, 1, 7)  # of the file's rows, among them an image that is not in the study
    cells = similar_concepts(tmp_path / "similar_concepts", folder, [written.format(number) for number in order])
    images = image_list(tiny, name, ids)
    near = concepts.associate(
        Store(tmp_path / "store"), tiny, images, VOCABULARY, 9, str(tmp_path / "similar_concepts")
    )
    assert near.ids == tuple(ids)
    for row, number in enumerate((7, 1, 30, 4)):
        expected = cells[order.index(number)][:9].tolist()
        assert [near.names[place] for place in near.rows[row].tolist()] == expected
    assert not list((tmp_path / "store").glob("vocabulary-features-*"))  # nothing was computed


def test_a_list_without_a_csv_is_computed(tmp_path, tiny):
    similar_concepts(tmp_path / "similar_concepts", "cirr/val", ["dev-0"])
    images = Embeddings("circo/val/references", ("1", "2"), torch.eye(2, tiny.dimension), "images")
    names = Vocabulary(("Star", "Boat", "Tree"), "three")
    computed = concepts.associate(Store(tmp_path / "a"), tiny, images, names, 3)
    beside = concepts.associate(Store(tmp_path / "b"), tiny, images, names, 3, str(tmp_path / "similar_concepts"))
    assert torch.equal(beside.rows, computed.rows) and beside.key == computed.key


def test_the_key_of_given_concepts_stands_for_file_list_and_depth(tmp_path, tiny):
    keys = []
    for seed, ids, depth in ((5, IDS, 9), (6, IDS, 9), (5, IDS[:2], 9), (5, IDS, 8), (5, IDS, 9)):
        similar_concepts(tmp_path / "csv", "imagenet/test", IDS, seed=seed)
        images = image_list(tiny, "imagenet/test", ids)
        near = concepts.associate(Store(tmp_path), tiny, images, VOCABULARY, depth, str(tmp_path / "csv"))
        keys.append(near.key)
    assert len(set(keys)) == 4 and keys[0] == keys[4]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("Image,1,2\na,Cat,Dog\n", r"must have the columns Image Name, 1, 2, ...; it has Image, 1, 2"),
        ("Image Name\na\n", r"must have the columns Image Name, 1, 2, ...; it has Image Name"),
        ("Image Name,1,2\nb,Cat,Dog\na,Cat,\n", "has an empty concept for image a; make the file anew"),
        (
            "Image Name,1\na,Cat\nc,Dog\n",
            r"has concepts of another image list: 1 of 2 images are not in it \(first: b\); use those of this list, or",
        ),
        ("Image Name,1\na,Cat\nb,Cat\nx_07,Cat\ny_7,Dog\n", "has concepts of the same image twice.*; make it anew"),
    ],
)
def test_a_csv_of_another_form_or_list_is_refused(tmp_path, content, sentence):
    (tmp_path / "concepts.csv").write_text(content)
    with pytest.raises(ValueError, match=f"concepts.csv {sentence}"):
        searle_files.read_concepts(tmp_path / "concepts.csv", ["a", "b"])


def test_concepts_named_null_or_nan_are_concepts(tmp_path):
    (tmp_path / "concepts.csv").write_text("Image Name,1,2\na,null,NaN\n")
    names, rows = searle_files.read_concepts(tmp_path / "concepts.csv", ["a"])
    assert [names[place] for place in rows[0].tolist()] == ["null", "NaN"]


# Tokens


def experiment(folder, names=IDS, width=6, edit=lambda files: None):
    """A folder as the authors' code leaves it, after `edit` of its three contents; the EMA tokens."""
    random = torch.Generator().manual_seed(3)
    ema, last = (torch.randn(len(names), width, generator=random) for _ in range(2))
    files = {searle_files.EMA: ema.clone(), searle_files.LAST: last, searle_files.NAMES: list(names)}
    edit(files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name == searle_files.NAMES:
            (folder / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, folder / name)
    return ema


@pytest.mark.parametrize("asked", [IDS, IDS[::-1], [IDS[2]], [IDS[3], IDS[0]]])
def test_written_tokens_are_read_back_in_the_order_that_is_asked_for(tmp_path, asked):
    ema, last = torch.randn(2, len(IDS), 6, generator=torch.Generator().manual_seed(1))
    searle_files.write_tokens(tmp_path / "exp", IDS, ema, last, {"steps": 350})
    found = searle_files.read_tokens(tmp_path / "exp", asked, 6)
    for row, image in enumerate(asked):
        assert torch.equal(found[0][row], ema[IDS.index(image)])
        assert torch.equal(found[1][row], last[IDS.index(image)])


def test_written_tokens_load_as_the_authors_load_them(tmp_path):
    whole = torch.randn(1000, 6, generator=torch.Generator().manual_seed(1))
    searle_files.write_tokens(tmp_path / "exp", tuple(IDS), whole[:4], whole[4:8], {"steps": 350})
    assert torch.equal(torch.load(tmp_path / "exp" / "ema_oti_pseudo_tokens.pt", weights_only=True), whole[:4])
    last = torch.load(tmp_path / "exp" / "oti_pseudo_tokens.pt", weights_only=True)
    assert torch.equal(last, whole[4:8])
    assert last.untyped_storage().nbytes() == 4 * 6 * 4  # not the 1,000 rows that it was cut from
    assert pickle.loads((tmp_path / "exp" / "image_names.pkl").read_bytes()) == IDS
    assert json.loads((tmp_path / "exp" / "hyperparameters.json").read_text()) == {"steps": 350}


def test_imagenet_tokens_are_found_by_file_name_or_bare_number(tmp_path):
    for form in ("ILSVRC2012_test_{}.JPEG", "{}", "test/ILSVRC2012_test_{}.JPEG"):
        names = [form.format(image[-8:]) for image in reversed(IDS)]
        ema = experiment(tmp_path / "exp", names)
        assert torch.equal(searle_files.read_tokens(tmp_path / "exp", IDS, 6)[0], ema.flip(0)), form


def test_tokens_saved_in_half_precision_become_float32(tmp_path):
    ema = experiment(
        tmp_path / "exp", edit=lambda files: files.update({searle_files.EMA: files[searle_files.EMA].half()})
    )
    found = searle_files.read_tokens(tmp_path / "exp", IDS, 6)[0]
    assert found.dtype == torch.float32 and torch.equal(found, ema.half().float())


def test_where_the_last_tokens_are_not_there_the_ema_stands_for_them(tmp_path):
    ema = experiment(tmp_path / "exp", edit=lambda files: files.pop(searle_files.LAST))
    found = searle_files.read_tokens(tmp_path / "exp", IDS, 6)
    assert torch.equal(found[0], ema) and torch.equal(found[1], ema)


def not_a_number(files, file):
    files[file][2, 5] = float("nan")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda files: files[searle_files.NAMES].append("ILSVRC2012_test_00000099"),
            r"ema_oti_pseudo_tokens.pt holds \(4, 6\) but image_names.pkl has 5 names and .* tokens are 6 wide",
        ),
        (
            lambda files: files.update({searle_files.LAST: torch.zeros(4, 5)}),
            r"/oti_pseudo_tokens.pt holds \(4, 5\) but .* must be of one experiment with the same clip_model",
        ),
        (
            lambda files: files.update({searle_files.EMA: [1, 2, 3, 4]}),
            "ema_oti_pseudo_tokens.pt holds list but image_names.pkl has 4 names",
        ),
        (
            lambda files: not_a_number(files, searle_files.EMA),
            f"ema_oti_pseudo_tokens.pt has a token that is not finite, of image {IDS[2]}; make it anew",
        ),
        (
            lambda files: not_a_number(files, searle_files.LAST),
            f"/oti_pseudo_tokens.pt has a token that is not finite, of image {IDS[2]}; make it anew",
        ),
        (
            lambda files: files[searle_files.NAMES].__setitem__(1, "ILSVRC2012_val_00000007.JPEG"),
            "has tokens of the same image twice.*; make it anew",
        ),
        (
            lambda files: files[searle_files.NAMES].__setitem__(1, "ILSVRC2012_test_00000009"),
            rf"has tokens of another image list: 1 of 4 images are not in it \(first: {IDS[1]}\); use those of this",
        ),
        (
            lambda files: files.update({searle_files.NAMES: dict.fromkeys(IDS)}),
            "image_names.pkl holds a dict, not a list of image names",
        ),
    ],
)
def test_tokens_that_do_not_belong_together_are_refused(tmp_path, edit, sentence):
    experiment(tmp_path / "exp", edit=edit)
    with pytest.raises(ValueError, match=sentence):
        searle_files.read_tokens(tmp_path / "exp", IDS, 6)


def test_tokens_of_another_clip_are_refused(tmp_path):
    experiment(tmp_path / "exp", width=768)
    with pytest.raises(ValueError, match=r"holds \(4, 768\) but image_names.pkl has 4 names and .* are 512 wide"):
        searle_files.read_tokens(tmp_path / "exp", IDS, 512)


def test_half_downloaded_tokens_are_refused_with_their_size(tmp_path):
    experiment(tmp_path / "exp", width=600)
    cut_in_half(tmp_path / "exp" / searle_files.EMA)
    size = (tmp_path / "exp" / searle_files.EMA).stat().st_size
    with pytest.raises(
        ValueError, match=rf"ema_oti_pseudo_tokens.pt \({size:,} bytes\) is no file of tensors .*; download it again"
    ):
        searle_files.read_tokens(tmp_path / "exp", IDS, 600)


def test_tokens_or_names_that_would_run_code_are_refused_and_run_nothing(tmp_path):
    trap = Runs(tmp_path / "ran")
    experiment(tmp_path / "pt", edit=lambda files: files.update({searle_files.EMA: trap}))
    with pytest.raises(ValueError, match=r"ema_oti_pseudo_tokens.pt .* is no file of tensors that is safe to read"):
        searle_files.read_tokens(tmp_path / "pt", IDS, 6)
    experiment(tmp_path / "pkl", edit=lambda files: files.update({searle_files.NAMES: [trap]}))
    with pytest.raises(ValueError, match=r"image_names.pkl is no pickle of plain lists .*: it names posix.system"):
        searle_files.read_tokens(tmp_path / "pkl", IDS, 6)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", [searle_files.EMA, searle_files.NAMES])
def test_an_experiment_without_one_of_its_files_is_named(tmp_path, file):
    experiment(tmp_path / "exp", edit=lambda files: files.pop(file))
    with pytest.raises(FileNotFoundError, match=f"exp/{file} does not exist; "):
        searle_files.read_tokens(tmp_path / "exp", IDS, 6)


def test_given_tokens_are_taken_in_the_images_order_without_concepts_or_phrases(tmp_path, tiny):
    names = ["0000000030", "0000000002", "0000000004", "0000000001", "0000000007"]
    ema = experiment(tmp_path / "exp", names, tiny.width)
    images = image_list(tiny, "circo/val/references", ["7", "1", "30", "4"])
    made = oti.bring(Store(tmp_path / "store"), tiny, images, tmp_path / "exp")
    assert made.tokens.ids == images.ids and made.tokens.name == images.name
    assert torch.equal(made.tokens.of(["4", "7"]), ema[[2, 4]])
    assert torch.equal(made.tokens.vectors, ema[[4, 3, 0, 2]])
    assert made.history.empty


def test_other_given_tokens_have_another_key(tmp_path, tiny):
    images, keys = image_list(tiny, "imagenet/test", IDS), []
    for edit in (lambda files: None, lambda files: files[searle_files.EMA].mul_(2), lambda files: None):
        experiment(tmp_path / "exp", IDS, tiny.width, edit)
        keys.append(oti.bring(Store(tmp_path / "store"), tiny, images, tmp_path / "exp").tokens.key)
    assert keys[0] == keys[2] != keys[1]


def study_with_concepts(folder, world, tiny):
    """A study of CIRR and CIRCO as 03_oti sees it, and the ids of each list of references."""
    first, second = study_of(folder, "01_phrases"), study_of(folder, "02_concepts")
    names = Vocabulary(("Star", "Boat", "Gown", "Tree"), "four")
    _, _, written = problem(tiny)
    first.keep("phrases", {}, lambda place: written.table().to_parquet(place / "phrases.parquet", index=False))
    leave_record(first)
    splits, ids = benchmarks.load_all(["cirr", "circo"], world, ["validation"]), {}
    benchmarks.keep(second, [benchmark for loaded in splits.values() for benchmark in loaded], world)
    for name, loaded in splits.items():
        galleries = embeddings.encode_galleries(second, tiny, loaded)
        images = embeddings.keep_references(second, tiny, loaded, galleries)
        concepts.associate(second, tiny, images, names, 4)
        ids[f"{name}/references"] = images.ids
    leave_record(second, data_root=str(world))
    return study_of(folder, "03_oti"), ids


def test_a_list_without_given_tokens_is_inverted(tmp_path, tiny, world):
    study, ids = study_with_concepts(tmp_path, world, tiny)
    ema = experiment(tmp_path / "oti" / "cirr" / "val" / "exp", ids["cirr/val/references"], tiny.width)
    made = oti.make_words(study, tiny, FAST, oti_root=str(tmp_path / "oti"))
    assert list(made) == ["cirr/val/references", "circo/val/references"]
    assert torch.equal(made["cirr/val/references"].tokens.vectors, ema) and made["cirr/val/references"].history.empty
    parts = (module.read(study, "circo/val/references") for module in (embeddings, concepts))
    computed = oti.invert(Store(tmp_path / "beside"), tiny, *parts, phrases.read(study), FAST)
    assert torch.equal(made["circo/val/references"].tokens.vectors, computed.tokens.vectors)
    assert len(made["circo/val/references"].history) == FAST.steps


def test_tokens_below_a_root_are_taken_for_the_list_of_images_that_they_are_of(tmp_path, tiny, world):
    study, ids = study_with_concepts(tmp_path, world, tiny)
    for name, of_list in ids.items():
        experiment(tmp_path / "oti" / name.removesuffix("/references") / "exp", of_list, tiny.width)
    made = oti.make_words(study, tiny, FAST, oti_root=str(tmp_path / "oti"))
    assert {name: words.tokens.ids for name, words in made.items()} == ids
    assert all(words.history.empty for words in made.values())


# φ


def checkpoint(path, weights, edit=lambda weights: None, epoch=3):
    """A φ as the authors' code saves it, after `edit` of its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.clone() for name, value in weights.items()}
    edit(weights)
    torch.save({"epoch": epoch, "Phi": weights}, path)
    return path


def assert_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_written_phi_is_read_back_and_keeps_its_epoch(tmp_path, known_answers):
    path = searle_files.write_phi(tmp_path / "new" / "phi_20.pt", 20, known_answers.phi)
    assert_weights(searle_files.read_phi(path, 64, 64), known_answers.phi)
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"epoch", "Phi"} and saved["epoch"] == 20
    assert_weights(saved["Phi"], known_answers.phi)


@pytest.mark.skipif(not FULL.is_dir(), reason=f"needs the authors' own φ in {FULL}")
def test_the_authors_own_phi_is_read():
    assert_weights(
        searle_files.read_phi(FULL / "phi_3.pt", 64, 64), torch.load(FULL / "phi_3.pt", weights_only=True)["Phi"]
    )


def test_a_phi_saved_in_half_precision_becomes_float32(tmp_path, known_answers):
    path = checkpoint(tmp_path / "half.pt", {name: value.half() for name, value in known_answers.phi.items()})
    assert {value.dtype for value in searle_files.read_phi(path, 64, 64).values()} == {torch.float32}


def not_finite(weights):
    weights["layers.3.bias"][0] = float("inf")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda weights: weights.pop("layers.3.bias"), "holds no φ .*; use phi_"),
        (lambda weights: weights.update({"layers.9.bias": torch.ones(2)}), "holds no φ .*; use phi_"),
        (not_finite, "has weights in layers.3.bias that are not finite; download it again"),
    ],
)
def test_weights_that_are_no_phi_are_refused(tmp_path, known_answers, edit, sentence):
    path = checkpoint(tmp_path / "phi.pt", known_answers.phi, edit)
    with pytest.raises(ValueError, match=f"phi.pt {sentence}"):
        searle_files.read_phi(path, 64, 64)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {"epoch": 1, "Phi": 5}, {"Phi": {}}])
def test_a_file_of_tensors_that_holds_no_phi_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt holds no φ \(.'epoch', 'Phi'. with layers 0, 3 and 6\); use"):
        searle_files.read_phi(tmp_path / "other.pt", 64, 64)


@pytest.mark.parametrize(("came", "went"), [(768, 768), (768, 64), (64, 768)])
def test_a_phi_of_another_clip_is_refused(tmp_path, came, went):
    path = checkpoint(tmp_path / "phi.pt", phi.Phi(came, went).state_dict())
    with pytest.raises(
        ValueError,
        match=rf"phi.pt is a φ for embeddings of {came} numbers and tokens of {went}, but this CLIP has 64 and 64; φ",
    ):
        searle_files.read_phi(path, 64, 64)


def test_a_half_downloaded_phi_is_refused_with_its_size(tmp_path, known_answers):
    path = checkpoint(tmp_path / "phi.pt", known_answers.phi)
    cut_in_half(path)
    with pytest.raises(
        ValueError, match=rf"phi.pt \({path.stat().st_size:,} bytes\) is no file of tensors .*; download it again"
    ):
        searle_files.read_phi(path, 64, 64)


def test_a_phi_that_would_run_code_is_refused_and_runs_nothing(tmp_path, known_answers):
    path = checkpoint(tmp_path / "phi.pt", known_answers.phi, epoch=Runs(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"phi.pt .* is no file of tensors that is safe to read"):
        searle_files.read_phi(path, 64, 64)
    assert not (tmp_path / "ran").exists()


def test_a_phi_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.pt does not exist"):
        searle_files.read_phi(tmp_path / "gone.pt", 64, 64)


def test_a_given_phi_predicts_what_the_authors_phi_predicts(tmp_path, known_answers):
    path = checkpoint(tmp_path / "phi_3.pt", known_answers.phi)
    given = phi.bring(Store(tmp_path / "store"), known_answers.backbone, str(path))
    with torch.no_grad():
        words = given.phi(known_answers.expected["image_features"])
    assert_close(words, known_answers.expected["phi_out"], atol=1e-5, rtol=1e-5)
    assert given.epoch == 0 and not any(weight.requires_grad for weight in given.phi.parameters())


def test_other_given_weights_have_another_key(tmp_path, known_answers):
    keys = []
    for edit in (lambda weights: None, lambda weights: weights["layers.6.bias"].add_(1), lambda weights: None):
        path = checkpoint(tmp_path / "phi.pt", known_answers.phi, edit)
        keys.append(phi.bring(Store(tmp_path / "store"), known_answers.backbone, str(path)).key)
    assert keys[0] == keys[2] != keys[1]


def test_a_checkpoint_that_is_neither_a_file_nor_published_is_named(tmp_path, known_answers):
    with pytest.raises(
        ValueError,
        match=r"phi_checkpoint SEARLE_ViT-B16 is neither last, an epoch, a file, nor one of SEARLE_ViT-B32, SEARLE_ViT",
    ):
        phi.bring(Store(tmp_path), known_answers.backbone, "SEARLE_ViT-B16")


@pytest.mark.parametrize("name", ["SEARLE_ViT-B32", "SEARLE_ViT-L14"])
def test_without_network_a_published_phi_is_asked_for_by_url_and_place(tmp_path, cache, known_answers, name):
    with pytest.raises(ConnectionError) as problem:
        phi.bring(Store(tmp_path / "store"), known_answers.backbone, name)
    url = f"https://github.com/miccunifi/SEARLE/releases/download/weights/{name}.pt"
    assert f"download {url} on a machine with network and put it at {cache / name}.pt." in str(problem.value)


def test_a_published_phi_in_the_cache_is_used_and_another_file_there_is_refused_later(tmp_path, cache, known_answers):
    path = checkpoint(cache / "SEARLE_ViT-B32.pt", known_answers.phi)
    store = Store(tmp_path / "store")
    given = phi.bring(store, known_answers.backbone, "SEARLE_ViT-B32")
    assert_weights(given.phi.state_dict(), known_answers.phi)
    checkpoint(path, known_answers.phi, lambda weights: weights["layers.6.bias"].add_(1))
    with pytest.raises(ValueError, match=r"SEARLE_ViT-B32.pt is not the file that first came .*; delete it and"):
        phi.bring(store, known_answers.backbone, "SEARLE_ViT-B32")


# What the authors' files hold, or broken ones may, that is not read or refused yet


def test_tokens_of_an_image_that_is_there_twice_are_its_first(tmp_path):
    ema = experiment(tmp_path / "exp", ["7", "1", "7", "30", "4"])
    assert torch.equal(searle_files.read_tokens(tmp_path / "exp", ["4", "7"], 6)[0], ema[[4, 0]])


def test_concepts_of_an_image_that_is_there_twice_are_read(tmp_path):
    (tmp_path / "concepts.csv").write_text("Image Name,1,2\n7,Cat,Dog\n1,Boat,Cat\n7,Cat,Dog\n")
    names, rows = searle_files.read_concepts(tmp_path / "concepts.csv", ["1", "7"])
    assert [[names[place] for place in row] for row in rows.tolist()] == [["Boat", "Cat"], ["Cat", "Dog"]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00\x01",
        b"Image Name,1,2\na,Cat,Dog,Tree\nb,Dog,Cat\n",
        b"Image Name,1,2\na,Cat,Dog\nb,Dog,Cat,Tree\n",
    ],
)
def test_a_csv_that_is_no_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "concepts.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"concepts.csv"):
        searle_files.read_concepts(tmp_path / "concepts.csv", ["a", "b"])


def changed_archive(path, at, compression):
    """GPTNeo27B.zip of which one byte came wrong."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("concept_to_phrases.pkl", pickle.dumps({f"C{i}": ["a photo of it"] for i in range(500)}))
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "compression"), [(0, zipfile.ZIP_STORED), (700, zipfile.ZIP_STORED), (56, zipfile.ZIP_DEFLATED)]
)
def test_a_zip_of_which_a_byte_came_wrong_is_refused_by_name(tmp_path, at, compression):
    changed_archive(tmp_path / "GPTNeo27B.zip", at, compression)
    with pytest.raises(ValueError, match=r"GPTNeo27B.zip .*download it again"):
        searle_files.read_phrases(tmp_path / "GPTNeo27B.zip")


@pytest.mark.parametrize("content", [b"\x80\x04\x8d" + b"\x7f" * 8 + b"abc", b"\x80\x04\x95" + b"\xff" * 8 + b"}."])
def test_a_pickle_of_which_a_length_came_wrong_is_refused_by_name(tmp_path, content):
    (tmp_path / "phrases.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"phrases.pkl .*download it again"):
        searle_files.read_phrases(tmp_path / "phrases.pkl")


def another_hidden_width(weights):
    weights.update({"layers.0.weight": torch.zeros(128, 64), "layers.0.bias": torch.zeros(128)})
    weights.update({"layers.3.weight": torch.zeros(128, 128), "layers.3.bias": torch.zeros(128)})
    weights.update({"layers.6.weight": torch.zeros(64, 128)})


@pytest.mark.parametrize("edit", [another_hidden_width, lambda weights: weights.update({"layers.0.weight": 5})])
def test_a_phi_whose_layers_do_not_fit_one_another_is_refused_by_name(tmp_path, known_answers, edit):
    path = checkpoint(tmp_path / "phi.pt", known_answers.phi, edit)
    with pytest.raises(ValueError, match=r"phi.pt "):
        phi.bring(Store(tmp_path / "store"), known_answers.backbone, str(path))


def test_a_phi_that_would_run_code_is_refused_with_what_it_names(tmp_path, known_answers):
    path = checkpoint(tmp_path / "phi.pt", known_answers.phi, epoch=Runs(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"phi.pt .*posix.system"):
        searle_files.read_phi(path, 64, 64)
