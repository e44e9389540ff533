"""The worker of a Ray cluster: an actor that computes ranges of rows, and what it gets from the notebook's kernel.

The function of a stage travels without weights: a `Backbone` loads its CLIP again on the worker and compares the hash,
and the rows of a phrase bank travel as the name of their folder, which a node without the kernel's disk copies once.
"""

import contextlib
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from searle_lib.store import bars, shards
from searle_lib.store.executors import Save, Work
from searle_lib.store.files import atomic_write
from searle_lib.store.reading import PACKAGE, is_refusal

VERSIONS = ("torch", "torchvision", "clip-anytorch", "transformers", "numpy", "pillow")  # that decide bytes


@dataclass(frozen=True)
class Task:
    """What a worker computes.

    Args:
        work: the function of the stage.
        save: saves a result; None if the results go to the kernel.
        probe: a file that a worker sees if it shares the kernel's disk; then it saves its results itself.
    """

    work: Work
    save: Save | None
    probe: Path | None


@dataclass(frozen=True)
class Computed:
    """What a worker hands back for a range.

    Args:
        result: what the function returned, unless the worker has saved it.
        is_saved: whether it has.
        sentences: what was said on the way.
        refusal: the class and the sentence of an error that this library raised on purpose.
    """

    result: Any = None
    is_saved: bool = False
    sentences: tuple[str, ...] = ()
    refusal: tuple[type[Exception], str] | None = None


@ray.remote
class Files:
    """Hands out the files of the kernel's node, to nodes that do not see its disk."""

    def list(self, folder: Path) -> list[str]:
        """Return the names of the shards in a folder."""
        return sorted(path.name for path in folder.glob("rows-*.safetensors"))

    def read(self, path: Path) -> bytes:
        """Return the content of a file."""
        return path.read_bytes()


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"health": 1})
class Actor:
    """A worker. `threads` is how many torch uses, and `kernel_node` the id of the node where the notebook runs."""

    def __init__(self, threads: int, kernel_node: str):
        self.threads, self.kernel_node = threads, kernel_node
        self.reference: ray.ObjectRef | None = None
        self.task: Task | None = None
        self.saving_since: float | None = None
        shards.fetch = self.fetch

    def facts(self) -> dict[str, str]:
        """Return the address of the node, and the versions of what decides bytes."""
        return {"place": ray.util.get_node_ip_address(), **versions()}

    def compute(self, task: list[ray.ObjectRef], first: int, end: int) -> Computed:
        """Compute a range, and save it if that can be done here. `task` holds the one reference of the task."""
        try:
            if task[0] != self.reference:
                torch.set_num_threads(self.threads)
                self.task = None  # frees the memory of the one before
                self.task, self.reference = cloudpickle.loads(ray.get(task[0])), task[0]
            return replace(self._compute(self.task, first, end), sentences=tuple(bars.take_notes()))
        except Exception as problem:
            if not is_refusal(problem.__traceback__):
                raise
            return Computed(sentences=tuple(bars.take_notes()), refusal=(type(problem), str(problem)))

    def _compute(self, task: Task, first: int, end: int) -> Computed:
        if not task.save:
            return Computed(task.work(first, end))
        with self._saving():
            is_shared = task.probe.exists()
            is_saved = is_shared and task.save.has(first, end)  # by a worker that died at once
        if is_saved:
            return Computed(is_saved=True)
        result = task.work(first, end)
        if not is_shared:
            return Computed(result)
        with self._saving():
            task.save(result, first, end)
        return Computed(is_saved=True)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        self.saving_since = time.monotonic()
        yield
        self.saving_since = None

    @ray.method(concurrency_group="health")
    def saving(self) -> float:
        """Return for how many seconds this worker has waited for the disk of the shards."""
        return time.monotonic() - self.saving_since if self.saving_since else 0.0

    def fetch(self, folder: Path) -> Path:
        """Copy a folder of shards from the kernel's node, once a node; return where the copy is."""
        on_kernel_node = NodeAffinitySchedulingStrategy(self.kernel_node, soft=False)
        files = Files.options(name="files", get_if_exists=True, num_cpus=0, scheduling_strategy=on_kernel_node).remote()
        copy = folder_of_copies() / folder.name
        copy.mkdir(exist_ok=True)
        for name in ray.get(files.list.remote(folder)):
            if not (copy / name).exists():
                with atomic_write(copy / name, durable=False) as temporary:
                    temporary.write_bytes(ray.get(files.read.remote(folder / name)))
        return copy


def folder_of_copies() -> Path:
    """Return the folder of this node where copies of shards lie. Raises PermissionError if it is another user's."""
    folder = Path(tempfile.gettempdir()) / f"searle-shards-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    if folder.stat(follow_symlinks=False).st_uid != os.getuid():  # its owner could put other numbers there
        raise PermissionError(f"{folder} belongs to another user; remove it, or set TMPDIR to another folder.")
    return folder


class _Pickler(cloudpickle.Pickler):
    """Pickles tensors of a GPU as tensors of the CPU: a worker moves them to its own."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is Tensor and thing.device.type != "cpu":
            return thing.cpu().__reduce_ex__(self.proto)
        return super().reducer_override(thing)


def pickle(task: Task) -> bytes:
    """Return a task as bytes that any node of the cluster can read."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(task)
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide bytes, and a hash of this library's files."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return {name: version(name) for name in VERSIONS} | {"searle_lib": total.hexdigest()[:10]}
