"""`searle shards`: jobs of an array compute the shards, and the notebooks find them."""

import shutil
import subprocess
import sys

import pytest
from projects import NOTEBOOKS, command, environment, make_project, run

from bench.kills import digests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory, world):
    return make_project(tmp_path_factory.mktemp("parts") / "project", world)


def part(project, number, of):
    done = command(project, "shards", "params/quick.yaml", "--part", number, "--of", of)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_parts_of_every_notebook_give_the_bytes_of_a_whole_run(project, quick, tmp_path):
    said = {}
    for notebook in NOTEBOOKS:
        said[notebook] = [part(project, number, 2) for number in (1, 2)]
        assert all(line.startswith(notebook) for line in said[notebook])
        run(project, "--only", notebook)
    assert "part 1 of 2 of" in said["01_phrases"][0] and "is computed" in said["01_phrases"][0]
    assert "the training of φ is not cut into parts; run the study" in said["04_phi"][0]
    assert part(project, 1, 2) == "study quick misses nothing; all its notebooks are up to date.\n"
    assert digests(project) == digests(quick[0])


def test_jobs_that_run_at_once_disturb_neither_each_other_nor_the_study(project, world, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    for folder in (copy / "data" / "artefacts").glob("oti"):
        shutil.rmtree(folder)
    (copy / "reports" / "quick" / "records" / "03_oti.json").unlink()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "searle_lib", "shards", "params/quick.yaml", "--part", str(number), "--of", "3"],
            cwd=copy, env=environment(copy), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    assert all(job.wait() == 0 for job in jobs), [job.stderr.read() for job in jobs]
    run(copy)
    assert digests(copy) == digests(project)


def test_a_part_that_does_not_exist_is_refused(project):
    refused = command(project, "shards", "params/quick.yaml", "--part", 4, "--of", 3)
    assert refused.stderr == "error: --part is 4, but --of is 3; number the parts from 1 to 3.\n"
