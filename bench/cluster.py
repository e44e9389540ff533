"""Measure the study on a Ray cluster of two nodes, with a raylet each, on this machine: the figures of docs/scale.md.

python -m bench.cluster study            the mini study, serial and on the cluster: every byte compared
python -m bench.cluster kills [COUNT]    kill -9 by turns of a worker, a node, the notebook's kernel and run, the head
python -m bench.cluster speed            OTI of the mini study on one node and on two
python -m bench.cluster overhead         10,000 ranges that compute nothing, serial and on the cluster
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import torch
import yaml

from bench import kills
from bench.nodes import Nodes, nodes
from searle_lib.miniworld import writers

LIMIT = 900.0  # seconds in which a run must end after a kill
WAYS = ("worker", "node", "driver", "head")
CUTS = {"oti_batch_size": 4, "oti_save_every": 1, "oti_steps": 40, "phrase_batch_size": 2}  # many small ranges
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RANGES, MINI_IMAGES = 10_000, 1440


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line names; return 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("study", "kills", "speed", "overhead"))
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        if options.what == "kills":
            return try_kills(Path(folder), options.count, random.Random(options.seed))
        return {"study": compare_study, "speed": measure_speed, "overhead": measure_overhead}[options.what](
            Path(folder)
        )


def compare_study(folder: Path) -> int:
    """Run the mini study in one process and on the cluster, and compare results.csv and every artefact."""
    digests = []
    for executor in ("serial", "ray"):
        with nodes(*((1, 1) if executor == "ray" else ())) as cluster:
            places = {
                "artefact_root": folder / executor / "data/artefacts",
                "report_root": folder / executor / "reports",
            }
            changes = {"study": "quick", "executor": executor, "ray_address": cluster.address, **places}
            command = [sys.executable, "-m", "searle_lib", "run", "params/mini.yaml"]
            command += [word for name, value in changes.items() for word in ("-p", f"{name}={value}")]
            began = time.monotonic()
            subprocess.run(command, env=os.environ | ONE_THREAD, check=True, stdout=subprocess.DEVNULL)
            print(f"{executor}: {time.monotonic() - began:.0f} s", flush=True)
        digests.append(kills.digests(folder / executor))
    first, second = digests
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    print("\n".join(f"{name} differs" for name in differing) or f"{len(first)} files, every byte the same")
    return int(bool(differing))


def try_kills(folder: Path, count: int, chance: random.Random) -> int:
    """Kill parts of a cluster while a quick study runs on it, run it again until it is complete, and compare."""
    world = writers.write(folder / "world" / "data", sizes=writers.Sizes(**kills.SMALL))
    whole = new_project(folder / "whole", world)
    began = time.monotonic()
    kills.problems_of(start(whole), 0)
    seconds, expected, project, problems = time.monotonic() - began, kills.digests(whole), None, 0
    print(f"undisturbed, in one process: {seconds:.0f} s, {len(expected)} files", flush=True)
    with nodes(1, 1) as cluster, Watch(folder) as watch:
        for number in range(1, count + 1):
            project = project or new_project(folder / f"try-{number}", world)
            way = WAYS[number % len(WAYS)]
            said, complete = kill(project, cluster, way, chance.uniform(1, seconds / 2))
            said += [f"{path.name} was computed twice" for path in watch.take_replaced()]
            if complete or number == count:
                if not complete:
                    said += kills.problems_of(start(project, cluster), 0)
                said += kills.compare(project, expected)
                project = None
            problems += bool(said)
            outcome = "good" if project else "good, and the finished study has the same bytes"
            print(f"{number:4d}  {way:<8}{'; '.join(said) or outcome}", flush=True)
    print(f"{count - problems} of {count} kills survived.")
    return int(problems > 0)


def kill(project: Path, cluster: Nodes, way: str, seconds: float) -> tuple[list[str], bool]:
    """Run on, kill -9 something after some seconds, and mend the cluster.

    Returns:
        What went wrong, and whether the study is complete.
    """
    run = start(project, cluster)
    kills.wait(run, seconds)
    if run.poll() is None:
        if way == "worker":
            workers = cluster.named("Actor")
            for worker in workers[:1]:
                worker.kill()
        elif way == "driver":
            for process in kills.family(run.pid):
                kills.with_pid(process.pid, signal.SIGKILL)
        else:
            cluster.kill({"node": 1, "head": 0}[way])
    kills.wait(run, LIMIT)
    if run.poll() is None:
        run.kill()
        return [f"the run lives {LIMIT:.0f} s after the kill"], False
    said = [] if way == "driver" else kills.problems_of(run, None)
    said += still_there(lambda: cluster.named("Actor"), 10)
    if way == "head":  # a raylet without its head ends by itself
        said += still_there(lambda: cluster.named("raylet"), LIMIT)
        cluster.kill(1)
        cluster.start(0)
    if len(cluster.running) == 1:
        cluster.start(1)
    return said, run.returncode == 0


def measure_speed(folder: Path) -> int:
    """Print how much faster OTI is on two nodes of one core than on one, after their workers have loaded CLIP."""
    from searle_lib.backbone import embeddings
    from searle_lib.backbone.model import read_clip
    from searle_lib.searle import concepts, oti, phrase_bank, phrases
    from searle_lib.store.ray_cluster import Ray
    from searle_lib.study.workspace import load_study

    torch.set_num_threads(1)
    study = load_study("mini")
    clip, name = read_clip(study, "cpu"), "imagenet/test"
    images, nearest = embeddings.read(study, name), concepts.read(study, name)
    bank = phrase_bank.prepare(study.store, clip, phrases.read(study))
    settings = oti.Settings(steps=60)

    def work(first: int, end: int) -> dict[str, torch.Tensor]:
        return oti.optimise(clip, images, nearest, bank, range(first, end), settings)

    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for count in seconds:
            with nodes(*[1] * count) as cluster:
                executor = Ray(cluster.address, 1.0, "cpu")
                executor.connect()
                wait_for_nodes(count)
                with closing(executor):
                    rows = [(first, first + 32) for first in range(0, MINI_IMAGES, 32)]
                    list(executor.map(work, rows[: 2 * count]))  # now every worker is ready, and has loaded CLIP
                    began = time.monotonic()
                    list(executor.map(work, rows))
                    seconds[count].append(time.monotonic() - began)
                leave()
            print(f"{count} nodes: {seconds[count][-1]:.1f} s", flush=True)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    print(f"OTI of {MINI_IMAGES:,} images: {ratio:.2f} times as fast on two nodes as on one")
    return int(ratio < 1.8)


def measure_overhead(folder: Path) -> int:
    """Print what a range costs on the cluster beyond its computation, with and without a shard to save."""
    from searle_lib.store.executors import SERIAL
    from searle_lib.store.ray_cluster import Ray
    from searle_lib.store.shards import Shards

    def work(first: int, end: int) -> dict[str, torch.Tensor]:
        return {"rows": torch.arange(first, end)}

    ranges, torch_threads = [(row, row + 1) for row in range(RANGES)], torch.get_num_threads()
    torch.set_num_threads(1)
    each: dict[str, float] = {}
    with nodes(1, 1) as cluster:
        executor = Ray(cluster.address, 1.0, "cpu")
        executor.connect()
        wait_for_nodes(2)
        with closing(executor):
            list(executor.map(lambda first, end: time.sleep(1), ranges[:8]))
            for name, one in (("serial", SERIAL), ("ray", executor)):
                for kind, save in (("computed", None), ("saved", Shards(folder / name, 1))):
                    if save:
                        save.folder.mkdir()
                    began = time.monotonic()
                    for _ in one.map(work, ranges, save):
                        pass
                    each[f"{name}, {kind}"] = (time.monotonic() - began) / RANGES * 1000
        leave()
    torch.set_num_threads(torch_threads)
    for name, milliseconds in each.items():
        print(f"{name}: {milliseconds:.2f} ms a range")
    overhead = each["ray, computed"] - each["serial, computed"]
    print(f"overhead: {overhead:.2f} ms a range, over {RANGES:,} ranges")
    return int(overhead > 2)


class Watch:
    """Watches a folder for shards that take the place of finished ones."""

    def __init__(self, folder: Path):
        self.folder, self.ended = folder, threading.Event()
        self.files: dict[Path, int] = {}
        self.replaced: list[Path] = []
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.ended.set()
        self.thread.join()

    def take_replaced(self) -> list[Path]:
        """Return the shards that were replaced since the last call."""
        replaced, self.replaced = self.replaced, []
        return replaced

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            for root, _, names in os.walk(self.folder):
                for name in names:
                    if name.startswith("rows-") and name.endswith(".safetensors"):
                        self._look(Path(root) / name)

    def _look(self, path: Path) -> None:
        try:
            written = path.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if self.files.setdefault(path, written) != written:
            self.files[path] = written
            self.replaced.append(path)


def new_project(folder: Path, world: Path) -> Path:
    """Make a project of the quick study whose stages have many small ranges."""
    project = kills.make_project(folder, world)
    file = project / "params" / "quick.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | CUTS))
    return project


def start(project: Path, cluster: Nodes | None = None, *changes: str) -> subprocess.Popen:
    """Start the quick study, on a cluster if there is one."""
    (project / "tmp").mkdir(exist_ok=True)
    places = ("-p", "executor=ray", "-p", f"ray_address={cluster.address}") if cluster else ()
    variables = kills.environment(project, hidden=("comet_ml", "spacy")) | ONE_THREAD | {"TMPDIR": str(project / "tmp")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*kills.RUN, *places, *changes], cwd=project, env=variables, start_new_session=True, **pipes
    )


def still_there(processes: Callable[[], list[psutil.Process]], seconds: float) -> list[str]:
    """Return a line if some processes live on for so many seconds."""
    end = time.monotonic() + seconds
    while processes() and time.monotonic() < end:
        time.sleep(0.2)
    return [f"{len(processes())} processes live on: {processes()[0].cmdline()[:1]}"] if processes() else []


def wait_for_nodes(count: int) -> None:
    """Wait until a cluster has so many nodes."""
    import ray

    while sum(node["Alive"] for node in ray.nodes()) < count:
        time.sleep(0.1)


def leave() -> None:
    """Leave a cluster before it ends."""
    import ray

    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
