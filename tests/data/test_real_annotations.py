"""The loaders on the real benchmarks' annotations, where they are at hand (REAL_DATA, or ../shared/data)."""

import json
import os
import shutil
from pathlib import Path

import pytest

from searle_lib.data import benchmarks

DATA = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the benchmarks' annotations in {DATA}")


def test_fashioniq_has_its_published_sizes():
    loaded = benchmarks.load("fashioniq", DATA, "val")
    assert [(len(b.queries), len(b.gallery)) for b in loaded] == [(2017, 3817), (2038, 6346), (1961, 5373)]


@pytest.mark.parametrize(("split", "queries", "images"), [("val", 4181, 2297), ("test1", 4148, 2315)])
def test_cirr_has_its_published_sizes(split, queries, images):
    (loaded,) = benchmarks.load("cirr", DATA, split)
    assert (len(loaded.queries), len(loaded.gallery)) == (queries, images)
    assert loaded.queries["group"].map(len).eq(5).all()


def test_circo_has_its_published_sizes(tmp_path):
    """Its image list is not among the annotations: one with just the images that queries name is made."""
    shutil.copytree(DATA / "CIRCO" / "annotations", tmp_path / "CIRCO" / "annotations")
    named = set()
    for split in ("val", "test"):
        for entry in json.loads((DATA / "CIRCO" / "annotations" / f"{split}.json").read_text()):
            named |= {entry["reference_img_id"], *entry.get("gt_img_ids", [])}
    info = tmp_path / "CIRCO" / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    info.parent.mkdir(parents=True)
    info.write_text(json.dumps({"images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in sorted(named)]}))
    (val,), (test,) = (benchmarks.load("circo", tmp_path, split) for split in ("val", "test"))
    assert (len(val.queries), len(test.queries)) == (220, 800)
    assert round(val.queries["ground_truths"].map(len).mean(), 2) == 4.16
    assert set(val.queries["aspects"].explode()) >= {"cardinality", "negation", "compare_change"}
