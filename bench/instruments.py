"""What the benchmark measures with: seconds, memory, the rate of matrix products, and where the time goes."""

import ctypes
import gc
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARES = {  # what each of PyTorch's operations is for
    "matrix products": ("addmm", "mm"),
    "attention's products": ("bmm", "_softmax", "_softmax_backward_data"),
    "gathers and copies": ("index_select", "index_copy_", "index", "copy_", "cat", "fill_", "_to_copy", "clone"),
    "activations and norms": (
        "silu", "silu_backward", "native_layer_norm", "native_layer_norm_backward", "add", "add_", "mul",
    ),
}  # fmt: skip


class Progress:
    """Prints a line before each part of the benchmark: which part of how many, and the time since the start."""

    def __init__(self, parts: int):
        self.parts, self.part, self.start = parts, 0, time.perf_counter()

    def next(self, what: str) -> None:
        """Announce the next part."""
        self.part += 1
        print(f"[{self.part:2}/{self.parts}] {self.elapsed}  {what}", file=sys.stderr, flush=True)

    @property
    def elapsed(self) -> str:
        """Minutes and seconds since the start."""
        minutes, seconds = divmod(int(time.perf_counter() - self.start), 60)
        return f"{minutes:2}:{seconds:02}"


@dataclass(frozen=True)
class Run:
    """One run of a piece of work; `mib` is the memory that it added."""

    result: object
    seconds: float
    mib: int


def run(work: Callable[[], object], device: str) -> Run:
    """Run a piece of work; its memory is the device's on CUDA, else the process's."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        _forget_earlier_work()
        before, peak = _peak_bytes(), _peak_bytes
    seconds, result = _timed(work)
    return Run(result, seconds, (peak() - before) // 2**20)


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one run."""
    return _timed(work)[0]


def median_seconds(work: Callable[[], object], runs: int, limit: float) -> float:
    """The median of several runs, fewer once they took `limit` seconds, after a run that prepares and allocates."""
    work()
    taken = [seconds(work)]
    while len(taken) < runs and sum(taken) < limit:
        taken.append(seconds(work))
    return statistics.median(taken)


def product_rates(device: str, limit: float = 1.0) -> dict[str, float]:
    """GFLOP/s of the text tower's largest matrix product, forward and backward, by precision.

    Each precision takes about `limit` seconds. Its rate is that on 1,024 tokens, or on 128 where it is too slow.
    """
    return {name: round(_product_rate(kind, device, limit) / 1e9, 1) for name, kind in KINDS.items()}


def shares(work: Callable[[], object]) -> dict[str, float]:
    """What part of the host's time goes to what kind of operation."""
    with _OperationClock() as clock:
        total = seconds(work)
    found = {kind: round(sum(clock.seconds[name] for name in names) / total, 3) for kind, names in SHARES.items()}
    return found | {"the rest": round(1 - sum(found.values()), 3)}


class _OperationClock(TorchDispatchMode):
    """Adds up the seconds of every operation by its name. torch.profiler would print lines of its own."""

    def __init__(self):
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = operation(*args, **(kwargs or {}))
        self.seconds[operation.overloadpacket.__name__] += time.perf_counter() - start
        return result


def _product_rate(kind: torch.dtype, device: str, limit: float) -> float:
    few = _best_rate(128, kind, device, limit / 4)
    too_slow = _flop(1024) / few > limit
    return few if too_slow else _best_rate(1024, kind, device, limit)


def _best_rate(tokens: int, kind: torch.dtype, device: str, limit: float) -> float:
    x, weight = torch.randn(tokens, 512, device=device).to(kind), torch.randn(2048, 512, device=device).to(kind)

    def work() -> None:
        F.linear(x, weight) @ weight  # forward, and the gradient's product

    start, best = time.perf_counter(), seconds(work)
    while time.perf_counter() - start < limit:
        best = min(best, seconds(work))
    return _flop(tokens) / best


def _flop(tokens: int) -> float:
    return 2.0 * 2 * tokens * 512 * 2048  # of both products


def _timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _forget_earlier_work() -> None:
    """Give freed memory back to Linux, and let it forget the process's highest use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss is never forgotten
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
