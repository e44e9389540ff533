import json
import os
import shutil

import pandas as pd
import pytest
from conftest import leave_record, study_of

from searle_lib.data import annotations, benchmarks


@pytest.fixture
def data(world, tmp_path):
    """A copy of the world that a test may damage, without its models and pictures."""
    ignore = shutil.ignore_patterns("models", "images", "unlabeled2017", "dev", "test")
    return shutil.copytree(world, tmp_path / "data", ignore=ignore)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_fashioniq_has_a_gallery_a_category_and_reads_both_captions_in_both_orders(world):
    dress, shirt, toptee = benchmarks.load("fashioniq", world, "val")
    assert [b.category for b in (dress, shirt, toptee)] == ["dress", "shirt", "toptee"]
    assert (len(dress.queries), len(dress.gallery)) == (6, 20)
    entry = json.loads((world / "FashionIQ/captions/cap.dress.val.json").read_text())[0]
    query = dress.queries.iloc[0]
    first, second = entry["captions"]
    assert query["sentences"] == [f"{first} and {second}", f"{second} and {first}"]
    assert (query["reference"], query["target"], query["query"]) == (entry["candidate"], entry["target"], "dress-0")
    assert query["ground_truths"] == [entry["target"]]


def test_fashioniq_captions_lose_dots_commas_question_marks_and_blanks_at_both_ends(data):
    def edit(entries):
        entries[0]["captions"] = [" is red, and long.? ", "has a belt,"]

    change(data / "FashionIQ/captions/cap.dress.val.json", edit)
    query = benchmarks.load("fashioniq", data, "val")[0].queries.iloc[0]
    assert query["sentences"][0] == "is red, and long and has a belt"


def test_cirr_keeps_the_caption_as_it_is_and_the_group_without_the_reference(world):
    (val,) = benchmarks.load("cirr", world, "val")
    entry = json.loads((world / "CIRR/cirr/captions/cap.rc2.val.json").read_text())[3]
    query = val.queries.iloc[3]
    assert query["sentences"] == [entry["caption"]] and query["target"] == entry["target_hard"]
    assert query["group"] == [m for m in entry["img_set"]["members"] if m != entry["reference"]]
    (test,) = benchmarks.load("cirr", world, "test1")
    assert set(test.queries["target"]) == {""} and test.queries["ground_truths"].map(len).sum() == 0


def test_circo_ids_are_strings_and_truths_are_several(world):
    (val,) = benchmarks.load("circo", world, "val")
    assert set(val.queries["target"]) <= set(val.gallery["image"])
    assert val.queries["ground_truths"].map(len).max() > 1
    assert all(t in truths for t, truths in zip(val.queries["target"], val.queries["ground_truths"], strict=True))


def test_both_splits_of_circo_share_one_gallery(world):
    splits = benchmarks.load_all(["circo"], world)
    assert {b.gallery_name for loaded in splits.values() for b in loaded} == {"circo/unlabeled"}
    assert list(splits) == ["circo/val", "circo/test"]


def test_imagenet_is_listed_by_name(world):
    table = annotations.imagenet(world)
    assert table["image"].tolist() == [f"ILSVRC2012_test_{i:08d}" for i in range(1, 25)]


def test_the_key_changes_with_a_caption_and_with_the_gallerys_order(data):
    keys = {benchmarks.load("cirr", data, "val")[0].key}
    change(data / "CIRR/cirr/captions/cap.rc2.val.json", lambda entries: entries[0].update(caption="is red"))
    keys.add(benchmarks.load("cirr", data, "val")[0].key)
    split = data / "CIRR/cirr/image_splits/split.rc2.val.json"
    split.write_text(json.dumps(dict(reversed(json.loads(split.read_text()).items()))))
    keys.add(benchmarks.load("cirr", data, "val")[0].key)
    assert len(keys) == 3


def test_an_unknown_dataset_and_an_unknown_split_are_refused(world):
    with pytest.raises(ValueError, match="there is no dataset mscoco; datasets may name fashioniq, cirr, circo"):
        benchmarks.load("mscoco", world, "val")
    with pytest.raises(ValueError, match="CIRR has no split dev; use val or test1"):
        benchmarks.load("cirr", world, "dev")


def test_a_missing_data_folder_is_named(tmp_path):
    for dataset, folder in (("fashioniq", "FashionIQ"), ("cirr", "CIRR"), ("circo", "CIRCO")):
        with pytest.raises(FileNotFoundError, match=f"data folder .*{folder} does not exist; put the data set there"):
            benchmarks.load(dataset, tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="ImageNet1K/test does not exist"):
        annotations.imagenet(tmp_path)
    (tmp_path / "ImageNet1K" / "test").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no \.JPEG images; unpack ImageNet-1K test there"):
        annotations.imagenet(tmp_path)


def test_a_missing_file_is_named(data):
    (data / "CIRCO/annotations/val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"CIRCO/annotations/val.json does not exist; download it"):
        benchmarks.load("circo", data, "val")


@pytest.mark.parametrize(
    ("dataset", "file", "key"),
    [
        ("fashioniq", "FashionIQ/captions/cap.shirt.val.json", "candidate"),
        ("cirr", "CIRR/cirr/captions/cap.rc2.val.json", "target_hard"),
        ("circo", "CIRCO/annotations/val.json", "gt_img_ids"),
    ],
)
def test_an_entry_without_a_key_is_named(data, dataset, file, key):
    change(data / file, lambda entries: entries[2].pop(key))
    with pytest.raises(ValueError, match=rf"entry 2 of .*{file} has no key {key}; download the file again"):
        benchmarks.load(dataset, data, "val")


def replace_target(entry, image):
    """Another target of an entry of CIRR, in its group too."""
    members = entry["img_set"]["members"]
    members[members.index(entry["target_hard"])] = image
    entry["target_hard"] = image


def test_an_image_outside_the_gallery_is_named_with_its_query(data):
    change(data / "CIRR/cirr/captions/cap.rc2.val.json", lambda entries: replace_target(entries[1], "dev-0"))
    with pytest.raises(ValueError, match="query 1 of cirr/val names image dev-0, which is not among the 24 of "):
        benchmarks.load("cirr", data, "val")


def test_an_entry_with_one_caption_is_named(data):
    change(data / "FashionIQ/captions/cap.dress.val.json", lambda entries: entries[4]["captions"].pop())
    with pytest.raises(ValueError, match=r"entry 4 of .*cap.dress.val.json has 1 captions, not 2; download it again"):
        benchmarks.load("fashioniq", data, "val")


def test_a_broken_json_file_is_named(data):
    file = data / "FashionIQ/image_splits/split.dress.val.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(ValueError, match=r"split.dress.val.json is not valid JSON .*; download it again"):
        benchmarks.load("fashioniq", data, "val")


def test_images_of_another_coco_year_are_refused_with_what_to_download(data):
    info = data / "CIRCO/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    info.write_text(json.dumps({"info": {"year": 2014}, "images": [{"id": 7, "file_name": "COCO_test2014_7.jpg"}]}))
    said = r"query 0 of circo/val names image \d+, which is not among the 1 of .*; it must be COCO's image_info"
    with pytest.raises(ValueError, match=said):
        benchmarks.load("circo", data, "val")


def test_cirr_without_test1_says_how_to_do_without(data):
    (data / "CIRR/cirr/captions/cap.rc2.test1.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"test1.json does not exist; .* or leave its split out of evaluate"):
        benchmarks.load_all(["cirr"], data)
    assert list(benchmarks.load_all(["cirr"], data, ["validation"])) == ["cirr/val"]


def test_the_union_gallery_is_what_queries_name_in_the_order_of_the_split(world):
    for split, union in zip(
        *(benchmarks.load("fashioniq", world, "val", kind) for kind in ("split", "union")), strict=True
    ):
        named = set(split.queries["reference"]) | set(split.queries["target"])
        assert union.gallery["image"].tolist() == [image for image in split.gallery["image"] if image in named]
        assert len(union.gallery) < len(split.gallery) and union.gallery_name != split.gallery_name
        assert union.full_size == (6, len(named))


def test_fashioniq_pictures_may_be_png_where_there_is_no_jpg(data):
    folder = data / "FashionIQ/images"
    names = json.loads((data / "FashionIQ/image_splits/split.dress.val.json").read_text())
    folder.mkdir()
    for file in (f"{names[0]}.png", f"{names[1]}.png", f"{names[1]}.jpg"):
        (folder / file).write_bytes(b"")
    paths = benchmarks.load("fashioniq", data, "val")[0].gallery["path"]
    assert [path.rsplit("/", 1)[-1] for path in paths[:3]] == [f"{names[0]}.png", f"{names[1]}.jpg", f"{names[2]}.jpg"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((["cirr"], ["valid"]), "evaluate holds 'valid'; it must be validation or test"),
        ((["fashioniq"], ["validation"], "Union"), "fashioniq_gallery is Union; it must be split or union"),
        ((["fashioniq"], ["test"]), "leave nothing to evaluate; FashionIQ has no test server"),
    ],
)
def test_choices_that_papermill_lets_through_are_refused(world, arguments, sentence):
    datasets, evaluate, *gallery = arguments
    with pytest.raises(ValueError, match=sentence):
        benchmarks.load_all(datasets, world, evaluate, *gallery)


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 1}'])
def test_a_caption_file_of_another_form_is_named(data, content):
    (data / "CIRR/cirr/captions/cap.rc2.val.json").write_text(content)
    with pytest.raises(ValueError, match=r"cap.rc2.val.json holds (nothing|a dict), not a list; download it again"):
        benchmarks.load("cirr", data, "val")


def kept_by_02(folder, world, loaded, data_root=None):
    """What 02_concepts leaves of some benchmarks; the folders of the artefacts."""
    concepts = study_of(folder, "02_concepts")
    benchmarks.keep(concepts, loaded, world)
    return leave_record(concepts, data_root=str(data_root or world)).made


def everything(world):
    return [b for loaded in benchmarks.load_all(["fashioniq", "cirr", "circo"], world).values() for b in loaded]


def test_a_later_notebook_reads_the_benchmarks_that_02_kept_as_they_were_in_order(world, tmp_path):
    loaded = everything(world)
    kept_by_02(tmp_path, world, loaded)
    found = benchmarks.read(study_of(tmp_path, "06_retrieval"))
    assert [benchmark.name for benchmark in found] == [benchmark.name for benchmark in loaded]
    for before, after in zip(loaded, found, strict=True):
        assert (after.gallery_name, after.full_size, after.key) == (before.gallery_name, before.full_size, before.key)
        pd.testing.assert_frame_equal(after.gallery, before.gallery, check_dtype=False)
        assert after.queries.to_dict("records") == before.queries.to_dict("records")


def test_pictures_are_looked_for_below_the_data_root_that_02_had(world, tmp_path):
    kept_by_02(tmp_path, world, benchmarks.load("cirr", world, "val"), data_root="/elsewhere")
    (cirr,) = benchmarks.read(study_of(tmp_path, "06_retrieval"))
    (before,) = benchmarks.load("cirr", world, "val")
    relative = [path.removeprefix(f"{world}/") for path in before.gallery["path"]]
    assert cirr.gallery["path"].tolist() == [f"/elsewhere/{path}" for path in relative]


def test_a_data_set_that_was_moved_is_the_same_benchmark(world, data, tmp_path):
    here = kept_by_02(tmp_path / "study", world, benchmarks.load("cirr", world, "val"))
    there = kept_by_02(tmp_path / "study", data, benchmarks.load("cirr", data, "val"))
    assert here == there


def test_another_caption_and_another_gallery_are_other_benchmarks(world, data, tmp_path):
    change(data / "CIRR/cirr/captions/cap.rc2.val.json", lambda entries: entries[0].update(caption="is red"))
    before = kept_by_02(tmp_path / "study", data, benchmarks.load("cirr", world, "val"))["benchmarks/cirr/val"]
    after = kept_by_02(tmp_path / "study", data, benchmarks.load("cirr", data, "val"))["benchmarks/cirr/val"]
    split, union = (
        kept_by_02(tmp_path / "study", world, benchmarks.load("fashioniq", world, "val", gallery))
        for gallery in benchmarks.FASHIONIQ_GALLERIES
    )
    assert before != after
    assert not set(split.values()) & set(union.values())


def test_the_example_is_of_circo_else_of_cirr_else_of_fashioniq_and_of_a_validation_split(world):
    def name_of(datasets, evaluate):
        splits = benchmarks.load_all(datasets, world, evaluate)
        return benchmarks.example([b for loaded in splits.values() for b in loaded]).benchmark.name

    assert name_of(["fashioniq", "cirr", "circo"], benchmarks.EVALUATE) == "circo/val"
    assert name_of(["fashioniq", "cirr"], benchmarks.EVALUATE) == "cirr/val"
    assert name_of(["fashioniq"], ["validation"]) == "fashioniq/val/dress"
    assert name_of(["cirr", "circo"], ["test"]) == "circo/test"


CIRR, CIRCO = "CIRR/cirr/captions/cap.rc2.val.json", "CIRCO/annotations/val.json"
DRESS, SPLIT = "FashionIQ/captions/cap.dress.val.json", "CIRR/cirr/image_splits/split.rc2.val.json"
COCO = "CIRCO/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
WRONG = {  # what stands wrongly in a file, and the sentence about it
    "a ground truth twice": (CIRCO, lambda e: e[1]["gt_img_ids"].append(e[1]["gt_img_ids"][0]), "entry 1 .* different"),
    "a padded ground truth": (CIRCO, lambda e: e[1].update(gt_img_ids=["07"]), "entry 1 .* has gt_img_ids"),
    "a padded target": (
        CIRCO,
        lambda e: e[1].update(target_img_id="00000007"),
        "target_img_id '00000007', which is no",
    ),
    "truths as a text": (CIRCO, lambda e: e[2].update(gt_img_ids="12"), "entry 2 .* is not a list of different numb"),
    "an aspect twice": (CIRCO, lambda e: e[2].update(semantic_aspects=["a", "a"]), "entry 2 .* has semantic_aspects"),
    "a query of CIRCO twice": (CIRCO, lambda e: e[3].update(id=e[0]["id"]), "entry 3 .* is the second query"),
    "a true id": (CIRCO, lambda e: e[3].update(id=True), "entry 3 .* has id True, which is not a number"),
    "a reference as a truth": (
        CIRCO,
        lambda e: e[0]["gt_img_ids"].append(e[0]["reference_img_id"]),
        "entry 0 .* as a target",
    ),
    "an entry that is a number": (CIRCO, lambda e: e.__setitem__(3, 7), "entry 3 of .* is 7, not an object"),
    "a query of CIRR twice": (CIRR, lambda e: e[5].update(pairid=e[4]["pairid"]), "entry 5 .* is the second query"),
    "a member twice": (CIRR, lambda e: e[0]["img_set"]["members"].append(e[0]["reference"]), "entry 0 .* has members"),
    "members as a text": (CIRR, lambda e: e[0]["img_set"].update(members="ab"), "entry 0 .* has members 'ab'"),
    "a group that is no object": (CIRR, lambda e: e[0].update(img_set=[]), "has img_set .*, which is not an object"),
    "a target outside its group": (
        CIRR,
        lambda e: e[6].update(target_hard="dev-0"),
        "not among the members of its img",
    ),
    "a target that is its reference": (CIRR, lambda e: e[6].update(target_hard=e[6]["reference"]), "entry 6 .* targe"),
    "a caption of numbers": (CIRR, lambda e: e[6].update(caption=[1]), r"has caption \[1\], which is not a text"),
    "half a surrogate": (CIRR, lambda e: e[6].update(caption="\ud800"), "has caption .*, which is not a text"),
    "a name with an escape sequence": (CIRR, lambda e: e[6].update(reference="a\x1b[2J"), "has reference .*not a name"),
    "captions as a text": (DRESS, lambda e: e[0].update(captions="ab"), "has captions 'ab', which is not a list of te"),
    "a query of FashionIQ twice": (DRESS, lambda e: e.append(e[0]), "entry 6 of .* stands there twice"),
    "an image without an id": (COCO, lambda c: c["images"][2].pop("id"), "entry 2 of .* has no key id"),
    "an image twice": (COCO, lambda c: c["images"].append(c["images"][0]), "lists image .* twice"),
    "a file twice": (COCO, lambda c: c["images"][2].update(file_name=c["images"][0]["file_name"]), "under two names"),
    "an image at a number": (SPLIT, lambda c: c.update({next(iter(c)): 7}), "lists image .* at 7, which is no path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_entry_that_would_give_a_wrong_number_is_refused_with_its_file(data, name):
    file, edit, sentence = WRONG[name]
    change(data / file, edit)
    with pytest.raises(ValueError, match=sentence) as refusal:
        benchmarks.load({"CIRR": "cirr", "CIRC": "circo", "Fash": "fashioniq"}[file[:4]], data, "val")
    assert str(data / file) in str(refusal.value) and str(refusal.value).isprintable()


def test_a_key_that_stands_twice_is_refused(data):
    file = data / SPLIT
    first = file.read_text().split(",")[0]
    file.write_text(file.read_text().replace("{", first + ",", 1))
    with pytest.raises(ValueError, match=r"split.rc2.val.json is not valid JSON .*the key .* stands twice.*; download"):
        benchmarks.load("cirr", data, "val")


@pytest.mark.parametrize(
    "path", ["/etc/x.png", "//etc/x.png", "../../x.png", "dev/../../x.png", "./dev/sub/../../../x.png", "."]
)
@pytest.mark.parametrize("file", [COCO, SPLIT, "FashionIQ/image_splits/split.dress.val.json"])
def test_a_list_names_no_image_outside_of_its_folder(data, file, path):
    edits = {
        "CIRC": lambda content: content["images"][1].update(file_name=path),
        "CIRR": lambda content: content.update({next(iter(content)): path}),
        "Fash": lambda content: content.__setitem__(1, path),
    }
    change(data / file, edits[file[:4]])
    with pytest.raises(ValueError, match=rf"{file} lists image .*, which is no path below {data}") as refusal:
        benchmarks.load({"CIRR": "cirr", "CIRC": "circo", "Fash": "fashioniq"}[file[:4]], data, "val")
    assert path in str(refusal.value)


def test_a_folder_of_images_may_be_a_link_but_nothing_in_it_may_lead_out(data, tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (data / "CIRR" / "dev").symlink_to(tmp_path / "disk")
    benchmarks.load("cirr", data, "val")
    (tmp_path / "disk" / "out").symlink_to(tmp_path)
    change(data / SPLIT, lambda content: content.update({next(iter(content)): "./dev/out/x.png"}))
    with pytest.raises(ValueError, match=r"split.rc2.val.json lists images in .*dev/out, a link that leads out of"):
        benchmarks.load("cirr", data, "val")


@pytest.mark.parametrize("content", ["[" * 100_000, "[" * 70 + "]" * 70, "[" + "1," * 6_000_000 + "1]", "[NaN]"])
def test_a_file_that_is_nested_or_filled_beyond_measure_is_refused(data, content):
    (data / CIRCO).write_text(content)
    with pytest.raises(ValueError, match=r"val.json is not valid JSON .*; download it again"):
        benchmarks.load("circo", data, "val")


def test_a_pipe_in_the_place_of_a_file_is_refused(data):
    (data / CIRCO).unlink()
    os.mkfifo(data / CIRCO)
    with pytest.raises(ValueError, match=r"val.json is not valid JSON .*it is not a plain file"):
        benchmarks.load("circo", data, "val")
