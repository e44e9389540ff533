"""The pins agree, and what is optional is optional."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pins import environment
from projects import OPTIONAL

ROOT = Path(__file__).parents[1]


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    here = [Requirement(line) for line in lines]
    return {r.name.lower(): str(r.specifier)[2:] for r in here if not r.marker or r.marker.evaluate()}


def test_conda_has_the_pins_of_the_lock_file():
    assert (ROOT / "environment.yml").read_text() == environment()


def test_every_requirement_of_the_project_is_locked_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locked = lock()
    for text in [*project["dependencies"], *extras["lab"], *extras["test"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[wanted.name.lower()]), text


@pytest.mark.parametrize("command", ["study", "test", "lab", "report", "lint", "world", "help"])
def test_make_help_lists_every_target(command):
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert any(line.startswith(command + " ") for line in shown.splitlines()), shown


@pytest.mark.slow
def test_every_module_imports_without_what_is_optional():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "searle_lib").rglob("*.py"))
        if path.stem not in ("__main__", "ray_cluster", "ray_worker")
    ]
    code = f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None\n" + "\n".join(f"import {m}" for m in modules)
    ran = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
