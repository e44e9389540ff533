import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import forbidden
from safetensors.torch import load_file, save_file

from searle_lib.store import artefacts, contents, shards
from searle_lib.store.artefacts import Artefact, DamagedArtefact, Store, write_json

FORK = multiprocessing.get_context("fork")  # a fresh process would import torch for seconds


def write_hello(folder):
    (folder / "hello.txt").write_text("hello")


def test_what_exists_is_not_made_again(tmp_path):
    store, calls = Store(tmp_path), []

    def make(folder):
        calls.append(folder)
        write_hello(folder)

    first, second = (store.keep("greeting", {"language": "en"}, make) for _ in range(2))
    assert first == second and len(calls) == 1
    assert (first.folder / "hello.txt").read_text() == "hello"
    assert json.loads((first.folder / "manifest.json").read_text())["facts"] == {"language": "en"}


def test_an_artefact_is_the_very_folder_that_was_built_renamed(tmp_path):
    built = []
    artefact = Store(tmp_path).keep("greeting", {}, lambda folder: built.append(folder.stat().st_ino))
    assert built == [artefact.folder.stat().st_ino]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".locks"] == [artefact.folder.name]


def test_every_file_of_an_artefact_is_on_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda number: calls.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
    )
    monkeypatch.setattr(Path, "rename", lambda path, target: calls.append("rename") or rename(path, target))
    kept = Store(tmp_path).keep("greeting", {}, write_hello)
    partial = f"{kept.folder}.partial"
    first, (last,) = calls[: calls.index("rename")], calls[calls.index("rename") + 1 :]
    assert {f"{partial}/hello.txt", f"{partial}/manifest.json", partial} <= set(first) and last == str(tmp_path)


def test_other_facts_make_another_artefact(tmp_path):
    store = Store(tmp_path)
    keys = {store.keep("greeting", {"language": tongue}, write_hello).key for tongue in ("en", "it")}
    assert len(keys) == 2


def test_a_failure_before_the_first_shard_leaves_nothing(tmp_path):
    def make(folder):
        (folder / "shards").mkdir()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Store(tmp_path).keep("greeting", {}, make)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


DAMAGES = {
    "absent": lambda file: file.unlink(),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "of another kind": lambda file: file.write_bytes(b"<html>404</html>"),
}
READERS = {
    "facts.json": lambda file: json.loads(file.read_text())["name"],
    "table.parquet": pd.read_parquet,
    "x.safetensors": load_file,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_an_artefact_that_cannot_be_read_is_called_damaged_in_one_sentence_with_its_folder_and_notebook(
    tmp_path, name, damage
):
    def make(folder):
        write_json(folder / "facts.json", {"name": "x"})
        pd.DataFrame({"a": [1, 2]}).to_parquet(folder / "table.parquet")
        save_file({"x": torch.zeros(9)}, folder / "x.safetensors")

    kept = Store(tmp_path, "03_oti").keep("oti/cirr/val", {}, make)
    kept.read(lambda folder: READERS[name](folder / name))
    DAMAGES[damage](kept.folder / name)
    with pytest.raises(DamagedArtefact) as problem:
        kept.read(lambda folder: READERS[name](folder / name))
    said = str(problem.value)
    assert said.startswith(f"artefact {kept.folder} is damaged (") and "\n" not in said
    assert said.endswith("); delete that folder and run 03_oti again.")


def test_an_artefact_whose_manifest_is_gone_too_is_still_called_damaged(tmp_path):
    kept = Store(tmp_path, "03_oti").keep("greeting", {}, write_hello)
    for file in kept.folder.iterdir():
        file.unlink()
    with pytest.raises(
        DamagedArtefact, match=r"is damaged \(.*\); delete that folder and run the notebook that made it again"
    ):
        kept.read(lambda folder: (folder / "hello.txt").read_text())


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARMS = {
    "has changed since it was written": flip_a_bit,
    "is gone": lambda file: file.unlink(),
    "has 2 of 5 bytes": lambda file: file.write_text("he"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_named_by_the_file_and_mended_by_the_notebook_that_runs_again(tmp_path, harm, capsys):
    def make(folder):
        calls.append(1)
        write_hello(folder)

    calls, store = [], Store(tmp_path, "03_oti")
    kept = store.keep("greeting", {}, make)
    HARMS[harm](kept.folder / "hello.txt")
    sentence = rf"artefact {kept.folder} is damaged \(hello.txt {harm}\); delete that folder and run 03_oti again\."
    with pytest.raises(DamagedArtefact, match=sentence):
        kept.read(lambda folder: None)
    with pytest.raises(DamagedArtefact, match=sentence):
        Store(tmp_path).keep("greeting", {}, make)
    store.keep("greeting", {}, make)
    assert capsys.readouterr().out == f"artefact {kept.folder} is damaged (hello.txt {harm}); it is made again now.\n"
    assert kept.read(lambda folder: (folder / "hello.txt").read_text()) == "hello" and len(calls) == 2


@pytest.mark.parametrize("place", range(0, 440, 20))
def test_a_flipped_bit_anywhere_in_the_manifest_is_damage(tmp_path, place):
    kept = Store(tmp_path, "03_oti").keep("greeting", {"language": "en"}, write_hello)
    content = bytearray((kept.folder / "manifest.json").read_bytes())
    content[place % len(content)] ^= 4
    (kept.folder / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedArtefact, match=r"is damaged \(manifest.json (has changed|cannot be read)"):
        kept.require_whole()


def test_an_artefact_that_has_not_changed_is_not_read_to_be_checked(tmp_path, monkeypatch):
    kept = Store(tmp_path).keep("greeting", {}, write_hello)
    contents._KNOWN.clear()  # as in another process
    monkeypatch.setattr(contents, "file_sha256", forbidden(contents.file_sha256))
    kept.require_whole()
    os.utime(kept.folder / "hello.txt")
    with pytest.raises(AssertionError, match="file_sha256 was called"):
        kept.require_whole()


def test_only_the_damaged_shards_of_an_artefact_are_computed_again(tmp_path, capsys):
    def make(folder):
        shards.write(folder, 4, 1, lambda first, end: rows.append(first) or {"row": torch.arange(first, end)})

    rows, store = [], Store(tmp_path, "03_oti")
    kept = store.keep("bank", {}, make)
    before = {file.name: file.read_bytes() for file in kept.folder.iterdir()}
    flip_a_bit(sorted(kept.folder.glob("rows-*"))[2])
    store.keep("bank", {}, make)
    assert "(rows-000000002-000000003.safetensors has changed since it was written)" in capsys.readouterr().out
    assert rows == [0, 1, 2, 3, 2] and {file.name: file.read_bytes() for file in kept.folder.iterdir()} == before


def test_a_build_that_lacked_only_its_name_is_not_made_again(tmp_path):
    kept = Store(tmp_path).keep("greeting", {}, write_hello)
    partial = kept.folder.rename(f"{kept.folder}.partial")
    (partial / "shards").mkdir()
    assert Store(tmp_path).keep("greeting", {}, forbidden(write_hello)) == kept
    assert sorted(path.name for path in kept.folder.iterdir()) == ["hello.txt", "manifest.json"]


def test_a_mistake_in_a_reader_is_not_taken_for_damage(tmp_path):
    kept = Store(tmp_path, "03_oti").keep("greeting", {}, write_hello)
    with pytest.raises(AttributeError):
        kept.read(lambda folder: folder.no_such_method())


def test_the_manifest_names_the_notebook_that_made_an_artefact(tmp_path):
    kept = Store(tmp_path, "03_oti").keep("greeting", {"language": "en"}, write_hello)
    manifest = json.loads((kept.folder / "manifest.json").read_text())
    assert (manifest["notebook"], manifest["key"]) == ("03_oti", kept.key)


def test_another_notebook_finds_the_same_artefact(tmp_path):
    stores = [Store(tmp_path, notebook) for notebook in ("03_oti", "04_phi")]
    first, second = (store.keep("greeting", {"language": "en"}, write_hello) for store in stores)
    assert first == second == Artefact(first.folder, first.key)


def test_written_aside_leaves_the_old_file_when_writing_fails(tmp_path):
    file = tmp_path / "facts.json"
    artefacts.write_json(file, [1])
    with pytest.raises(RuntimeError), artefacts.atomic_write(file) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert json.loads(file.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [file]


def slowly(root, rows_a_second):
    def work(first, end):
        time.sleep((end - first) / rows_a_second)
        with (root / "rows.txt").open("a") as calls:
            calls.write(f"{first}\n")
        return {"row": torch.arange(first, end)}

    def make(folder):
        with (root / "makes.txt").open("a") as calls:
            calls.write("made\n")
        rows = shards.run(folder / "shards", 40, 2, work)["row"]
        (folder / "rows.txt").write_text(" ".join(map(str, rows.tolist())))

    return Store(root).keep("rows", {}, make)


def test_a_killed_process_leaves_shards_from_which_the_next_one_goes_on(tmp_path):
    process = FORK.Process(target=slowly, args=(tmp_path, 20))
    process.start()
    while len(list(tmp_path.glob("rows-*.partial/shards/rows-*.safetensors"))) < 3:
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(tmp_path.glob("rows-??????????"))
    saved = [str(int(file.stem.split("-")[1])) for file in tmp_path.glob("rows-*.partial/shards/rows-*.safetensors")]
    kept = slowly(tmp_path, 1000)
    computed = (tmp_path / "rows.txt").read_text().split()
    assert len(saved) >= 3 and all(computed.count(first) == 1 for first in saved)
    assert (kept.folder / "rows.txt").read_text() == " ".join(map(str, range(40)))
    assert sorted(path.name for path in kept.folder.iterdir()) == ["manifest.json", "rows.txt"]


def test_two_processes_that_want_the_same_artefact_make_it_once(tmp_path):
    both = [FORK.Process(target=slowly, args=(tmp_path, 100)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "makes.txt").read_text() == "made\n"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 kB, which a test may enlarge."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk small enough to fill")
    yield disk
    subprocess.run(["umount", disk], check=True)


WRITERS = {
    "tensors": lambda path: save_file({"x": torch.rand(100_000)}, path),
    "table": lambda path: pd.DataFrame({"x": np.random.default_rng(0).random(100_000)}).to_parquet(path),
    "json": lambda path: write_json(path, np.random.default_rng(0).random(30_000).tolist()),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_in_one_sentence_and_what_is_finished_is_gone_on_with(small_disk, kind):
    store, made = Store(small_disk), []

    def make(folder):
        if not (folder / "first").exists():
            made.append("first")
            (folder / "first").write_text("done")
        WRITERS[kind](folder / "second")

    with pytest.raises(
        OSError, match=r"the disk of .*disk is full \([\d,]+ bytes are free\) before numbers was written"
    ):
        store.keep("numbers", {"a": 1}, make)
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    kept = store.keep("numbers", {"a": 1}, make)
    assert made == ["first"] and (kept.folder / "second").stat().st_size > 200_000
