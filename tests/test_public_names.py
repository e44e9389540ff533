"""What `import searle_lib` offers, and the command that an installation brings."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import leave_record, study_of

import searle_lib


def test_importing_the_library_imports_no_torch():
    script = "import searle_lib, sys; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


@pytest.mark.parametrize("name", [name for name in searle_lib.__all__ if name != "__version__"])
def test_every_public_name_is_found_with_a_docstring(name):
    assert getattr(searle_lib, name).__doc__ and name in dir(searle_lib)


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(AttributeError, match="searle_lib has no load_sarle; it has load_searle, "):
        _ = searle_lib.load_sarle


def test_a_study_is_loaded_by_its_name_from_any_folder_of_the_project(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notebooks" / "01_phrases.ipynb").touch()
    leave_record(study_of(tmp_path, "01_phrases"), artefact_root="elsewhere")
    monkeypatch.chdir(tmp_path / "notebooks")
    study = searle_lib.load_study("tiny")
    assert (study.root, study.store.root) == (tmp_path, tmp_path / "elsewhere")
    assert study.reports == tmp_path / "reports" / "tiny"
    with pytest.raises(FileNotFoundError, match=r"reports holds no records of a study tyni; choose one of tiny\."):
        searle_lib.load_study("tyni")


def test_the_installed_command_works_outside_the_project(tmp_path):
    command = Path(sys.executable).with_name("searle")
    shown = subprocess.run([command, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "run a study's notebooks" in shown.stdout
    stopped = subprocess.run([command, "run", "params/mini.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert stopped.returncode == 1 and "holds no notebooks; run this from the project's folder" in stopped.stderr
