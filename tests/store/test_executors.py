import sys

import pytest
import torch

from searle_lib.store import shards
from searle_lib.store.artefacts import DamagedArtefact, Store
from searle_lib.store.executors import SERIAL, Part, PartComputed, of_parameters
from searle_lib.store.shards import Shards


def squares(first, end):
    return {"square": torch.arange(first, end) ** 2}


def store_of_job(tmp_path, part, of):
    return Store(tmp_path / "store", "03_oti", Part(part, of, tmp_path / f"job-{part}"))


def keep(store, rows=43, work=squares, in_folder="shards"):
    """Keep an artefact whose shards have 20 rows, and return its squares."""

    def make(folder):
        tensors = shards.run(folder / in_folder, rows, 20, work, "squares", store.executor)
        torch.save(tensors["square"], folder / "squares.pt")

    return store.keep("squares", {}, make).read(lambda folder: torch.load(folder / "squares.pt"))


def test_a_study_computes_in_its_own_process_unless_it_says_ray():
    assert of_parameters({"executor": "serial"}) is SERIAL and of_parameters({}) is SERIAL


def test_ray_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray_cluster", "ray_worker"):
        monkeypatch.delitem(sys.modules, f"searle_lib.store.{name}", raising=False)
    with pytest.raises(ValueError, match="executor is ray, and the package ray is not installed; run: pip install ray"):
        of_parameters({"executor": "ray"})


@pytest.mark.parametrize("in_folder", ["shards", ""])
def test_the_parts_together_are_the_shards_of_one_process(tmp_path, in_folder):
    keep(Store(tmp_path / "serial", "03_oti"), in_folder=in_folder)
    for part in (2, 3):
        with pytest.raises(
            PartComputed, match=rf"part {part} of 3 of .* is computed \(1 shards\); the other jobs have"
        ):
            keep(store_of_job(tmp_path, part, 3), in_folder=in_folder)
    last = keep(store_of_job(tmp_path, 1, 3), in_folder=in_folder)  # which needs no other job any more
    assert last.tolist() == [row**2 for row in range(43)]
    saved = {path.name: path.read_bytes() for path in (tmp_path / "store").rglob("rows-*")}
    assert sorted(saved) == [shards.shard_file(tmp_path, *rows).name for rows in ((0, 20), (20, 40), (40, 43))]


def test_the_notebook_computes_nothing_that_the_jobs_have(tmp_path):
    for part in (1, 2):
        with pytest.raises(PartComputed):
            keep(store_of_job(tmp_path, part, 3))
    rows = []

    def work(first, end):
        rows.append((first, end))
        return squares(first, end)

    whole = keep(Store(tmp_path / "store", "03_oti"), work=work)
    assert rows == [(40, 43)] and whole.tolist() == [row**2 for row in range(43)]


def test_a_job_leaves_nothing_but_shards_in_the_store(tmp_path):
    with pytest.raises(PartComputed):
        keep(store_of_job(tmp_path, 1, 2))
    names = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert names == {"rows-000000000-000000020.safetensors", "rows-000000040-000000043.safetensors"}


def test_a_part_does_not_depend_on_what_is_left(tmp_path):
    folder = tmp_path / "store" / "squares.partial"
    for first, end in ((0, 20), (20, 40)):
        Shards(folder, 20)(squares(first, end), first, end)
    job = Part(3, 3, tmp_path / "job", {tmp_path / "job" / "squares": folder})
    shards.write(tmp_path / "job" / "squares", 43, 20, squares, executor=job)
    assert Shards(folder, 20).has(40, 43)


def test_a_job_computes_no_shard_that_another_has_saved_meanwhile(tmp_path):
    save = Shards(tmp_path, 20)
    job = Part(1, 1, tmp_path / "job")
    save(squares(0, 20), 0, 20)
    computed = list(job.map(lambda first, end: pytest.fail("computed again"), [(0, 20)], save))
    assert computed == [((0, 20), None)]


def test_a_job_does_not_make_a_damaged_artefact_again(tmp_path):
    keep(Store(tmp_path / "store", "03_oti"))
    (next((tmp_path / "store").glob("squares-*")) / "squares.pt").write_bytes(b"damaged")
    with pytest.raises(DamagedArtefact, match="delete that folder and run 03_oti again"):
        keep(store_of_job(tmp_path, 1, 2))


def test_what_cannot_be_cut_is_left_to_the_study(tmp_path):
    SERIAL.require_whole("the training")
    with pytest.raises(PartComputed, match="all shards are computed, and the training is not cut into parts; run"):
        Part(1, 2, tmp_path).require_whole("the training")
