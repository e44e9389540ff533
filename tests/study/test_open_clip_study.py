"""docs/extending.md's CLIP of open_clip, run as printed through all notebooks."""

import re
import shlex

import open_clip
import pandas as pd
import pytest
import torch
from projects import NOTEBOOKS, ROOT, artefacts, command, lines, make_project
from safetensors.torch import load_file
from torch.testing import assert_close

from searle_lib.backbone import embeddings
from searle_lib.data import images
from searle_lib.evaluation import own_query
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## A CLIP of open_clip")[2]
CODE = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[1]
COMMAND = re.search(r"^\.venv/bin/searle (run params/mini.*)$", PAGE, re.M)[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(world, tmp_path_factory):
    """A project whose study ran on the page's CLIP, and what the command printed."""
    project = make_project(tmp_path_factory.mktemp("open-clip") / "project", world)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        torch.manual_seed(0)
        exec(compile(CODE, "docs/extending.md", "exec"), {})
    done = command(project, *shlex.split(COMMAND.replace("params/mini.yaml", "params/quick.yaml")))
    assert done.returncode == 0, done.stderr
    return project, done


def test_every_notebook_runs_on_the_pages_clip(ran):
    project, done = ran
    assert lines(done.stdout) == dict.fromkeys(NOTEBOOKS, "done")
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    results = pd.read_csv(project / "reports/mine/results.csv")
    assert set(results["backbone"]) == {"open_clip:mine"} and {"SEARLE", "FTI4CIR"} <= set(results["method"])


def test_its_embeddings_are_those_of_open_clip(ran):
    project, _ = ran
    model = open_clip.create_model(f"local-dir:{project}/models/mine").eval()
    (folder,) = (path for path in artefacts(project, "embeddings/cirr/val/references"))
    vectors = load_file(folder / "embeddings.safetensors")["vectors"]
    study = Study("mine", project, Store(project / "data/artefacts"), project / "reports/mine")
    retriever = own_query.load_retriever(study, "cpu")
    query = own_query.query_of_study(retriever, "cirr/val", 0)
    pixels = images.to_pixels(
        images.read(query.path), 64, "targetpad", images.Scaling((0.5,) * 3, (0.5,) * 3, "bilinear")
    )
    row = embeddings.load(folder).rows([query.reference])
    assert_close(vectors[row], model.encode_image(pixels[None]).detach(), atol=1e-5, rtol=1e-5)
    assert len(own_query.retrieve(retriever, query.path, "is red", "cirr/val", depth=3)) > 3
