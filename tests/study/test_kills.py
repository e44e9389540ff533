"""Two kill -9 at random moments of a study, which then ends with the same bytes; bench/kills.py tries a hundred."""

import os
import random
import shutil

import pytest

from bench import kills

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs kill -9")]


def test_a_study_that_was_killed_twice_ends_with_the_same_bytes(quick, tmp_path_factory):
    project = shutil.copytree(quick[0], tmp_path_factory.mktemp("k") / "p", symlinks=True)
    expected = kills.digests(project)
    for name in ("04_phi", "05_fti4cir", "06_retrieval", "07_results"):
        (project / "reports/quick/records" / f"{name}.json").unlink()
    for name in ("fti4cir-training", "phi-training", "rankings"):
        for folder in (project / "data/artefacts").glob(f"{name}*"):
            shutil.rmtree(folder)
    chance = random.Random()
    for number in (0, 2):  # the whole group, and the parent alone
        problems, _ = kills.kill(project, number, chance, 40.0)
        assert problems == []
    assert kills.compare(project, expected) == []
