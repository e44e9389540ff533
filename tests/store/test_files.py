"""Writing files: flushed before they get their name, under names of their own, and refused in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from searle_lib.store.artefacts import Store, write_json
from searle_lib.store.files import HOST, Unwritable, atomic_write


def test_a_file_is_on_disk_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: calls.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
    )
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append("rename") or replace(old, new))
    write_json(tmp_path / "facts.json", [1])
    assert calls[0].endswith(".aside") and calls[1:] == ["rename", str(tmp_path)]


def test_two_writers_of_one_file_do_not_collide(tmp_path):
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert first != second and (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_file_of_a_killed_writer_is_swept_and_that_of_a_running_or_foreign_one_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stay = [f"a.{HOST}-{os.getppid()}-00.aside", f"a.elsewhere-{ended.pid}-00.aside", "notes.aside"]
    for name in [*stay, f"a.{HOST}-{ended.pid}-00.aside"]:
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "b", [1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, "b"])


def test_a_file_where_a_folder_is_due_is_named(tmp_path):
    (tmp_path / "artefacts").write_text("")
    sentence = rf"{tmp_path}/artefacts is a file, and oti/cirr needs a folder there; move .* correct artefact_root\."
    with pytest.raises(Unwritable, match=sentence):
        Store(tmp_path / "artefacts").keep("oti/cirr", {}, lambda folder: None)


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a disk with these options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True).returncode:
            pytest.skip("this user may not mount a disk")
        return disk

    yield mount
    subprocess.run(["umount", disk], capture_output=True)


def test_a_folder_that_may_not_be_written_is_named_with_the_parameter(mounted):
    disk = mounted("ro")
    with pytest.raises(
        Unwritable, match=rf"oti/cirr cannot be written to {disk} \(Read-only .*\); .* set artefact_root"
    ):
        Store(disk).keep("oti/cirr", {}, lambda folder: None)
    with pytest.raises(Unwritable, match=rf"a.json cannot be written to {disk} \(Read-only .*artefact_root and report"):
        write_json(disk / "a.json", [])


@pytest.mark.parametrize("folder", ["mini", "deep/mini/records"])
def test_a_report_folder_that_cannot_be_made_is_named_with_the_remedy(mounted, tmp_path, folder):
    (tmp_path / "file").write_text("")
    sentence = rf"{tmp_path}/file is a file, and a.json needs a folder there; move the file away or correct .*report_ro"
    with pytest.raises(Unwritable, match=sentence):
        write_json(tmp_path / "file" / folder / "a.json", [])
    with pytest.raises(Unwritable, match=sentence):
        write_json(tmp_path / "file" / "a.json", [])
    disk = mounted("ro")
    with pytest.raises(
        Unwritable, match=rf"a.json cannot be written to {disk}/{folder} \(Read-only .*set .*report_root"
    ):
        write_json(disk / folder / "a.json", [])
    with pytest.raises(Unwritable, match=r"oti/cirr cannot be written to .* \(Read-only .*set artefact_root"):
        Store(disk / folder).keep("oti/cirr", {}, lambda folder: None)


def test_a_full_disk_under_a_report_is_named_and_the_old_file_stays(mounted):
    disk = mounted("size=16k")
    write_json(disk / "a.json", [1])
    with pytest.raises(Unwritable, match=rf"the disk of {disk} is full \([\d,]+ bytes are free\) before a.json was wr"):
        write_json(disk / "a.json", list(range(9000)))
    assert (disk / "a.json").read_text() == "[\n 1\n]\n" and len(list(disk.iterdir())) == 1


def test_an_error_of_the_work_itself_keeps_its_words(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'gone.jpg'"), atomic_write(tmp_path / "a"):
        Path("gone.jpg").read_bytes()
    assert not list(tmp_path.iterdir())
