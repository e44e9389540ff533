"""What a study leaves out when images are missing or broken: exactly those, and the queries that name one."""

import functools
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import forbidden

from searle_lib.backbone import embeddings
from searle_lib.data import annotations, benchmarks, images, readable
from searle_lib.store.artefacts import DamagedArtefact, Store

DATASETS = ["fashioniq", "cirr", "circo"]


@pytest.fixture(scope="module")
def damaged(world, tmp_path_factory):
    """A copy of the world with gaps, and the paths of the missing and of the broken images.

    Damaged are references, targets, members of a group, ground truths that are no target, and images of no query.
    """
    root = shutil.copytree(world, tmp_path_factory.mktemp("damaged") / "data", ignore=shutil.ignore_patterns("models"))
    dress, shirt, _ = benchmarks.load("fashioniq", root, "val")
    (cirr,), (cirr_test,) = (benchmarks.load("cirr", root, split) for split in ("val", "test1"))
    (circo,), (circo_test,) = (benchmarks.load("circo", root, split) for split in ("val", "test"))
    several = next(truths for truths in circo.queries["ground_truths"] if len(truths) > 1)
    missing = {
        path_of(dress, dress.queries["reference"][2]),
        path_of(dress, unnamed(dress)[0]),
        path_of(cirr, cirr.queries["group"][0][1]),
        path_of(circo, several[-1]),
        path_of(circo_test, circo_test.queries["reference"][1]),
    }
    broken = {
        path_of(shirt, shirt.queries["target"][4]),
        path_of(shirt, shirt.queries["reference"][0]),
        path_of(cirr_test, cirr_test.queries["reference"][7]),
        path_of(circo, unnamed(circo)[3]),
    }
    for path in missing:
        path.unlink()
    for path in broken:
        path.write_bytes(path.read_bytes()[:600])
    return root, missing, broken


def path_of(benchmark, image):
    (path,) = benchmark.gallery["path"][benchmark.gallery["image"] == image]
    return Path(path)


def unnamed(benchmark):
    """Images that no query names."""
    named = {image for of_one in benchmarks.named_images(benchmark.queries) for image in of_one}
    return [image for image in benchmark.gallery["image"] if image not in named]


def loaded(root):
    return benchmarks.load_all(DATASETS, root)


def every(splits):
    """All benchmarks of some splits, one after the other."""
    return [benchmark for of_split in splits.values() for benchmark in of_split]


def forbid_reading(monkeypatch):
    monkeypatch.setattr(images, "read", forbidden(images.read))


def count_readings(monkeypatch):
    """A list that grows by each path that is read."""
    read, paths = images.read, []

    @functools.wraps(read)  # so that its code is that of `read`
    def counted(path):
        paths.append(path)
        return read(path)

    monkeypatch.setattr(images, "read", counted)
    return paths


def imagenet_copy(world, folder):
    shutil.copytree(world / "ImageNet1K" / "test", folder / "ImageNet1K" / "test")
    return annotations.imagenet(folder)


def test_with_report_exactly_the_bad_images_and_the_queries_that_name_one_are_left_out(damaged, tmp_path):
    root, missing, broken = damaged
    whole, found = loaded(root), readable.drop_incomplete_queries(Store(tmp_path), loaded(root), "report")
    assert list(found) == list(whole)
    for name, of_split in whole.items():
        for before, after in zip(of_split, found[name], strict=True):
            bad, gallery, queries = set(), [], []
            for row in before.gallery.itertuples():
                if Path(row.path) in missing | broken:
                    bad.add(row.image)
                else:
                    gallery.append((row.image, row.path))
            for row in before.queries.itertuples():
                if not bad & {row.reference, row.target, *row.ground_truths, *row.group}:
                    queries.append(row.query)
            assert list(after.gallery.itertuples(index=False, name=None)) == gallery, before.name
            assert after.queries["query"].tolist() == queries, before.name
            assert after.gallery.index.tolist() == list(range(len(gallery)))
            assert after.queries.index.tolist() == list(range(len(queries)))
            assert after.full_size == (len(before.queries), len(before.gallery))


def test_what_is_left_of_a_query_is_as_it_was(damaged, tmp_path):
    (before,) = benchmarks.load("cirr", damaged[0], "val")
    (after,) = readable.drop_incomplete_queries(Store(tmp_path), {"cirr/val": [before]}, "report")["cirr/val"]
    kept = before.queries.set_index("query").loc[after.queries["query"]].reset_index()
    pd.testing.assert_frame_equal(after.queries[kept.columns], kept)
    assert after.key != before.key


def test_counts_say_n_of_n_for_each_benchmark(damaged, tmp_path):
    """Six queries of CIRR share a group, so that one missing member costs all six."""
    table = readable.counts(every(readable.drop_incomplete_queries(Store(tmp_path), loaded(damaged[0]), "report")))
    assert table.loc["cirr/val"].to_dict() == {"queries": "18 of 24", "gallery images": "23 of 24"}
    assert table.loc["cirr/test1"].to_dict() == {"queries": "6 of 12", "gallery images": "11 of 12"}
    assert table.loc["fashioniq/val/dress"].to_dict() == {"queries": "5 of 6", "gallery images": "18 of 20"}
    assert table.loc["fashioniq/val/shirt"].to_dict() == {"queries": "4 of 6", "gallery images": "18 of 20"}
    assert table.loc["fashioniq/val/toptee"].to_dict() == {"queries": "6 of 6", "gallery images": "20 of 20"}
    assert table.loc["circo/val"].to_dict() == {"queries": "7 of 8", "gallery images": "87 of 90"}
    assert table.loc["circo/test"].to_dict() == {"queries": "3 of 4", "gallery images": "87 of 90"}


def test_what_is_left_can_be_encoded(damaged, tiny, tmp_path):
    splits = readable.drop_incomplete_queries(Store(tmp_path), loaded(damaged[0]), "report")
    galleries = embeddings.encode_lists(Store(tmp_path), tiny, benchmarks.galleries_of(every(splits)))
    for of_split in splits.values():
        references = embeddings.keep_references(Store(tmp_path), tiny, of_split, galleries)
        assert references.ids == tuple(benchmarks.reference_table(of_split)["image"])


def test_with_error_everything_stays_and_nothing_is_read(damaged, tmp_path, monkeypatch):
    forbid_reading(monkeypatch)
    whole = loaded(damaged[0])
    found = readable.drop_incomplete_queries(Store(tmp_path / "store"), whole, "error")
    for name, of_split in whole.items():
        assert all(after is before for before, after in zip(of_split, found[name], strict=True))
    table = annotations.imagenet(damaged[0])
    assert readable.drop_unreadable(Store(tmp_path / "store"), benchmarks.IMAGENET, table, "error") is table
    assert not (tmp_path / "store").exists()


def test_where_nothing_is_broken_report_leaves_everything(world, tmp_path):
    whole = loaded(world)
    found = readable.drop_incomplete_queries(Store(tmp_path), whole, "report")
    for name, of_split in whole.items():
        assert all(after is before for before, after in zip(of_split, found[name], strict=True))


def test_the_gallery_that_both_splits_of_circo_share_is_read_once(damaged, tmp_path, monkeypatch):
    paths = count_readings(monkeypatch)
    readable.drop_incomplete_queries(Store(tmp_path), benchmarks.load_all(["circo"], damaged[0]), "report")
    assert len(paths) == len(set(paths)) == 90


@pytest.mark.parametrize("workers", [1, 3])
def test_each_image_is_good_missing_or_broken(world, tmp_path, workers):
    table = imagenet_copy(world, tmp_path)
    paths = [Path(path) for path in table["path"]]
    paths[3].unlink()
    paths[8].write_bytes(paths[8].read_bytes()[:500])
    paths[9].write_text("<html>404 Not Found</html>")
    paths[20].write_bytes(b"")
    expected = [readable.GOOD] * 24
    expected[3] = readable.MISSING
    for row in (8, 9, 20):
        expected[row] = readable.BROKEN
    assert readable.check_images(Store(tmp_path / "store"), benchmarks.IMAGENET, table, workers).tolist() == expected
    kept = readable.drop_unreadable(Store(tmp_path / "store"), benchmarks.IMAGENET, table, "report")
    good = [image for image, verdict in zip(table["image"], expected, strict=True) if verdict == readable.GOOD]
    assert kept["image"].tolist() == good and kept.index.tolist() == list(range(20))


def test_verdicts_do_not_depend_on_shards(damaged, tmp_path, monkeypatch):
    (table,) = (benchmark.gallery for benchmark in benchmarks.load("circo", damaged[0], "val"))
    whole = readable.check_images(Store(tmp_path / "a"), "circo/unlabeled", table)
    monkeypatch.setattr(readable, "SHARD", 7)
    assert readable.check_images(Store(tmp_path / "b"), "circo/unlabeled", table).tolist() == whole.tolist()


def test_verdicts_are_kept_and_no_image_is_decoded_again(damaged, tmp_path, monkeypatch):
    (table,) = (benchmark.gallery for benchmark in benchmarks.load("cirr", damaged[0], "val"))
    first = readable.check_images(Store(tmp_path, "01_phrases"), "cirr/val", table)
    forbid_reading(monkeypatch)
    assert readable.check_images(Store(tmp_path, "06_retrieval"), "cirr/val", table).tolist() == first.tolist()


def test_verdicts_are_void_when_a_file_is_repaired_or_breaks(world, tmp_path):
    table, store = imagenet_copy(world, tmp_path), Store(tmp_path / "store")
    paths = [Path(path) for path in table["path"]]
    whole = {row: paths[row].read_bytes() for row in (3, 8)}
    paths[3].unlink()
    paths[8].write_bytes(whole[8][:500])
    assert readable.check_images(store, benchmarks.IMAGENET, table).nonzero().flatten().tolist() == [3, 8]
    paths[3].write_bytes(whole[3])
    assert readable.check_images(store, benchmarks.IMAGENET, table).nonzero().flatten().tolist() == [8]
    paths[8].write_bytes(whole[8])
    assert readable.check_images(store, benchmarks.IMAGENET, table).nonzero().flatten().tolist() == []
    paths[5].unlink()
    assert readable.check_images(store, benchmarks.IMAGENET, table).nonzero().flatten().tolist() == [5]


def test_verdicts_are_void_when_a_file_of_the_same_size_takes_its_place(world, tmp_path):
    table, store = imagenet_copy(world, tmp_path), Store(tmp_path / "store")
    path = Path(table["path"][2])
    size = path.stat().st_size
    assert not readable.check_images(store, benchmarks.IMAGENET, table).any()
    path.write_bytes(b"\0" * size)
    assert readable.check_images(store, benchmarks.IMAGENET, table).nonzero().flatten().tolist() == [2]


def test_a_benchmark_that_loses_all_its_queries_is_named(world, tmp_path):
    root = shutil.copytree(world, tmp_path / "data", ignore=shutil.ignore_patterns("models", "COCO*", "ImageNet1K"))
    loaded_toptee = benchmarks.load("fashioniq", root, "val")[2]
    for reference in loaded_toptee.queries["reference"]:
        path_of(loaded_toptee, reference).unlink()
    with pytest.raises(
        ValueError,
        match=r"no query of fashioniq/val/toptee has all its images \(14 of 20 can be read\); download more of",
    ):
        readable.drop_incomplete_queries(Store(tmp_path / "store"), benchmarks.load_all(["fashioniq"], root), "report")


def test_a_list_of_which_no_image_can_be_read_is_named_with_its_first(world, tmp_path):
    table = imagenet_copy(world, tmp_path)
    shutil.rmtree(tmp_path / "ImageNet1K")
    first = table["path"][0]
    with pytest.raises(ValueError, match=rf"none of the 24 images of imagenet/test can be read \(first: {first}\)"):
        readable.drop_unreadable(Store(tmp_path / "store"), benchmarks.IMAGENET, table, "report")


def test_reasons_name_each_file_and_what_is_wrong_with_it(world, tmp_path):
    paths = [Path(path) for path in imagenet_copy(world, tmp_path)["path"]]
    paths[1].unlink()
    paths[4].write_bytes(paths[4].read_bytes()[:500])
    gone, cut = readable.explain([str(path) for path in paths[:6]])
    assert gone == (f"image {paths[1]} does not exist; download it, correct data_root, or set missing_images: report.")
    assert cut.startswith(f"image {paths[4]} cannot be decoded (500 bytes on disk: ")
    assert cut.endswith("; download it again, or set missing_images: report.")


def test_damaged_verdicts_are_named_by_their_folder(world, tmp_path):
    table = annotations.imagenet(world)
    readable.check_images(Store(tmp_path, "02_concepts"), benchmarks.IMAGENET, table)
    (file,) = tmp_path.rglob("verdicts.safetensors")
    file.write_bytes(b"")
    with pytest.raises(
        DamagedArtefact, match=rf"artefact {file.parent} is damaged \(.*\); delete that folder and run 02_concepts"
    ):
        readable.check_images(Store(tmp_path), benchmarks.IMAGENET, table)
