"""Ctrl-C at any moment, or SIGTERM: one sentence, its status, within two seconds, and nothing is left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from projects import environment, make_project

LIMIT = 2.0  # seconds


def interrupt(project, moment, number=signal.SIGINT, group=False):
    """Run the quick study, send it a signal after some seconds; its status, errors, time to end, and children."""
    (project / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "searle_lib", "run", "params/quick.yaml"]
    run = subprocess.Popen(
        command, cwd=project, env=environment(project) | {"TMPDIR": str(project / "tmp")}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(moment)
    children = psutil.Process(run.pid).children(recursive=True)
    began = time.monotonic()
    if group:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    printed = run.communicate()[1]
    return run.returncode, printed, time.monotonic() - began, children


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [*((moment, signal.SIGINT) for moment in (0.2, 0.5, 1.0, 2.0, 5.0, 12.0)), (12.0, signal.SIGTERM)],
)
def test_a_signal_ends_a_run_at_once_in_one_sentence(world, tmp_path_factory, moment, number):
    project = make_project(tmp_path_factory.mktemp("p"), world)
    status, printed, seconds, children = interrupt(project, moment, number, group=moment > 2)
    assert (status, printed) == (128 + number, "stopped; run the same command to continue.\n")
    assert seconds < LIMIT
    assert not psutil.wait_procs(children, LIMIT)[1]
    assert not list((project / "tmp").iterdir())
    log = project / "reports/quick/run.log"
    if log.exists() and log.read_text():  # it is empty until a notebook runs
        assert log.read_text().endswith("s  stopped\n")


def test_a_second_ctrl_c_changes_nothing():
    code = (
        "import os, signal, sys, time\n"
        "from searle_lib.study import interruption\n"
        "interruption.cleanups.append(lambda: (os.kill(os.getpid(), signal.SIGINT), print('cleaned', flush=True)))\n"
        "interruption.install()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr.count("stopped")) == (130, "cleaned\n", 1)


def test_a_program_that_imports_the_command_keeps_its_own_ctrl_c():
    code = "import signal; h = signal.getsignal(2); import searle_lib.__main__; assert signal.getsignal(2) is h"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
