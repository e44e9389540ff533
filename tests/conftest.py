"""What several tests need: the known answers, and small models and data sets that are made for the session.

Fixtures import what takes seconds, since the process that only hands out tests to the workers reads this file, too.
"""

import functools
import gc
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from searle_lib.store.artefacts import Store
from searle_lib.store.records import Record, Study

HERE = Path(__file__).parent
COMPACT = HERE / "known_answers"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FULL = Path(os.environ.get("KNOWN_ANSWERS", HERE.parents[1] / "shared" / "known_answers"))


gc.disable()  # until all tests are collected: importing leaves no garbage


def pytest_collection_finish():
    """Let the garbage collector pass over all that was imported, which takes it a third of a second."""
    gc.freeze()
    gc.enable()


def weights(stem, part=None):
    """A state dict from the authors' .pt, or from the compact copy's .npz."""
    import numpy as np
    import torch

    if stem.with_suffix(".npz").exists():
        return {name: torch.from_numpy(value) for name, value in np.load(stem.with_suffix(".npz")).items()}
    saved = torch.load(stem.with_suffix(".pt"), weights_only=True)
    return saved[part] if part else saved


@pytest.fixture(
    scope="session", params=[folder for folder in (FULL, COMPACT) if folder.is_dir()], ids=lambda p: p.parent.name
)
def known_answers(request, tmp_path_factory):
    """Inputs and outputs of the authors' code: the full folder, where it is, and the compact copy beside us."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from searle_lib.backbone.model import load_clip
    from searle_lib.miniworld import models

    folder = request.param
    clip_file = folder / "tiny_clip.pt"
    if not clip_file.exists():
        clip_file = tmp_path_factory.mktemp("known") / "tiny_clip.pt"
        torch.save(models.spread(load_file(folder / "tiny_clip.safetensors")), clip_file)
    return SimpleNamespace(
        inputs=json.loads((folder / "inputs.json").read_text()),
        expected={name: torch.from_numpy(value) for name, value in np.load(folder / "expected.npz").items()},
        images=[folder / f"image_{i}.png" for i in range(10)],
        phi=weights(folder / "phi_3", "Phi"),
        fti=weights(folder / "fti4cir_state_dict"),
        clip_file=clip_file,
        backbone=load_clip(str(clip_file)),
    )


SMALL = {
    "fashioniq_queries": 6,
    "fashioniq_gallery": 20,
    "cirr_val_sets": 4,
    "cirr_test_sets": 2,
    "circo_val_queries": 8,
    "circo_test_queries": 4,
    "circo_gallery": 90,
    "imagenet": 24,
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def world(shared):
    """A data root with a miniature world of a few images, models beside it. Read only: copy what you change."""
    from searle_lib.miniworld import writers

    return writers.write(shared / "world" / "data", sizes=writers.Sizes(**SMALL))


@pytest.fixture(scope="session")
def quick(shared, world):
    """A project whose quick study has run once for all workers, and what the command printed. Read only: copy it."""
    from projects import make_project, process

    folder, printed = shared / "quick", shared / "quick.txt"
    with FileLock(shared / "quick.lock"):
        if not printed.exists():
            ran = process(make_project(folder, world), "run", "params/quick.yaml")
            assert ran.returncode == 0, ran.stderr
            printed.write_text(ran.stdout)
    return folder, printed.read_text()


@pytest.fixture(scope="session")
def tiny(world):
    """The miniature world's CLIP."""
    from searle_lib.backbone.model import load_clip

    return load_clip(str(world / "models" / "tiny-clip.pt"))


def study_of(folder, notebook="", name="tiny", **parameters):
    """A study in a folder, as a notebook sees it that runs with these deciding parameters."""
    store = Store(folder / "artefacts", notebook)
    return Study(name, folder, store, folder / "reports" / name, notebook, parameters)


def leave_record(study, code="code", seconds=1.0, **settings):
    """Leave the record of a study's notebook, as its last cell does, and return it."""
    execution = {"seconds": seconds, "settings": settings}
    digests = dict(sorted(study.digests.items()))
    record = Record(study.notebook, study.parameters, digests, study.made, code, execution)
    study.write(record)
    return record


def forbidden(function):
    """Stands for a function that must not be called; artefacts that were made by its code are found as before."""

    @functools.wraps(function)
    def refuse(*arguments, **named):
        raise AssertionError(f"{function.__name__} was called")

    return refuse


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where published files are looked for, on a machine whose network is a closed port."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path / "home" / ".cache" / "searle"


@pytest.fixture(scope="module")  # while it runs, no event loop of a kernel can run in this thread
def browser():
    """A real Chromium, headless."""
    if not BROWSER:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def window(browser):
    """One window for all tests of a module, since a new one costs half a second."""
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture
def visit(window):
    """Open a file in a window of a width and a colour scheme, afresh each time.

    At the end nothing was requested beside the files, no script complained, and nothing asked the reader.
    """
    addresses, problems = ["about:blank"], []

    def note_request(request):
        address = request.url.partition("#")[0]
        if address not in addresses and not address.startswith("data:"):
            problems.append(address)

    def dismiss(dialog):
        problems.append(dialog.message)
        dialog.dismiss()

    listeners = {
        "request": note_request,
        "console": lambda message: problems.append(message.text),
        "pageerror": lambda error: problems.append(str(error)),
        "dialog": dismiss,
    }
    for event, listener in listeners.items():
        window.on(event, listener)

    def open_file(file, width=1280, scheme="light", state=""):
        window.goto("about:blank")  # another state alone would not load the file again
        window.set_viewport_size({"width": width, "height": 900})
        window.emulate_media(color_scheme=scheme)
        addresses.append(file.as_uri())
        window.goto(f"{file.as_uri()}#{state}" if state else file.as_uri())
        return window

    yield open_file
    for event, listener in listeners.items():
        window.remove_listener(event, listener)
    assert problems == []
