"""GeneCIS's tasks in the form of their official files, made small, as data sets of one's own."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from projects import ROOT

from searle_lib.__main__ import main
from searle_lib.data import benchmarks, genecis


def noise(path, seed, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def objects(tmp_path):
    """Three queries on four images of COCO, one of them twice, as change_object.json has them."""
    for number in range(4):
        noise(tmp_path / "coco" / "val2017" / f"{number:012d}.jpg", number, (20, 10))
    entries = [
        {"reference": {"val_image_id": 0}, "target": {"val_image_id": 2}, "condition": "sky, with a bird"}
        | {"gallery": [{"val_image_id": 1}, {"val_image_id": 3}]},
        {"reference": {"val_image_id": 3}, "target": {"val_image_id": 1}, "condition": "car"}
        | {"gallery": [{"val_image_id": 0}, {"val_image_id": 2}]},
    ]
    file = tmp_path / "genecis" / "change_object.json"
    file.parent.mkdir()
    file.write_text(json.dumps([*entries, entries[0]]))
    return file


def test_the_pages_command_makes_a_data_set_whose_groups_are_the_galleries(objects, tmp_path, capsys, monkeypatch):
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"python -m searle_lib (genecis .*)", page)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 0
    printed = capsys.readouterr().out.strip()
    assert f"`{printed}`" in page
    (benchmark,) = benchmarks.load(printed, tmp_path, "val")
    assert benchmark.name == "genecis_change_object/val"
    assert benchmark.gallery["image"].tolist() == [f"{number:012d}.jpg" for number in range(4)]
    first = benchmark.queries.iloc[0]
    assert first["sentences"] == ["sky, with a bird"] and first["target"] == "000000000002.jpg"
    assert first["group"] == ["000000000002.jpg", "000000000001.jpg", "000000000003.jpg"]
    assert benchmark.queries["query"].tolist() == ["0", "1", "2"]  # the last one is the first again
    assert [name for name, under in benchmark.protocol.metrics if under] == ["Rsubset@1", "Rsubset@2", "Rsubset@3"]
    whole = (tmp_path / "coco" / "val2017" / "000000000001.jpg").read_bytes()
    assert (tmp_path / "data/genecis_change_object/images/000000000001.jpg").read_bytes() == whole


def test_a_task_on_attributes_cuts_boxes_out_as_the_authors_do(tmp_path):
    noise(tmp_path / "vg" / "7.jpg", 7, (100, 60))
    boxes = [[50, 20, 20, 10], [2, 3, 10, 20], [90, 50, 10, 10]]
    reference, target, other = ({"image_id": 7, "instance_bbox": box} for box in boxes)
    file = tmp_path / "focus_attribute.json"
    entry = {"reference": reference, "target": target, "gallery": [other], "condition": "color"}
    file.write_text(json.dumps([entry]))
    (benchmark,) = benchmarks.load(str(genecis.convert(file, tmp_path / "vg", tmp_path / "out")), tmp_path, "val")
    assert benchmark.gallery["image"].tolist() == ["7-2-3-10-20.png", "7-50-20-20-10.png", "7-90-50-10-10.png"]
    whole = np.asarray(Image.open(tmp_path / "vg" / "7.jpg"))
    cut = np.asarray(Image.open(benchmark.gallery["path"][1]))  # from 50 - 14 and 20 - 7, 34 wide and 17 high
    assert cut.shape == (34, 34, 3)
    assert (cut[8:25] == whole[13:30, 36:70]).all() and not cut[:8].any() and not cut[25:].any()
    at_the_edge = np.asarray(Image.open(benchmark.gallery["path"][0]))  # from 0 and 0, 17 wide and 34 high
    assert (at_the_edge[:, 8:25] == whole[:34, :17]).all() and not at_the_edge[:, :8].any()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda entries: entries[1].pop("target"), "is not a task of GeneCIS .*'target'.*; download it again"),
        (lambda entries: entries[0].update(condition=3), "is not a task of GeneCIS .*the condition of entry 0 is 3"),
        (lambda entries: entries[0].update(gallery=[{"image_id": 1}]), "is not a task of GeneCIS .*instance_bbox"),
        (lambda entries: entries.clear(), "is not a task of GeneCIS .*it holds no query"),
    ],
)
def test_a_file_of_another_form_is_refused_in_a_sentence(objects, tmp_path, edit, sentence):
    entries = json.loads(objects.read_text())
    edit(entries)
    objects.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=sentence) as refusal:
        genecis.convert(objects, tmp_path / "coco" / "val2017", tmp_path / "out")
    assert str(objects) in str(refusal.value) and not (tmp_path / "out").exists()


def test_another_name_and_an_absent_image_are_refused_in_a_sentence(objects, tmp_path):
    with pytest.raises(
        ValueError, match=r"mine.json has not the name of a task; name it focus_attribute, .*object.json"
    ):
        genecis.convert(objects.rename(tmp_path / "mine.json"), tmp_path, tmp_path / "out")
    (tmp_path / "mine.json").rename(objects)
    (tmp_path / "coco" / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000002.jpg does not exist; download it"):
        genecis.convert(objects, tmp_path / "coco" / "val2017", tmp_path / "out")
