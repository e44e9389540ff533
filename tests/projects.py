"""Projects of their own for tests: the notebooks beside a parameter file, on a small drawn world."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import yaml

from searle_lib.__main__ import main

OPTIONAL = (
    *("comet_ml", "faiss", "ipywidgets", "ir_measures", "jupyterlab"),
    *("open_clip", "playwright", "ray", "repro_eval", "spacy", "timm"),
)
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

PICKLE = """
import sys, types, torch
from torch import nn
from searle_lib.fti4cir.network import Fti4Cir
torch.manual_seed(0)
module = types.ModuleType("i2t_model")
class IMG2TEXT(Fti4Cir):
    pass
IMG2TEXT.__module__ = "i2t_model"
module.IMG2TEXT = IMG2TEXT
sys.modules["i2t_model"] = module
import searle_lib.searle.distillation, searle_lib.fti4cir.network
renamed = [(searle_lib.searle.distillation, "Phi", "i2t_model")]
renamed += [(searle_lib.fti4cir.network, n, "MHTransformer") for n in ("_Transformer", "_Layer", "_Attention", "_Mlp")]
for owner, name, home in renamed:
    kind = getattr(owner, name)
    kind.__module__ = home
    sys.modules.setdefault(home, types.ModuleType(home))
    setattr(sys.modules[home], name, kind)
model = IMG2TEXT(int(sys.argv[2]), int(sys.argv[3]))
model.num_k, model.epsilon, model.temperature = 24, 0.05, 0.2
torch.save(model, sys.argv[1])
torch.save(model.state_dict(), sys.argv[4])
"""


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


def environment(project, hidden=OPTIONAL):
    """The environment of a command in a project: some packages are hidden from it and from its kernels."""
    (project / "hidden").mkdir(exist_ok=True)
    hide = f"import sys\nfor name in {hidden}: sys.modules[name] = None\n"
    (project / "hidden" / "sitecustomize.py").write_text(hide)
    return os.environ | {"COLUMNS": "200", "PYTHONPATH": str(project / "hidden")}


def process(project, *arguments):
    """Run `python -m searle_lib` in a project folder, without the optional packages."""
    ran = [sys.executable, "-m", "searle_lib", *map(str, arguments)]
    return subprocess.run(ran, cwd=project, env=environment(project), capture_output=True, text=True)


def command(project, *arguments):
    """Run a command in this process, since another would import for seconds; it forks kernels all the same."""
    printed, errors = io.StringIO(), io.StringIO()
    variables = mock.patch.dict(os.environ, COLUMNS="200")  # a run sets some of its own
    with (
        contextlib.chdir(project),
        variables,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
    ):
        status = main([*map(str, arguments)])
    return SimpleNamespace(returncode=status, stdout=printed.getvalue(), stderr=errors.getvalue())


def run(project, *arguments):
    """Run the quick study, which must end well; what each notebook's line says, by notebook."""
    done = command(project, "run", "params/quick.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    return lines(done.stdout)


def lines(printed):
    """What a run printed of each notebook: done, unchanged, or why it was skipped."""
    return {name: said for name, said in re.findall(r"^(\d\d_\w+) +(?:[\d.]+ s  )?(.+)$", printed, re.M)}


def papermill(project, notebook, *arguments):
    """Run one notebook by plain papermill, as a person would."""
    out = project / f"{notebook}.by-hand.ipynb"
    ran = [sys.executable, "-m", "papermill", f"notebooks/{notebook}.ipynb", str(out), "-k", "python3", *arguments]
    return subprocess.run(ran, cwd=project, env=environment(project), capture_output=True, text=True)


def artefacts(project, kind):
    """The folders of one kind of artefact, with when they were last changed."""
    root, times = project / "data" / "artefacts", {}
    for folder, _, files in os.walk(root):  # a run may rename folders meanwhile
        path = Path(folder)
        if "manifest.json" in files and path.suffix != ".partial" and str(path.relative_to(root)).startswith(kind):
            times[path] = (path / "manifest.json").stat().st_mtime_ns
    return times


def pickle_network(path, dimension, patch_width):
    """A random FTI4CIR network as the authors release theirs, a pickled module of their classes; its tensors.

    Saved in another process, under the authors' module names, which this one does not have.
    """
    tensors = path.with_suffix(".tensors")
    sizes = [str(dimension), str(patch_width)]
    subprocess.run([sys.executable, "-c", PICKLE, str(path), *sizes, str(tensors)], check=True)
    return torch.load(tensors, weights_only=True)
