"""Projects of their own for tests: the notebooks beside a parameter file, on a small drawn world."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import OPTIONAL

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
QUICK = {
    "study": "quick",
    "world": "real",
    "phrases_per_concept": 4,
    "oti_steps": 4,
    "phi_epochs": 2,
    "phi_batch_size": 8,
    "phi_save_every": 1,
    "fti_epochs": 2,
    "fti_batch_size": 8,
    "fti_save_every": 1,
    "bootstrap_resamples": 50,
    "sheet_queries": 1,
}


def make_project(folder, world):
    """A project with params/quick.yaml: the mini study, cut to seconds, on a data root that is there."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "params").mkdir(parents=True)
    places = {
        "data_root": str(world),
        "clip_model": str(world / "models" / "tiny-clip.pt"),
        "language_model": str(world / "models" / "tiny-gpt-neo"),
        "vocabulary": str(world / "oidv7-class-descriptions.csv"),
        "captions_file": str(world / "ImageNet1K" / "blip_pairs.json"),
    }
    mini = yaml.safe_load((ROOT / "params" / "mini.yaml").read_text())
    (folder / "params" / "quick.yaml").write_text(yaml.safe_dump(mini | QUICK | places))
    return folder


def environment(project):
    """The environment of a command in a project: every optional package is hidden from it and from its kernels."""
    (project / "hidden").mkdir(exist_ok=True)
    hide = f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None\n"
    (project / "hidden" / "sitecustomize.py").write_text(hide)
    return os.environ | {"COLUMNS": "200", "PYTHONPATH": str(project / "hidden")}


def command(project, *arguments):
    """Run `python -m searle_lib` in a project folder."""
    ran = [sys.executable, "-m", "searle_lib", *map(str, arguments)]
    return subprocess.run(ran, cwd=project, env=environment(project), capture_output=True, text=True)


def run(project, *arguments):
    """Run the quick study, which must end well; what each notebook's line says, by notebook."""
    done = command(project, "run", "params/quick.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    return lines(done.stdout)


def lines(printed):
    """What a run printed of each notebook: done, unchanged, or why it was left out."""
    return {name: said for name, said in re.findall(r"^(\d\d_\w+) +(?:[\d.]+ s  )?(.+)$", printed, re.M)}


def papermill(project, notebook, *arguments):
    """Run one notebook by plain papermill, as a person would."""
    out = project / f"{notebook}.by-hand.ipynb"
    ran = [sys.executable, "-m", "papermill", f"notebooks/{notebook}.ipynb", str(out), "-k", "python3", *arguments]
    return subprocess.run(ran, cwd=project, env=environment(project), capture_output=True, text=True)


def artefacts(project, kind):
    """The folders of one kind of artefact, with when they were last changed."""
    root = project / "data" / "artefacts"
    return {path.parent: path.stat().st_mtime_ns for path in root.rglob("manifest.json") if path.is_relative_to(root)
            and str(path.relative_to(root)).startswith(kind)}  # fmt: skip
