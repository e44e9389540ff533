"""Ranges of rows on the workers of a Ray cluster.

A worker is an actor. It gets the function once, loads the CLIP that the function needs, and then takes one range after
another. The notebook's kernel drives: it keeps at most two ranges in flight for each worker, gives the ranges of a dead
worker to the others, and starts workers on nodes that join. A range is done when its shard is in place: a worker saves
it where it sees the notebook's disk, and the kernel saves it for the others.
"""

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study reports to nobody

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from searle_lib.store import bars
from searle_lib.store.executors import Range, Save, Work
from searle_lib.store.files import Unwritable, temporary_name
from searle_lib.store.ray_worker import Computer, Task, pickle, versions

IN_FLIGHT = 2  # ranges of a worker: one that it computes, and one that waits for it
TRIES = 3  # workers that may die over a range
LOOK_EVERY = 1.0  # seconds between two looks at the nodes
SLOW_DISK, LOST_DISK = 60.0, 600.0  # seconds that the writing of a shard may take before a line, and the end
WAIT_FOR_WORKER = 60.0  # seconds without any worker before a stage gives up


@dataclass
class Ray:
    """Computes on a Ray cluster.

    Args:
        address: host:port of the cluster; "" starts one of this machine alone, which ends with this process.
        gpus: how much of a GPU a worker takes.
        device: the study's device. Workers are on GPUs unless it is "cpu", or the cluster has none and it is "auto".
    """

    address: str
    gpus: float
    device: str
    workers: list["_Worker"] = field(default_factory=list)

    def map(self, work: Work, ranges: Sequence[Range], save: Save | None = None) -> Iterator[tuple[Range, Any]]:
        if not ranges:
            return
        self.connect()
        probe = save and temporary_name(save.folder / "is-shared")
        if probe:
            probe.touch()
        try:
            yield from _Map(self, pickle(Task(work, save, probe)), ranges, save).run()
        except BaseException:
            self.close()  # else the workers would compute on
            raise  # the probe stays, since its disk may be what failed; the next run removes it
        if probe:
            probe.unlink(missing_ok=True)

    def place(self, folder: Path) -> Path:
        return folder

    def require_whole(self, what: str) -> None:
        """Accept everything."""

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers.clear()

    def require_head(self) -> None:
        """Raise ConnectionError if the head of the cluster does not answer; Ray itself would wait for a minute."""
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as problem:
            raise ConnectionError(
                f"the Ray cluster at {host}:{port} does not answer ({problem}); start it again and run the study "
                "again: finished shards are kept."
            ) from None

    def connect(self) -> None:
        if ray.is_initialized():
            return
        ray._private.worker.print_to_stdstream = lambda *line, **more: None  # raylets' own logs are not for a notebook
        own = {"num_cpus": os.cpu_count(), "include_dashboard": False}
        try:
            ray.init(
                address=self.address or "local",
                log_to_driver=False,
                logging_level="error",
                **({} if self.address else own),
            )
        except (RuntimeError, ValueError, OSError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise ConnectionError(
                f"ray_address {self.address or 'of this machine'} cannot be joined ({reason}); start a cluster there "
                "with `ray start --head`, or correct ray_address."
            ) from problem


@dataclass(eq=False)
class _Worker:
    """A worker as the driver sees it.

    Args:
        actor: its actor.
        node: the id of its node.
        greeting: what it says when it is ready.
        place: the name of its node, "" before it is ready.
        flights: the ranges that it has been asked for, in order.
        asked: when it began with the first of these, as far as is known.
        writing: the answer to how long it has been writing, if that was asked.
    """

    actor: Any
    node: str
    greeting: ray.ObjectRef
    place: str = ""
    flights: dict[ray.ObjectRef, Range] = field(default_factory=dict)
    asked: float = 0.0
    writing: ray.ObjectRef | None = None


class _Map:
    """The ranges of one stage on a cluster."""

    def __init__(self, cluster: Ray, task: bytes, ranges: Sequence[Range], save: Save | None):
        self.cluster, self.save = cluster, save
        self.task = ray.put(task)
        self.todo, self.tries = deque(ranges), Counter()
        self.said: set[str] = set()
        self.looked, self.alive_at = 0.0, time.monotonic()

    def run(self) -> Iterator[tuple[Range, Any]]:
        """Yield ranges and results until all are done."""
        while self.todo or any(worker.flights for worker in self.cluster.workers):
            if time.monotonic() > self.looked + LOOK_EVERY:
                self._look()
            self._submit()
            for worker, reference in self._ready():
                if worker not in self.cluster.workers:  # it died meanwhile
                    continue
                if reference is worker.greeting and not worker.place:
                    self._welcome(worker)
                elif reference in worker.flights:
                    yield from self._land(worker, reference)

    def _look(self) -> None:
        """Start workers where there is room, and find out whether the head, the workers and their disk answer."""
        self.cluster.require_head()
        self._start_workers()
        self.looked = time.monotonic()
        alive = [worker for worker in self.cluster.workers if worker.place]
        bars.count_workers(len(alive))
        if alive:
            self.alive_at = self.looked
        elif self.looked > self.alive_at + WAIT_FOR_WORKER:
            raise ConnectionError(
                f"no worker of the Ray cluster has started for {WAIT_FOR_WORKER:.0f} s; look at `ray status`, free its "
                "nodes, and run the study again: finished shards are kept."
            )
        for worker in alive:
            self._require_writing(worker)

    def _start_workers(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        kind, need = self._need(nodes)
        places = [(node, int(node["Resources"].get(kind, 0) / need)) for node in nodes]
        running = Counter(worker.node for worker in self.cluster.workers)
        wanted = len(self.todo) - len(self.cluster.workers)
        for node, slots in places:
            for _ in range(min(slots - running[node["NodeID"]], wanted)):
                threads = torch.get_num_threads() if kind == "CPU" else int(node["Resources"].get("CPU", 1) / slots)
                options = {"num_cpus": need, "num_gpus": 0} if kind == "CPU" else {"num_cpus": 0, "num_gpus": need}
                strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                actor = Computer.options(**options, scheduling_strategy=strategy).remote(max(1, threads))
                self.cluster.workers.append(_Worker(actor, node["NodeID"], actor.greet.remote()))
                wanted -= 1

    def _need(self, nodes: list[dict]) -> tuple[str, float]:
        """Return the resource that a worker takes, and how much of it. Raises ValueError if no node has as much."""
        has_gpu = any(node["Resources"].get("GPU") for node in nodes)
        on_gpu = self.cluster.device.startswith("cuda") or (self.cluster.device == "auto" and has_gpu)
        kind, need = ("GPU", self.cluster.gpus) if on_gpu else ("CPU", torch.get_num_threads())
        most = max((node["Resources"].get(kind, 0) for node in nodes), default=0)
        if most < need:
            remedy = "set device to cpu, or start the nodes with --num-gpus"
            if kind == "CPU":
                remedy = f"set OMP_NUM_THREADS={int(most) or 1} for the study, or start the nodes with more --num-cpus"
            raise ValueError(
                f"a worker takes {need:g} {kind}s, and the largest node of the cluster has {most:g}; {remedy}."
            )
        return kind, need

    def _submit(self) -> None:
        """Give each worker a range to compute, and one to wait for it while there are enough for all."""
        ready = [worker for worker in self.cluster.workers if worker.place]
        for most in range(1, IN_FLIGHT + 1):
            for worker in ready:
                enough = most == 1 or len(self.todo) >= len(ready)
                if self.todo and enough and len(worker.flights) < most:
                    first, end = self.todo.popleft()
                    worker.asked = worker.asked if worker.flights else time.monotonic()
                    worker.flights[worker.actor.compute.remote([self.task], first, end)] = (first, end)

    def _ready(self) -> list[tuple[_Worker, ray.ObjectRef]]:
        owners = {reference: worker for worker in self.cluster.workers for reference in worker.flights}
        owners |= {worker.greeting: worker for worker in self.cluster.workers if not worker.place}
        references = list(owners)
        if not references:
            time.sleep(LOOK_EVERY / 5)
            return []
        ready, _ = ray.wait(references, num_returns=1, timeout=LOOK_EVERY)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [(owners[reference], reference) for reference in ready]

    def _welcome(self, worker: _Worker) -> None:
        """Take a worker that is ready. Raises ValueError if it runs other code than the notebook."""
        try:
            facts = ray.get(worker.greeting)
        except RayError as problem:
            if "No module named" in str(problem):
                raise ValueError(
                    "a node of the Ray cluster has no searle_lib of this version; install the notebook's version there."
                ) from problem
            self._lose(worker, problem)
            return
        worker.place = facts.pop("place")
        for name, here in versions().items():
            if facts[name] != here:
                raise ValueError(
                    f"node {worker.place} has {name} {facts[name]}, and this notebook {here}; install the same there, "
                    "and run the study again."
                )

    def _land(self, worker: _Worker, reference: ray.ObjectRef) -> Iterator[tuple[Range, Any]]:
        """Yield a range that a worker has computed. Raises what the function refused on the worker."""
        try:
            computed = ray.get(reference)
        except RayTaskError:
            raise
        except RayError as problem:
            self._lose(worker, problem)
            return
        first, end = worker.flights.pop(reference)
        worker.asked = time.monotonic()
        for note in set(computed.notes) - self.said:
            bars.say(f"node {worker.place}: {note}")
            self.said.add(note)
        if computed.refusal:
            kind, sentence = computed.refusal
            raise kind(f"node {worker.place}: {sentence}")
        if self.save and not computed.is_saved:
            self.save(computed.result, first, end)
        yield (first, end), None if self.save else computed.result

    def _lose(self, worker: _Worker, problem: RayError) -> None:
        """Give the ranges of a dead worker to the others. Raises RuntimeError if the first has ended TRIES of them."""
        self.cluster.workers.remove(worker)
        ray.kill(worker.actor)
        ranges = list(worker.flights.values())
        self.todo.extendleft(reversed(ranges))
        reason = " ".join(str(problem).split())
        alive = sum(bool(other.place) for other in self.cluster.workers)
        place = worker.place or worker.node[:8]
        bars.say(f"a worker on node {place} died; {alive} are alive and take its {len(ranges)} ranges.")
        for first, end in ranges[:1]:  # the worker had begun no other
            self.tries[first, end] += 1
            if self.tries[first, end] == TRIES:
                raise RuntimeError(
                    f"rows {first:,} to {end - 1:,} ended {TRIES} workers (the last one: {reason[:200]}); lower the "
                    "batch sizes or free memory, and run the study again: finished shards are kept."
                )

    def _require_writing(self, worker: _Worker) -> None:
        """Say that a worker has been writing a shard for long; raise Unwritable if that is too long."""
        if worker.writing is not None and ray.wait([worker.writing], timeout=0)[0]:
            try:
                seconds = ray.get(worker.writing)
            except RayError:  # the worker died, and its ranges tell
                seconds = 0
            worker.writing = None
            if seconds > SLOW_DISK and worker.place not in self.said:
                self.said.add(worker.place)
                bars.say(f"node {worker.place} has been writing a shard for {seconds:.0f} s: does its disk answer?")
            if seconds > LOST_DISK:
                raise Unwritable(
                    f"node {worker.place} has been writing a shard to {self.save.folder} for {seconds:.0f} s; mend its "
                    "disk, and run the study again: finished shards are kept."
                )
        elif worker.writing is None and worker.flights and time.monotonic() > worker.asked + SLOW_DISK:
            worker.writing = worker.actor.writing.remote()
