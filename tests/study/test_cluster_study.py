"""A whole study on a real Ray cluster of two nodes."""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from projects import make_project

from bench import cluster as measurements
from bench.kills import digests, problems_of
from bench.nodes import nodes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with nodes(1, 1) as running:
        yield running


@pytest.fixture
def folder():
    """A folder with a short name, since sockets of kernels lie below it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_a_study_on_two_nodes_has_the_bytes_of_one_in_one_process(quick, world, cluster, folder):
    project = make_project(folder / "project", world)
    assert problems_of(measurements.start(project, cluster), 0) == []
    assert digests(project) == digests(quick[0])


def test_ctrl_c_ends_the_run_and_its_workers_within_two_seconds(quick, cluster, folder):
    project = shutil.copytree(quick[0], folder / "project", symlinks=True)
    shutil.rmtree(project / "data" / "artefacts" / "oti")
    run = measurements.start(project, cluster, "-p", "oti_steps=20000", "-p", "oti_batch_size=2")
    while not cluster.named("Actor"):
        assert run.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert problems_of(run, 130) == [] and time.monotonic() - began < 2
    assert measurements.still_there(lambda: cluster.named("Actor"), 2) == []
