"""Kill a quick study at random moments, resume it, and compare every byte with an undisturbed run.

    python bench/kills.py [COUNT]              kill -9, by turns of the whole group, of one kernel, of the parent alone
    python bench/kills.py --interrupt [COUNT]  Ctrl-C, to the parent or to its whole group, from its first imports on
    python bench/kills.py --twice [COUNT]      the study twice at once

All three print a line for each try, then the count. A try fails if bytes differ; if a process, socket, connection file
or half-written file is left; if a traceback is printed; or if the end takes longer than LIMIT.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import SMALL
from projects import ROOT, environment, make_project

from searle_lib.miniworld import writers

LIMIT = 2.0  # seconds from a signal to the end of every process
RUN = [sys.executable, "-m", "searle_lib", "run", "params/quick.yaml"]
RESULTS = ("*.csv", "*.parquet", "*.safetensors", "submissions/*.json", "tables/*")
UNFINISHED = ("*.partial", "*.aside*", "*.new", "*.running.ipynb")
WAYS = ("group", "kernel", "parent")


def main(arguments: list[str] | None = None) -> int:
    """Try as often as the command line says; return 1 if a try failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=10)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--interrupt", dest="attempt", action="store_const", const=interrupt, help="Ctrl-C")
    way.add_argument("--twice", dest="attempt", action="store_const", const=run_twice, help="two runs at once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    attempt, chance, problems = options.attempt or kill, random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        world = writers.write(folder / "world" / "data", sizes=writers.Sizes(**SMALL))
        whole = new_project(folder / "whole", ROOT / "searle_lib", world)
        began = time.monotonic()
        finish(whole)
        seconds, expected, project = time.monotonic() - began, digests(whole), None
        print(f"undisturbed: {seconds:.0f} s, {len(expected)} files", flush=True)
        for number in range(1, options.count + 1):
            if project is None:
                project = new_project(folder / f"try-{number}", whole / "searle_lib", world)
            said, complete = attempt(project, number, chance, seconds)
            if complete or number == options.count:
                said += compare(project, expected)
                shutil.rmtree(project)
                project = None
            problems += bool(said)
            good = "good" if project else "good, and the finished study has the same bytes"
            print(f"{number:4d}  {attempt.__name__:<10}{'; '.join(said) or good}", flush=True)
    print(f"{options.count - problems} of {options.count} tries survived.")
    return int(problems > 0)


def kill(project: Path, number: int, chance: random.Random, seconds: float) -> tuple[list[str], bool]:
    """Run on, and send kill -9 at a random moment; return what went wrong, and whether the study is complete."""
    way, run = WAYS[number % 3], start(project)
    wait(run, chance.uniform(0.1, seconds / 3))  # so that a study takes some kills, one in each of its parts
    pids = [process.pid for process in family(run.pid)]
    kernels = [pid for pid in pids[1:] if is_kernel(pid)]
    if run.poll() is not None:
        return problems_of(run, 0), True
    for pid in {"group": pids, "kernel": kernels and [chance.choice(kernels)], "parent": [run.pid]}[way]:
        with_pid(pid, signal.SIGKILL)
    if way == "kernel":  # the run ends in one sentence
        return problems_of(run, None), run.returncode == 0
    run.communicate()
    return left_over(pids), False


def interrupt(project: Path, number: int, chance: random.Random, seconds: float) -> tuple[list[str], bool]:
    """Run on, and send Ctrl-C at a random moment; return what went wrong, and whether the study is complete."""
    run = start(project)
    wait(run, chance.uniform(0.2, 2.0) if number % 3 == 0 else chance.uniform(0.2, seconds / 3))
    pids = [process.pid for process in family(run.pid)]
    if run.poll() is not None:
        return problems_of(run, 0), True
    began = time.monotonic()
    for pid in pids if number % 2 else [run.pid]:
        with_pid(pid, signal.SIGINT)
    said = problems_of(run, 130)
    took = time.monotonic() - began
    return said + [f"took {took:.1f} s"] * (took > LIMIT) + left_over(pids) + files_left(project), False


def run_twice(project: Path, number: int, chance: random.Random, seconds: float) -> tuple[list[str], bool]:
    """Run the study twice at once, the second a random moment after the first; return what went wrong."""
    first = start(project)
    wait(first, chance.uniform(0.0, 10.0))
    second = start(project)
    return problems_of(first, 0) + problems_of(second, 0) + files_left(project), True


def compare(project: Path, expected: dict[str, str]) -> list[str]:
    """Finish a study, and return what differs from an undisturbed one or is left unfinished."""
    finish(project)
    actual = digests(project)
    differing = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    unfinished = [path for pattern in UNFINISHED for path in project.rglob(pattern)]
    return [f"{name} differs" for name in differing] + [f"{path} is left" for path in unfinished] + files_left(project)


def new_project(folder: Path, library: Path, world: Path) -> Path:
    """Make a project with a library of its own, so that an edit during the hours of this script changes nothing."""
    shutil.copytree(library, folder / "searle_lib", ignore=shutil.ignore_patterns("__pycache__"))
    return make_project(folder, world)


def start(project: Path) -> subprocess.Popen:
    """Start the study's command in a session of its own, with a temporary folder of its own."""
    (project / "tmp").mkdir(exist_ok=True)
    places = environment(project) | {"TMPDIR": str(project / "tmp")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(RUN, cwd=project, env=places, start_new_session=True, **pipes)


def finish(project: Path) -> None:
    """Run the study to its end, which must be good."""
    said = problems_of(start(project), 0)
    if said:
        raise SystemExit(f"the study does not run: {said}")


def problems_of(run: subprocess.Popen, status: int | None) -> list[str]:
    """Wait for a run's end; return how it is not as it must be. Without a status it may succeed or refuse."""
    _, printed = run.communicate()
    problems = [] if run.returncode == status or (status is None and run.returncode in (0, 1)) else [
        f"exit status {run.returncode}"
    ]  # fmt: skip
    sentences = printed.strip().splitlines()
    return problems + [f"printed {printed.strip()[-300:]!r}"] * (len(sentences) > (run.returncode != 0))


def digests(project: Path) -> dict[str, str]:
    """Return a hash of each artefact's file and of each result in the reports, by its path."""
    files = [path for path in (project / "data/artefacts").rglob("*") if path.is_file()]
    files = [path for path in files if not {".locks", ".hashes"} & set(path.parts)]  # these hold times
    files += [path for pattern in RESULTS for path in (project / "reports/quick").rglob(pattern)]
    return {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def left_over(pids: list[int]) -> list[str]:
    """Return which of these processes still live after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while (alive := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return [f"{command_of(pid)[-80:]} lives" for pid in alive]


def files_left(project: Path) -> list[str]:
    """Return what a run that has ended left in its temporary folder."""
    return [f"{path.name} is left" for path in (project / "tmp").iterdir()]


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def command_of(pid: int) -> str:
    """Return the command line of a process, "" if it has ended."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def is_kernel(pid: int) -> bool:
    """Return whether a process is a child of the fork server, whose command line its children keep."""
    try:
        return "multiprocessing.forkserver" in command_of(psutil.Process(pid).ppid())
    except psutil.Error:
        return False


def is_alive(pid: int) -> bool:
    """Return whether a process lives and is not only waiting for its parent to notice its end."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def with_pid(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait(run: subprocess.Popen, seconds: float) -> None:
    """Wait until a run ends, at most some seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(seconds)


if __name__ == "__main__":
    sys.exit(main())
