"""SEARLE's own files: a study takes exactly what is in them, broken ones are refused, and nothing in them runs."""

import json
import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FULL, leave_record, study_of
from problems import FAST, problem
from torch.testing import assert_close

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data import benchmarks
from searle_lib.releases import plain_pickle, searle_files
from searle_lib.searle import concepts, oti, phi, phrases
from searle_lib.searle.concepts import Vocabulary
from searle_lib.searle.phrases import Settings
from searle_lib.store.artefacts import Store

EMA, LAST, NAMES = searle_files.EMA, searle_files.LAST, searle_files.NAMES
PHRASES = {
    "Cat": ["a photo of Cat that sleeps", "a photo of Cat that. is big"],
    " Traffic light ": ["a photo of Traffic light that was taken at night"],
    "'Nduja": ["a photo of 'Nduja that é", "a photo of 'Nduja that", "a photo of 'Nduja that é"],
}
TABLE = [(concept.strip(), phrase) for concept, texts in PHRASES.items() for phrase in texts]
VOCABULARY = Vocabulary(("Traffic light", "Cat"), "two")
IDS = [f"ILSVRC2012_test_{number:08d}" for number in (7, 1, 30, 4)]


class Runs:
    """Unpickling this would run a command that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write_phrases(path, content=PHRASES):
    """A pickle of the content, in a zip archive where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("GPTNeo27B/hyperparameters.json", "{}")
            archive.writestr("GPTNeo27B/concept_to_phrases.pkl", pickle.dumps(content))
    else:
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


def write_concepts(root, folder, names, depth=250, clip="tiny-clip", seed=5):
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


def write_tokens(folder, names=IDS, width=6, edit=lambda files: None):
    """A folder as the authors' code leaves it, after `edit` of its three contents; the EMA tokens."""
    random = torch.Generator().manual_seed(3)
    ema, last = (torch.randn(len(names), width, generator=random) for _ in range(2))
    files = {EMA: ema.clone(), LAST: last, NAMES: list(names)}
    edit(files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name == NAMES:
            (folder / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, folder / name)
    return ema


def write_phi(path, weights, edit=lambda weights: None, epoch=3):
    """A φ as the authors' code saves it, after `edit` of its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.clone() for name, value in weights.items()}
    edit(weights)
    torch.save({"epoch": epoch, "Phi": weights}, path)
    return path


def assert_weights(weights, expected):
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def image_list(clip, name, ids):
    return Embeddings(name, tuple(ids), torch.ones(len(ids), clip.dimension), "images")


# Files that would run code, that are cut off, or that another file replaces


@pytest.mark.parametrize("name", ["concept_to_phrases.pkl", "GPTNeo27B.zip", EMA, NAMES, "phi.pt"])
def test_a_file_that_would_run_code_is_refused_with_what_it_names_and_runs_nothing(name, tmp_path, known_answers):
    trap = Runs(tmp_path / "ran")
    with pytest.raises(ValueError, match=rf"{name} .*posix.system.*; download it again"):
        if name in (EMA, NAMES):
            write_tokens(tmp_path, edit=lambda files: files.update({name: [trap]}))
            searle_files.read_tokens(tmp_path, IDS, 6)
        elif name == "phi.pt":
            searle_files.read_phi(write_phi(tmp_path / name, known_answers.phi, epoch=trap), 64, 64)
        else:
            searle_files.read_phrases(write_phrases(tmp_path / name, {"Cat": ["a Cat"], "Dog": trap}))
    assert not trap.path.exists()


@pytest.mark.parametrize("name", [EMA, "phi.pt"])
def test_half_a_file_of_tensors_is_refused_with_its_size(name, tmp_path, known_answers):
    write_tokens(tmp_path, width=600)
    file = write_phi(tmp_path / "phi.pt", known_answers.phi).with_name(name)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    size = rf"{name} is not a file of tensors .* \({file.stat().st_size:,} bytes on disk: .*; download it again"
    with pytest.raises(ValueError, match=size):
        searle_files.read_phi(file, 64, 64) if name == "phi.pt" else searle_files.read_tokens(tmp_path, IDS, 600)


def phrases_key(folder, clip, changed):
    content = PHRASES | ({"Cat": ["a photo of Cat that runs"]} if changed else {})
    file = write_phrases(folder / "phrases.pkl", content)
    return phrases.generate(Store(folder / "store"), VOCABULARY, "none", Settings(), phrases_file=str(file)).key


def tokens_key(folder, clip, changed):
    write_tokens(folder / "exp", IDS, clip.width, lambda files: files[EMA].mul_(2 if changed else 1))
    images = image_list(clip, "imagenet/test", IDS)
    return oti.import_words(Store(folder / "store"), clip, images, folder / "exp").tokens.key


def phi_key(folder, clip, changed):
    torch.manual_seed(int(changed))
    file = write_phi(folder / "phi.pt", phi.Phi(clip.dimension, clip.width).state_dict())
    return phi.import_phi(Store(folder / "store"), clip, str(file)).key


@pytest.mark.parametrize("key_of", [phrases_key, tokens_key, phi_key])
def test_another_file_makes_another_artefact(key_of, tmp_path, tiny):
    keys = [key_of(tmp_path, tiny, changed) for changed in (False, True, False)]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("file", ["GPTNeo27B.zip", "SEARLE_ViT-B32.pt", "SEARLE_ViT-L14.pt"])
def test_without_network_a_published_file_is_asked_for_by_url_and_place(file, tmp_path, cache, known_answers):
    with pytest.raises(ConnectionError) as error:
        if file == "GPTNeo27B.zip":
            phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), phrases_file="published")
        else:
            phi.import_phi(Store(tmp_path / "store"), known_answers.backbone, file.removesuffix(".pt"))
    url = f"https://github.com/miccunifi/SEARLE/releases/download/weights/{file}"
    assert f"download {url} on a machine with network and put it at {cache / file}." in str(error.value)


def test_published_phrases_are_taken_from_the_cache_and_another_file_there_is_refused_later(tmp_path, cache):
    write_phrases(cache / "GPTNeo27B.zip")
    written = phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), phrases_file="published")
    assert list(zip(written.table()["concept"], written.texts, strict=True)) == TABLE
    write_phrases(cache / "GPTNeo27B.zip", {"Cat": ["a Cat"], "Traffic light": ["a Traffic light"]})
    with pytest.raises(ValueError, match=r"GPTNeo27B.zip is not the file that first came .*; delete it"):
        phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), phrases_file="published")


def test_a_published_phi_in_the_cache_is_used_and_another_file_there_is_refused_later(tmp_path, cache, known_answers):
    path = write_phi(cache / "SEARLE_ViT-B32.pt", known_answers.phi)
    imported = phi.import_phi(Store(tmp_path / "store"), known_answers.backbone, "SEARLE_ViT-B32")
    assert_weights(imported.module.state_dict(), known_answers.phi)
    write_phi(path, known_answers.phi, lambda weights: weights["layers.6.bias"].add_(1))
    with pytest.raises(ValueError, match=r"SEARLE_ViT-B32.pt is not the file that first came .*; delete it and"):
        phi.import_phi(Store(tmp_path / "store"), known_answers.backbone, "SEARLE_ViT-B32")


# Phrases


@pytest.mark.parametrize("name", ["concept_to_phrases.pkl", "GPTNeo27B.zip"])
def test_a_study_takes_exactly_the_phrases_of_a_file_and_keeps_them_as_parquet(tmp_path, name):
    file = write_phrases(tmp_path / name)
    assert list(searle_files.read_phrases(file).itertuples(index=False, name=None)) == TABLE
    written = phrases.generate(Store(tmp_path / "store"), VOCABULARY, "none", Settings(), phrases_file=str(file))
    for concept, texts in PHRASES.items():
        assert list(written.select(concept.strip())) == texts
    (parquet,) = (tmp_path / "store").glob("phrases-*/phrases.parquet")
    assert list(pd.read_parquet(parquet)[["concept", "phrase"]].itertuples(index=False, name=None)) == TABLE


NO_LIST = "holds no list of phrases under {}; it must map names to lists of text"
DOWNLOAD = ".*; download it again"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (["a photo of Cat that"], "holds a list, not a dictionary of phrases by concept"),
        ("Cat", "holds a str, not a dictionary of phrases by concept"),
        ({}, "holds an empty dictionary, not a dictionary"),
        ({"Cat": ["a Cat"], "Dog": []}, NO_LIST.format("'Dog'")),
        ({"Cat": ["a Cat", 5]}, NO_LIST.format("'Cat'")),
        ({"Cat": "a Cat"}, NO_LIST.format("'Cat'")),
        ({7: ["a Cat"]}, NO_LIST.format("7")),
        ({"Cat": ["a"], "Dog": ["b"], " Cat": ["c"]}, "has the concept 'Cat' twice, apart from blanks; remove one"),
        (b"\x80\x04\x8d" + b"\x7f" * 8 + b"abc", DOWNLOAD),  # a wrong length
        (b"\x80\x04\x95" + b"\xff" * 8, DOWNLOAD),
    ],
)
def test_a_pickle_that_maps_no_names_to_phrases_is_refused(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=f"phrases.pkl {sentence}"):
        searle_files.read_phrases(write_phrases(tmp_path / "phrases.pkl", content))


def test_a_pickle_that_is_cut_off_anywhere_is_refused(tmp_path):
    content = pickle.dumps(PHRASES)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"cut.pkl is not a pickle of plain lists and texts .*; download"):
            searle_files.read_phrases(write_phrases(tmp_path / "cut.pkl", content[:end]))


@pytest.mark.parametrize(
    ("at", "compression"), [(0, zipfile.ZIP_STORED), (700, zipfile.ZIP_STORED), (56, zipfile.ZIP_DEFLATED)]
)
def test_a_zip_with_a_wrong_byte_is_refused_by_name(tmp_path, at, compression):
    file = tmp_path / "GPTNeo27B.zip"
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("concept_to_phrases.pkl", pickle.dumps({f"C{i}": ["a photo of it"] for i in range(500)}))
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"GPTNeo27B.zip {DOWNLOAD}"):
        searle_files.read_phrases(file)


@pytest.mark.parametrize(
    ("file", "names", "error", "sentence"),
    [
        ("phrases.pkl", ("Tree", "Cat", "Boat"), ValueError, "has no phrases about 2 of the 3 concepts .*'Boat'"),
        ("gone.pkl", ("Cat",), FileNotFoundError, "does not exist; correct phrases_file, or leave"),
    ],
)
def test_a_phrases_file_that_does_not_serve_the_vocabulary_is_named(tmp_path, file, names, error, sentence):
    write_phrases(tmp_path / "phrases.pkl")
    with pytest.raises(error, match=f"phrases_file .*{file} {sentence}"):
        vocabulary = Vocabulary(names, "some")
        phrases.generate(Store(tmp_path), vocabulary, "none", Settings(), phrases_file=str(tmp_path / file))
    assert not list(tmp_path.glob("phrases-*"))


# Concepts


@pytest.mark.parametrize(
    ("name", "folder", "ids", "form"),
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
def test_an_image_has_the_concepts_of_its_row_of_the_authors_csv(tmp_path, tiny, name, folder, ids, form):
    order = (30, 2, 4, 1, 7)  # of the file's rows, among them an image that is not in the study
    cells = write_concepts(tmp_path / "csv", folder, [form.format(number) for number in order])
    images = image_list(tiny, name, ids)
    near = concepts.associate(Store(tmp_path / "store"), tiny, images, VOCABULARY, 9, str(tmp_path / "csv"))
    assert near.ids == tuple(ids)
    for row, number in enumerate((7, 1, 30, 4)):
        expected = cells[order.index(number)][:9].tolist()
        assert [near.names[place] for place in near.rows[row].tolist()] == expected
    assert not list((tmp_path / "store").glob("vocabulary-features-*"))  # nothing was computed


def test_a_list_without_a_csv_is_computed(tmp_path, tiny):
    write_concepts(tmp_path / "csv", "cirr/val", ["dev-0"])
    images = Embeddings("circo/val/references", ("1", "2"), torch.eye(2, tiny.dimension), "images")
    names = Vocabulary(("Star", "Boat", "Tree"), "three")
    computed = concepts.associate(Store(tmp_path / "a"), tiny, images, names, 3)
    beside = concepts.associate(Store(tmp_path / "b"), tiny, images, names, 3, str(tmp_path / "csv"))
    assert torch.equal(beside.rows, computed.rows) and beside.key == computed.key


def test_the_key_of_imported_concepts_stands_for_file_list_and_depth(tmp_path, tiny):
    keys = []
    for seed, ids, depth in ((5, IDS, 9), (6, IDS, 9), (5, IDS[:2], 9), (5, IDS, 8), (5, IDS, 9)):
        write_concepts(tmp_path / "csv", "imagenet/test", IDS, seed=seed)
        images = image_list(tiny, "imagenet/test", ids)
        keys.append(concepts.associate(Store(tmp_path), tiny, images, VOCABULARY, depth, str(tmp_path / "csv")).key)
    assert len(set(keys)) == 4 and keys[0] == keys[4]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Image,1,2\na,Cat,Dog\n", r"must have the columns Image Name, 1, 2, ...; it has Image, 1, 2"),
        (b"Image Name\na\n", r"must have the columns Image Name, 1, 2, ...; it has Image Name"),
        (
            b"Image Name,1,2\nb,Cat,Dog\na,Cat,\n",
            "has an empty or unprintable concept for image a; create the file again",
        ),
        (b"Image Name,1\na,Cat\nc,Dog\n", r"has concepts of another image list: 1 of 2 images .* \(first: b\);"),
        (b"Image Name,1\na,Cat\nb,Cat\nx_07,Cat\ny_7,Dog\n", "has concepts of the same image twice.*; create it again"),
        (b"", "is not a table .*; create it again"),
        (b"\xff\xfe\x00\x01", "is not a table .*; create it again"),
        (b"Image Name,1,2\na,Cat,Dog,Tree\nb,Dog,Cat\n", "is not a table .*; create it again"),
        (b"Image Name,1,2\na,Cat,Dog\nb,Dog,Cat,Tree\n", "is not a table .*; create it again"),
    ],
)
def test_a_csv_of_another_form_or_list_is_refused(tmp_path, content, sentence):
    (tmp_path / "concepts.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"concepts.csv {sentence}"):
        searle_files.read_concepts(tmp_path / "concepts.csv", ["a", "b"])


@pytest.mark.parametrize(
    ("content", "ids", "expected"),
    [
        ("a,null,NaN\n", ["a"], [["null", "NaN"]]),
        ("7,Cat,Dog\n1,Boat,Cat\n7,Cat,Dog\n", ["1", "7"], [["Boat", "Cat"], ["Cat", "Dog"]]),
    ],
    ids=["concepts named null and NaN", "an image that is listed twice"],
)
def test_unusual_rows_of_concepts_are_read(tmp_path, content, ids, expected):
    (tmp_path / "concepts.csv").write_text(f"Image Name,1,2\n{content}")
    names, rows = searle_files.read_concepts(tmp_path / "concepts.csv", ids)
    assert [[names[place] for place in row] for row in rows.tolist()] == expected


# OTI's pseudo-words


@pytest.mark.parametrize("ids", [IDS, IDS[::-1], [IDS[2]], [IDS[3], IDS[0]]])
def test_written_tokens_are_read_back_in_the_order_of_the_ids(tmp_path, ids):
    tokens = torch.randn(2, len(IDS), 6, generator=torch.Generator().manual_seed(1))
    searle_files.write_tokens(tmp_path / "exp", IDS, *tokens, {"steps": 350})
    read = searle_files.read_tokens(tmp_path / "exp", ids, 6)
    assert torch.equal(torch.stack(read), tokens[:, [IDS.index(image) for image in ids]])


def test_written_tokens_load_as_the_authors_load_them(tmp_path):
    tokens = torch.randn(1000, 6, generator=torch.Generator().manual_seed(1))
    searle_files.write_tokens(tmp_path / "exp", tuple(IDS), tokens[:4], tokens[4:8], {"steps": 350})
    assert torch.equal(torch.load(tmp_path / "exp" / "ema_oti_pseudo_tokens.pt", weights_only=True), tokens[:4])
    last = torch.load(tmp_path / "exp" / "oti_pseudo_tokens.pt", weights_only=True)
    assert torch.equal(last, tokens[4:8])
    assert last.untyped_storage().nbytes() == 4 * 6 * 4  # not the 1,000 rows that it was cut from
    assert pickle.loads((tmp_path / "exp" / "image_names.pkl").read_bytes()) == IDS
    assert json.loads((tmp_path / "exp" / "hyperparameters.json").read_text()) == {"steps": 350}


@pytest.mark.parametrize("form", ["ILSVRC2012_test_{}.JPEG", "{}", "test/ILSVRC2012_test_{}.JPEG"])
def test_imagenet_tokens_are_found_by_file_name_or_bare_number(tmp_path, form):
    ema = write_tokens(tmp_path, [form.format(image[-8:]) for image in reversed(IDS)])
    assert torch.equal(searle_files.read_tokens(tmp_path, IDS, 6)[0], ema.flip(0))


def test_tokens_of_an_image_that_is_listed_twice_are_its_first(tmp_path):
    ema = write_tokens(tmp_path, ["7", "1", "7", "30", "4"])
    assert torch.equal(searle_files.read_tokens(tmp_path, ["4", "7"], 6)[0], ema[[4, 0]])


def test_tokens_saved_in_half_precision_become_float32(tmp_path):
    ema = write_tokens(tmp_path, edit=lambda files: files.update({EMA: files[EMA].half()}))
    tokens = searle_files.read_tokens(tmp_path, IDS, 6)[0]
    assert tokens.dtype == torch.float32 and torch.equal(tokens, ema.half().float())


def test_without_the_last_tokens_the_ema_stands_for_them(tmp_path):
    ema = write_tokens(tmp_path, edit=lambda files: files.pop(LAST))
    assert all(torch.equal(tokens, ema) for tokens in searle_files.read_tokens(tmp_path, IDS, 6))


def put(file, row, value):
    return lambda files: files[file].__setitem__(row, value)


TOKEN_FAULTS = {
    "5 names": (lambda f: f[NAMES].append("9"), rf"{EMA} holds \(4, 6\), but {NAMES} has 5 names and .* 6 wide"),
    "another width": (lambda f: f.update({EMA: torch.zeros(4, 768)}), rf"{EMA} holds \(4, 768\), but .* are 6 wide"),
    "two experiments": (lambda f: f.update({LAST: torch.zeros(4, 5)}), rf"/{LAST} holds \(4, 5\), .* same clip_model"),
    "a list of tokens": (lambda f: f.update({EMA: [1, 2, 3, 4]}), f"{EMA} holds list, but {NAMES} has 4 names"),
    "no number": (put(EMA, (2, 5), float("nan")), f"{EMA} has a token that is not finite, of image {IDS[2]}; create"),
    "no last number": (put(LAST, (2, 5), float("nan")), f"/{LAST} has a token that is not finite, of image {IDS[2]};"),
    "an image twice": (put(NAMES, 1, "val_00000007.JPEG"), "has tokens of the same image twice.*; create it again"),
    "another list": (put(NAMES, 1, "9"), rf"has tokens of another image list: 1 of 4 .* \(first: {IDS[1]}\); use the"),
    "a dictionary of names": (lambda f: f.update({NAMES: dict.fromkeys(IDS)}), f"{NAMES} holds a dict, not a list of"),
    "no EMA": (lambda f: f.pop(EMA), f"exp/{EMA} does not exist; "),
    "no names": (lambda f: f.pop(NAMES), f"exp/{NAMES} does not exist; "),
}


@pytest.mark.parametrize("fault", TOKEN_FAULTS)
def test_tokens_that_do_not_belong_together_are_refused(tmp_path, fault):
    edit, sentence = TOKEN_FAULTS[fault]
    write_tokens(tmp_path / "exp", edit=edit)
    with pytest.raises(FileNotFoundError if "does not exist" in sentence else ValueError, match=sentence):
        searle_files.read_tokens(tmp_path / "exp", IDS, 6)


def test_imported_tokens_have_the_images_order_and_need_no_concepts_or_phrases(tmp_path, tiny):
    names = ["0000000030", "0000000002", "0000000004", "0000000001", "0000000007"]
    ema = write_tokens(tmp_path / "exp", names, tiny.width)
    images = image_list(tiny, "circo/val/references", ["7", "1", "30", "4"])
    imported = oti.import_words(Store(tmp_path / "store"), tiny, images, tmp_path / "exp")
    assert imported.tokens.ids == images.ids and imported.tokens.name == images.name
    assert torch.equal(imported.tokens.vectors, ema[[4, 3, 0, 2]])
    assert imported.history.empty


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
        galleries = embeddings.encode_lists(second, tiny, benchmarks.galleries_of(loaded))
        images = embeddings.keep_references(second, tiny, loaded, galleries)
        concepts.associate(second, tiny, images, names, 4)
        ids[f"{name}/references"] = images.ids
    leave_record(second, data_root=str(world))
    return study_of(folder, "03_oti"), ids


def test_the_tokens_below_a_root_are_taken_for_their_list_and_other_lists_are_inverted(tmp_path, tiny, world):
    study, ids = study_with_concepts(tmp_path, world, tiny)
    cirr, circo = ids
    ema = write_tokens(tmp_path / "oti" / "cirr" / "val" / "exp", ids[cirr], tiny.width)
    words = oti.make_words(study, tiny, FAST, oti_root=str(tmp_path / "oti"))
    assert {name: of_list.tokens.ids for name, of_list in words.items()} == ids
    assert torch.equal(words[cirr].tokens.vectors, ema) and words[cirr].history.empty
    parts = (module.read(study, circo) for module in (embeddings, concepts))
    computed = oti.invert(Store(tmp_path / "beside"), tiny, *parts, phrases.read(study), FAST)
    assert torch.equal(words[circo].tokens.vectors, computed.tokens.vectors)
    assert len(words[circo].history) == FAST.steps
    write_tokens(tmp_path / "oti" / "circo" / "val" / "exp", ids[circo], tiny.width)
    words = oti.make_words(study_of(tmp_path, "03_oti"), tiny, FAST, oti_root=str(tmp_path / "oti"))
    assert all(of_list.history.empty for of_list in words.values())


# φ


def test_a_written_phi_is_read_back_and_keeps_its_epoch(tmp_path, known_answers):
    path = searle_files.write_phi(tmp_path / "new" / "phi_20.pt", 20, known_answers.phi)
    assert_weights(searle_files.read_phi(path, 64, 64), known_answers.phi)
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"epoch", "Phi"} and saved["epoch"] == 20
    assert_weights(saved["Phi"], known_answers.phi)


@pytest.mark.skipif(not FULL.is_dir(), reason=f"needs the authors' own φ in {FULL}")
def test_the_authors_own_phi_is_read():
    weights = torch.load(FULL / "phi_3.pt", weights_only=True)["Phi"]
    assert_weights(searle_files.read_phi(FULL / "phi_3.pt", 64, 64), weights)


def test_a_phi_saved_in_half_precision_becomes_float32(tmp_path, known_answers):
    path = write_phi(tmp_path / "half.pt", {name: value.half() for name, value in known_answers.phi.items()})
    assert {value.dtype for value in searle_files.read_phi(path, 64, 64).values()} == {torch.float32}


def test_an_imported_phi_predicts_what_the_authors_phi_predicts(tmp_path, known_answers):
    path = write_phi(tmp_path / "phi_3.pt", known_answers.phi)
    imported = phi.import_phi(Store(tmp_path / "store"), known_answers.backbone, str(path))
    with torch.no_grad():
        words = imported.module(known_answers.expected["image_features"])
    assert_close(words, known_answers.expected["phi_out"], atol=1e-5, rtol=1e-5)
    assert imported.epoch == 0 and not any(weight.requires_grad for weight in imported.module.parameters())


def changed(change):
    """A φ's file whose weights are changed in place."""

    def content(weights):
        change(weights)
        return {"epoch": 3, "Phi": weights}

    return content


def of_another_clip(inputs, outputs):
    sentence = rf"is a φ for embeddings of {inputs} numbers and tokens of {outputs}, but this CLIP has 64 and 64; φ"
    return lambda weights: {"epoch": 3, "Phi": phi.Phi(inputs, outputs).state_dict()}, sentence


def narrower(weights):
    weights.update({"layers.0.weight": torch.zeros(128, 64), "layers.0.bias": torch.zeros(128)})
    weights.update({"layers.3.weight": torch.zeros(128, 128), "layers.3.bias": torch.zeros(128)})
    weights.update({"layers.6.weight": torch.zeros(64, 128)})


NO_PHI = r"holds no φ \(.'epoch', 'Phi'. with layers 0, 3 and 6\); use phi_"
PHI_FAULTS = {
    "a bias too few": (changed(lambda w: w.pop("layers.3.bias")), NO_PHI),
    "a bias too many": (changed(lambda w: w.update({"layers.9.bias": torch.ones(2)})), NO_PHI),
    "a number as a weight": (changed(lambda w: w.update({"layers.0.weight": 5})), NO_PHI),
    "a list": (lambda weights: [1, 2], NO_PHI),
    "an epoch alone": (lambda weights: {"epoch": 1}, NO_PHI),
    "a number as φ": (lambda weights: {"epoch": 1, "Phi": 5}, NO_PHI),
    "no weights": (lambda weights: {"Phi": {}}, NO_PHI),
    "infinite": (changed(lambda w: w["layers.3.bias"].fill_(torch.inf)), "has weights in layers.3.bias that are not"),
    "too large for float32": (
        changed(lambda w: w.update({"layers.3.bias": w["layers.3.bias"].double().fill_(1e300)})),
        "has weights in layers.3.bias that are not finite",
    ),
    "narrower layers": (changed(narrower), r"has a layers.0 of \(128, 64\) and \(128,\), but φ for this CLIP has"),
    "another CLIP": of_another_clip(768, 768),
    "another CLIP's images": of_another_clip(768, 64),
    "another CLIP's texts": of_another_clip(64, 768),
}


@pytest.mark.parametrize("fault", PHI_FAULTS)
def test_a_file_that_holds_no_phi_for_this_clip_is_refused(tmp_path, known_answers, fault):
    content, sentence = PHI_FAULTS[fault]
    torch.save(content({name: value.clone() for name, value in known_answers.phi.items()}), tmp_path / "phi.pt")
    with pytest.raises(ValueError, match=f"phi.pt {sentence}"):
        searle_files.read_phi(tmp_path / "phi.pt", 64, 64)


def test_tensors_that_were_compressed_are_refused(tmp_path):
    """torch stores its parts as they are, so an archive that unpacks to more than it is comes from elsewhere."""
    searle_files.write_phi(tmp_path / "phi.pt", 3, dict.fromkeys(phi.Phi(64, 64).state_dict(), torch.zeros(1000)))
    small = zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "phi.pt") as source, small as copy:
        for part in source.namelist():
            copy.writestr(part, source.read(part))
    with pytest.raises(ValueError, match=r"small.pt is not a file of tensors .*its parts are larger than the file"):
        searle_files.read_phi(tmp_path / "small.pt", 64, 64)


def test_a_phi_that_does_not_exist_is_named(tmp_path, known_answers):
    with pytest.raises(FileNotFoundError, match=r"gone.pt does not exist"):
        searle_files.read_phi(tmp_path / "gone.pt", 64, 64)
    with pytest.raises(ValueError, match=r"phi_checkpoint SEARLE_ViT-B16 is neither .*, nor one of SEARLE_ViT-B32"):
        phi.import_phi(Store(tmp_path), known_answers.backbone, "SEARLE_ViT-B16")


# Files that mean harm: bounds, and types of numbers


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Nr\x00\xa3\xe1\x11.", "places to remember"),  # LONG_BINPUT 300,000,000
        (b"(" + b"]" * 1_100 + b"l.", "more than 1,000 lists and dictionaries"),
        (b"N" + b"\x94" * 12_100 + b".", "more than 12,000 steps"),
        (b"(" + b"K\x01" * 5_990 + b"M\x01\x01" * 20 + b"l.", "more than 6,000 values"),
        (b"}" + b")" + b"\x85" * 900 + b"Ns.", "a key that is a tuple"),  # hashing a deeper one overflows the stack
        (b"}\x8a\x08" + b"\xff" * 7 + b"\x1fNs.", "a key that is a int, not a text or a small number"),
        (b"X\x00\x00\x20\x00" + b"a" * (1 << 21) + b".", "a text of 2,097,152 bytes"),
        (b"}X\x03\x00\x00\x00\xed\xa0\x80].", "codec can't decode"),  # half a surrogate pair
        (b"C\x01a.", "its opcode 'C' makes no plain data"),
    ],
)
def test_a_pickle_that_would_fill_memory_or_crash_is_refused(tmp_path, monkeypatch, content, sentence):
    for bound in ("MAX_STEPS", "MAX_VALUES", "MAX_OBJECTS"):  # a thousandth of the real ones, to reach them at once
        monkeypatch.setattr(plain_pickle, bound, getattr(plain_pickle, bound) // 1000)
    with pytest.raises(ValueError, match=rf"phrases.pkl .*({sentence})"):
        searle_files.read_phrases(write_phrases(tmp_path / "phrases.pkl", content))


def test_one_list_of_phrases_under_many_concepts_is_refused(tmp_path):
    phrases_of_all = ["a cat"] * 1000
    with pytest.raises(ValueError, match=r"phrases.pkl has one list of phrases under several concepts; create it"):
        searle_files.read_phrases(write_phrases(tmp_path / "phrases.pkl", {"a": phrases_of_all, "b": phrases_of_all}))


@pytest.mark.parametrize("protocol", range(6))
def test_phrases_of_every_protocol_are_read(tmp_path, protocol):
    file = write_phrases(tmp_path / "phrases.pkl", pickle.dumps(PHRASES, protocol))
    assert list(searle_files.read_phrases(file).itertuples(index=False, name=None)) == TABLE


@pytest.mark.parametrize(
    ("compression", "text", "sentence"),
    [
        (zipfile.ZIP_DEFLATED, "a" * 80_000_000, "it would unpack to more than 10 times its size"),
        (zipfile.ZIP_LZMA, "a", "has an unusual compression"),
    ],
)
def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, compression, text, sentence):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as archive:
        archive.writestr("concept_to_phrases.pkl", text)
    with pytest.raises(ValueError, match=rf"x.zip .*{sentence}"):
        searle_files.read_phrases(tmp_path / "x.zip")


ODD = {
    "complex numbers": (torch.zeros(4, 6, dtype=torch.complex64), "it names torch.ComplexFloatStorage"),
    "too large for float32": (torch.full((4, 6), 1e300, dtype=torch.float64), "has a token that is not finite"),
    "no numbers": (torch.zeros(4, 6, device="meta"), "it names torch._utils._rebuild_meta_tensor"),
    "sparse numbers": (torch.zeros(4, 6).to_sparse(), "it names torch._utils._rebuild_sparse_tensor"),
    "one number repeated": (torch.zeros(1).expand(4, 6), r"a tensor of shape \(4, 6\), larger than its storage"),
    "numbers of 8 bits": (torch.zeros(4, 6).to(torch.float8_e4m3fn), "it names torch"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_tensors_that_are_no_plain_finite_numbers_are_refused(tmp_path, name):
    tokens, sentence = ODD[name]
    write_tokens(tmp_path, edit=lambda files: files.update({EMA: tokens}))
    with pytest.raises(ValueError, match=rf"{EMA} .*{sentence}"):
        searle_files.read_tokens(tmp_path, IDS, 6)


def test_tokens_in_double_precision_become_float32(tmp_path):
    ema = write_tokens(tmp_path, edit=lambda files: files.update({EMA: files[EMA].double()}))
    assert torch.equal(searle_files.read_tokens(tmp_path, IDS, 6)[0], ema)


def test_images_that_differ_in_a_suffix_only_are_two_images(tmp_path):
    ema = write_tokens(tmp_path, ["B00.A", "B00.B"])
    assert torch.equal(searle_files.read_tokens(tmp_path, ["B00.B", "B00.A"], 6)[0], ema.flip(0))
    write_tokens(tmp_path, ["7"])
    with pytest.raises(ValueError, match="cannot tell apart images of this list"):
        searle_files.read_tokens(tmp_path, ["x_07", "y_7"], 6)
