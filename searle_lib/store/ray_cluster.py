"""Ranges of rows on the workers of a Ray cluster.

A worker is an actor. It gets the function of a stage once, loads the CLIP that the function needs, and then takes one
range after another. The notebook's kernel drives: it keeps at most two ranges in flight for each worker, gives the
ranges of a dead worker to the others, and starts workers on nodes that join. A range is done when its shard is in
place: a worker saves it where it sees the kernel's disk, and the kernel saves it for the others.
"""

import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study reports to nobody
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # tries to join; 20 take many minutes if the head has died

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from searle_lib.store import bars
from searle_lib.store.executors import Executor, Range, Save, Work
from searle_lib.store.files import Unwritable, temporary_name
from searle_lib.store.ray_worker import Actor, Task, pickle, versions

IN_FLIGHT = 2  # ranges of a worker: one that it computes, and one that waits for it
TRIES = 3  # workers that may die over a range, or on a node before they are ready
LOOK_EVERY = 1.0  # seconds between two looks at the nodes
SLOW_DISK, LOST_DISK = 60.0, 600.0  # seconds that the saving of a shard may take before a line, and the end
WAIT_FOR_WORKER = 300.0  # seconds without any worker before a stage gives up
IDLE = 60.0  # seconds after which workers without work end, and free their GPUs


@dataclass
class Ray(Executor):
    """Computes on a Ray cluster.

    Args:
        address: host:port of the cluster; "" starts one of this machine alone, which ends with this process.
        gpus: how much of a GPU a worker takes.
        device: the study's device. Workers compute on the same kind of device as the notebook.
        workers: those that were started and have not died.
        failures: how many workers in succession died on each node before they were ready.
        sentences: what workers have said so far; each is said once.
        idle: ends the workers if no stage needs them.
    """

    address: str
    gpus: float
    device: str
    workers: list["_Worker"] = field(default_factory=list)
    failures: Counter = field(default_factory=Counter)
    sentences: set[str] = field(default_factory=set)
    idle: threading.Timer | None = None

    def map(self, work: Work, ranges: Sequence[Range], save: Save | None = None) -> Iterator[tuple[Range, Any]]:
        if not ranges:
            return
        self.connect()
        if self.idle:
            self.idle.cancel()
        probe = save and temporary_name(save.folder / "is-shared")
        if probe:
            probe.touch()
        try:
            yield from _Stage(self, pickle(Task(work, save, probe)), ranges, save).run()
        except BaseException:
            self.end_workers()  # else they would compute on
            raise  # the probe stays, since its disk may be what failed; the next run removes it
        if probe:
            probe.unlink(missing_ok=True)
        self.idle = threading.Timer(IDLE, self.end_workers)
        self.idle.daemon = True
        self.idle.start()

    def close(self) -> None:
        self.end_workers()
        ray.shutdown()

    def end_workers(self) -> None:
        """Kill the workers; the next stage starts others."""
        if self.idle:
            self.idle.cancel()
        for worker in self.workers if ray.is_initialized() else ():  # without a connection Ray would wait for one
            ray.kill(worker.actor)
        self.workers.clear()

    def require_head(self) -> None:
        """Raise ConnectionError if the head of the cluster does not answer; Ray itself would wait for minutes."""
        address = ray.get_runtime_context().gcs_address if ray.is_initialized() else self.address
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as problem:
            raise ConnectionError(
                f"no Ray cluster answers at ray_address {address} ({problem}); start it with `ray start --head`, or "
                "correct ray_address, and run the study again: finished shards are kept."
            ) from None

    @property
    def share(self) -> tuple[str, float]:
        """The resource that a worker takes, CPU or GPU, and how much of it."""
        device = self.device.partition(":")[0]
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            return "GPU", self.gpus
        return "CPU", torch.get_num_threads()

    def require_room(self, nodes: Sequence[dict]) -> None:
        """Raise ValueError if no node has room for a worker."""
        kind, need = self.share
        most = max((node["Resources"].get(kind, 0) for node in nodes), default=0)
        if most < need:
            remedy = "set device to cpu, or start the nodes with --num-gpus"
            if kind == "CPU":
                remedy = f"set OMP_NUM_THREADS={int(most) or 1} for the study, or start the nodes with more --num-cpus"
            raise ValueError(
                f"a worker takes {need:g} {kind}s, and the largest node of the cluster has {most:g}; {remedy}."
            )

    def describe(self) -> str:
        """Join the cluster, and say how many workers it has room for. Raises ConnectionError and ValueError."""
        self.connect()
        nodes, (kind, need) = [node for node in ray.nodes() if node["Alive"]], self.share
        self.require_room(nodes)
        workers = sum(int(node["Resources"].get(kind, 0) / need) for node in nodes)
        return f"{len(nodes)} nodes, with room for {workers} workers of {need:g} {kind}s each"

    def connect(self) -> None:
        """Join the cluster, unless this process has. Raises ConnectionError."""
        if ray.is_initialized():
            return
        ray._private.worker.print_to_stdstream = lambda *line, **more: None  # raylets' own logs are not for a notebook
        if self.address:
            self.require_head()
        alone = {} if self.address else {"num_cpus": os.cpu_count(), "include_dashboard": False}
        try:
            ray.init(address=self.address or "local", log_to_driver=False, logging_level="error", **alone)
        except (RuntimeError, ValueError, OSError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise ConnectionError(
                f"this process cannot join the Ray cluster at {self.address or 'this machine'} ({reason}); start a "
                "node of it on this machine with `ray start`, and run the study again."
            ) from problem


@dataclass(eq=False)
class _Worker:
    """A worker as the driver sees it.

    Args:
        actor: its actor.
        node: the id of its node.
        facts: the answer that says that it is ready.
        place: the address of its node, "" before it is ready.
        in_flight: the ranges that it has got, in order; it computes the first.
        busy_since: when it began to compute that range.
        saving: the answer to how long it has been saving a shard, if that was asked.
    """

    actor: Any
    node: str
    facts: ray.ObjectRef
    place: str = ""
    in_flight: dict[ray.ObjectRef, Range] = field(default_factory=dict)
    busy_since: float = 0.0
    saving: ray.ObjectRef | None = None


class _Stage:
    """The ranges of one stage on a cluster."""

    def __init__(self, cluster: Ray, task: bytes, ranges: Sequence[Range], save: Save | None):
        self.cluster, self.save = cluster, save
        self.task = ray.put(task)
        self.pending, self.tries = deque(ranges), Counter()
        self.looked, self.alive_at = 0.0, time.monotonic()
        for worker in cluster.workers:  # one of them may have died since the last stage
            worker.place, worker.facts = "", worker.actor.facts.remote()

    def run(self) -> Iterator[tuple[Range, Any]]:
        """Yield ranges and results until all are done."""
        while self.pending or any(worker.in_flight for worker in self.cluster.workers):
            if time.monotonic() > self.looked + LOOK_EVERY:
                self._look()
            self._submit()
            for worker, reference in self._answers():
                if worker not in self.cluster.workers:  # it died meanwhile
                    continue
                if reference in worker.in_flight:
                    yield from self._finish(worker, reference)
                else:
                    self._admit(worker)

    @property
    def ready(self) -> list[_Worker]:
        return [worker for worker in self.cluster.workers if worker.place]

    def _look(self) -> None:
        """Start workers where there is room, and find out whether the head, the workers and their disk answer."""
        self.cluster.require_head()
        self._start_workers()
        self.looked = time.monotonic()
        bars.count_workers(len(self.ready))
        if self.ready:
            self.alive_at = self.looked
        elif self.looked > self.alive_at + WAIT_FOR_WORKER:
            raise ConnectionError(
                f"no worker of the Ray cluster has started for {WAIT_FOR_WORKER:.0f} s; look at `ray status`, free its "
                "nodes, and run the study again: finished shards are kept."
            )
        for worker in self.ready:
            self._require_saving(worker)

    def _start_workers(self) -> None:
        """Start workers on all nodes that have room, at most one a range."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not self.looked:
            self.cluster.require_room(nodes)
        kind, need = self.cluster.share
        running = Counter(worker.node for worker in self.cluster.workers)
        here = ray.get_runtime_context().get_node_id()
        wanted = len(self.pending) - len(self.cluster.workers)
        for node in nodes:
            name, resources = node["NodeID"], node["Resources"]
            slots = int(resources.get(kind, 0) / need) if self.cluster.failures[name] < TRIES else 0
            for _ in range(min(slots - running[name], wanted)):
                threads = torch.get_num_threads() if kind == "CPU" else int(resources.get("CPU", 1) / slots)
                share = {"num_cpus": need} if kind == "CPU" else {"num_cpus": 0, "num_gpus": need}
                strategy = NodeAffinitySchedulingStrategy(name, soft=False)
                actor = Actor.options(**share, scheduling_strategy=strategy).remote(max(1, threads), here)
                self.cluster.workers.append(_Worker(actor, name, actor.facts.remote()))
                wanted -= 1

    def _submit(self) -> None:
        """Give each worker a range to compute, and one to wait for it while there are enough for all."""
        ready = self.ready
        for most in range(1, IN_FLIGHT + 1):
            for worker in ready:
                enough = most == 1 or len(self.pending) >= len(ready)
                if self.pending and enough and len(worker.in_flight) < most:
                    first, end = self.pending.popleft()
                    if not worker.in_flight:
                        worker.busy_since = time.monotonic()
                    worker.in_flight[worker.actor.compute.remote([self.task], first, end)] = (first, end)

    def _answers(self) -> list[tuple[_Worker, ray.ObjectRef]]:
        """Wait for answers of workers, at most until the next look; return each with its worker."""
        owners = {reference: worker for worker in self.cluster.workers for reference in worker.in_flight}
        owners |= {worker.facts: worker for worker in self.cluster.workers if not worker.place}
        references = list(owners)
        if not references:
            time.sleep(LOOK_EVERY / 5)
            return []
        answers, _ = ray.wait(references, num_returns=1, timeout=LOOK_EVERY)
        if answers:
            answers, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [(owners[reference], reference) for reference in answers]

    def _admit(self, worker: _Worker) -> None:
        """Take a worker that is ready. Raises ValueError if its node has another version of this library."""
        try:
            facts = ray.get(worker.facts)
        except RayError as problem:
            if "No module named" in str(problem) or "PackageNotFoundError" in str(problem):
                raise ValueError(
                    "a node of the Ray cluster lacks searle_lib or what it needs; install the notebook's version "
                    "there, and run the study again."
                ) from problem
            self.cluster.failures[worker.node] += 1
            self._lose(worker, problem)
            return
        worker.place = facts.pop("place")
        self.cluster.failures.pop(worker.node, None)
        bars.count_workers(len(self.ready))
        for name, here in versions().items():
            if facts[name] != here:
                raise ValueError(
                    f"node {worker.place} has {name} {facts[name]}, and this notebook {here}; install the same there, "
                    "and run the study again."
                )

    def _finish(self, worker: _Worker, reference: ray.ObjectRef) -> Iterator[tuple[Range, Any]]:
        """Yield a range that a worker has computed. Raises what the function refused on the worker."""
        try:
            computed = ray.get(reference)
        except RayTaskError:  # a mistake; Ray shows the traceback of the worker
            raise
        except RayError as problem:
            self._lose(worker, problem)
            return
        first, end = worker.in_flight.pop(reference)
        worker.busy_since = time.monotonic()
        for sentence in computed.sentences:
            self._say(worker, sentence)
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
        ranges = list(worker.in_flight.values())
        self.pending.extendleft(reversed(ranges))
        place = worker.place or worker.node[:8]
        bars.say(f"a worker on node {place} died; {len(self.ready)} are alive and take its {len(ranges)} ranges.")
        for first, end in ranges[:1]:  # it had not begun the second
            self.tries[first, end] += 1
            if self.tries[first, end] == TRIES:
                reason = " ".join(str(problem).split())
                raise RuntimeError(
                    f"rows {first:,} to {end - 1:,} ended {TRIES} workers (the last one: {reason[:200]}); lower the "
                    "batch sizes or free memory, and run the study again: finished shards are kept."
                )

    def _require_saving(self, worker: _Worker) -> None:
        """Say that a worker has been saving a shard for long; raise Unwritable if that is too long."""
        if not worker.saving and worker.in_flight and time.monotonic() > worker.busy_since + SLOW_DISK:
            worker.saving = worker.actor.saving.remote()
        if not worker.saving or not ray.wait([worker.saving], timeout=0)[0]:
            return
        try:
            seconds = ray.get(worker.saving)
        except RayError:  # it died; the answers about its ranges say so
            seconds = 0
        worker.saving = None
        if seconds > SLOW_DISK:
            self._say(worker, f"it waits for the disk of {self.save.folder}; does that answer?")
        if seconds > LOST_DISK:
            raise Unwritable(
                f"node {worker.place} has been saving a shard to {self.save.folder} for {seconds:.0f} s; mend its "
                "disk, and run the study again: finished shards are kept."
            )

    def _say(self, worker: _Worker, sentence: str) -> None:
        """Say a sentence of a worker, unless another has said the same."""
        if sentence not in self.cluster.sentences:
            self.cluster.sentences.add(sentence)
            bars.say(f"node {worker.place}: {sentence}")
