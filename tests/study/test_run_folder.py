"""The temporary folder of a run: removed at its end, swept after its death, and never shared."""

import signal
import subprocess
import sys
import tempfile

import pytest

from searle_lib.study.run_folder import RunFolder

HOLD = """
import time
from searle_lib.study.run_folder import RunFolder
print(RunFolder().path, flush=True)
time.sleep(99)
"""


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    """The temporary folder of this process and its children, with a path short enough for sockets."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None


def test_a_run_removes_its_folder_and_spares_a_run_that_lives(temporary):
    first, second = RunFolder(), RunFolder()
    (first.path / "1.json").write_text("{}")
    assert first.path != second.path
    second.close()
    assert [path.name for path in temporary.iterdir()] == [first.path.name]
    first.close()
    assert not any(temporary.iterdir())


def test_the_folder_of_a_killed_run_is_swept_by_the_next(temporary):
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    (temporary / "searle-notes").mkdir()  # somebody else's
    RunFolder().close()
    assert len(list(temporary.iterdir())) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    RunFolder().close()
    assert [path.name for path in temporary.iterdir()] == ["searle-notes"]


def test_a_temporary_folder_with_a_long_path_is_refused_in_one_sentence(temporary, monkeypatch):
    deep = temporary / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match="has a path too long for the sockets of a kernel; set TMPDIR to a folder"):
        RunFolder()
