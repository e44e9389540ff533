"""Hashes of files: computed once for each state of a file."""

import os

import pytest

from searle_lib.store import contents
from searle_lib.store.files import file_sha256


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are read to be hashed."""
    names = []

    def count(path):
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(contents, "file_sha256", count)
    return names


def as_another_process():
    contents._KNOWN.clear()


def test_a_file_is_read_once_also_by_another_process(tmp_path, hashed):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
    first = contents.hash_files(paths, tmp_path / "cache")
    as_another_process()
    assert contents.hash_files(paths[::-1], tmp_path / "cache") == first[::-1] == [file_sha256(p) for p in paths[::-1]]
    assert sorted(hashed) == ["a", "b"]


def test_files_that_change_places_get_other_hashes_though_size_and_mtime_stay(tmp_path, hashed):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
        os.utime(path, ns=(0, 0))
    first = contents.hash_files(paths, tmp_path / "cache")
    paths[0].rename(tmp_path / "c")
    paths[1].rename(paths[0])
    (tmp_path / "c").rename(paths[1])
    assert contents.hash_files(paths, tmp_path / "cache") == first[::-1]


@pytest.mark.parametrize("content", ["", "{}", '{"files": 7}', '{"files": {"a": 7}}', '{"files": {"a": []}}'])
def test_a_damaged_cache_costs_time_alone(tmp_path, content):
    (tmp_path / "a").write_text("a")
    first = contents.hash_files([tmp_path / "a"], tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(content)
    as_another_process()
    assert contents.hash_files([tmp_path / "a"], tmp_path / "cache") == first


def test_without_a_folder_to_write_this_process_remembers(tmp_path, hashed):
    for name in ("a", "cache"):
        (tmp_path / name).write_text("a")
    first, second = (contents.hash_files([tmp_path / "a"], tmp_path / "cache") for _ in range(2))
    assert first == second and hashed == ["a"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no plain file") as problem:
        contents.hash_files([tmp_path / "pipe"], tmp_path / "cache")
    assert problem.value.filename == str(tmp_path / "pipe")
