"""The benchmark: `make bench`. Each piece of work by the library and in a plain rendering, by turns, in one run.

Prints a table and writes reports/bench/bench.json and index.html. It fails when results differ. With CUDA the library's
side is measured there too.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import page, pieces
from benchmarks.pieces import Piece

REPEATS = 3
FOLDER = Path("reports/bench")
PIECES: dict[str, Callable[[], Piece]] = {
    "oti": lambda: pieces.oti(32, 2, target=15.0),
    "oti-bfloat16": lambda: pieces.oti(32, 2, "bfloat16", target=45.0 if _has_fast_bfloat16() else 0.0),
    "phi": lambda: pieces.phi(64, 32),
    "fti": lambda: pieces.fti(16),
    "association": lambda: pieces.association(24),
    "cirr": pieces.cirr,
    "circo": pieces.circo,
    "embedding": lambda: pieces.embedding(64),
}
GROWTH: dict[str, tuple[str, dict[int, Callable[[], Piece]]]] = {
    "OTI by images": ("images", {n: (lambda n=n: pieces.oti(n, 1)) for n in (8, 16, 32)}),
    "ranking by queries": ("queries", {n: (lambda n=n: pieces.circo(n, 30_000)) for n in (200, 800, 3200)}),
    "ranking by gallery": (
        "gallery images",
        {n: (lambda n=n: pieces.circo(200, n)) for n in (15_000, 60_000, 240_000)},
    ),
}


def main() -> int:
    """Measure everything, print it, write the files; 1 when results differ."""
    rate = multiply_rate(torch.float32)
    facts = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemm_gflops": {str(kind).removeprefix("torch."): round(multiply_rate(kind) / 1e9) for kind in pieces.KINDS},
        "fast_bfloat16": _has_fast_bfloat16(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    rows = [measured(name, make(), rate) for name, make in PIECES.items()]
    growth = {title: grown(unit, sizes) for title, (unit, sizes) in GROWTH.items()}
    cuda = [on_cuda(name, piece) for name, piece in pieces.on_cuda().items()] if torch.cuda.is_available() else []
    facts |= {"work": rows, "growth": growth, "on_cuda": cuda}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(page.write(FOLDER / "index.html", facts))
    return int(any(not row["agree"] for row in rows))


def measured(name: str, piece: Piece, rate: float) -> dict:
    """A row of the table: medians of both, how many times faster, the share of the matrix-multiply rate, peaks."""
    print(f"{piece.name}: {piece.what}", file=sys.stderr, flush=True)
    both = {"ours": piece.ours, "plain": piece.plain}
    results = {side: work() for side, work in both.items()}  # the first run allocates
    seconds: dict[str, list[float]] = {side: [] for side in both}
    for _ in range(REPEATS):
        for side, work in both.items():
            seconds[side].append(_timed(work))
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    faster = medians["plain"] / medians["ours"]
    return {
        "name": piece.name,
        "what": piece.what,
        "seconds": {side: round(value, 4) for side, value in medians.items()},
        "times_faster": round(faster, 2),
        "target": piece.target or None,
        "missed": bool(piece.target and faster < piece.target),
        "share_of_gemm": round(piece.flop / medians["ours"] / rate, 2) if piece.flop else None,
        "peak_mib": {side: peak(name, side) for side in both},
        "agree": bool(piece.agree(results["ours"], results["plain"])),
    }


def grown(unit: str, sizes: dict[int, Callable[[], Piece]]) -> dict:
    """How the library's time grows with a size: medians, and the exponent of the power that fits them."""
    seconds = {}
    for size, make in sizes.items():
        piece = make()
        piece.ours()
        seconds[size] = round(statistics.median(_timed(piece.ours) for _ in range(REPEATS)), 4)
    exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    return {"unit": unit, "seconds": seconds, "exponent": round(float(exponent), 2)}


def on_cuda(name: str, piece: Piece) -> dict:
    """The library's side on CUDA: its median and the peak of the device's memory."""
    piece.ours()
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(_timed(piece.ours) for _ in range(REPEATS))
    peak_mib = torch.cuda.max_memory_allocated() // 2**20
    return {"name": piece.name, "what": piece.what, "seconds": round(seconds, 4), "peak_mib": peak_mib}


def multiply_rate(kind: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product of the text tower's shape."""
    x, weight = torch.randn(1024, 512).to(kind), torch.randn(2048, 512).to(kind)
    torch.nn.functional.linear(x, weight)
    seconds = min(_timed(lambda: [torch.nn.functional.linear(x, weight) for _ in range(10)]) for _ in range(5)) / 10
    return 2 * 1024 * 512 * 2048 / seconds


def peak(name: str, side: str) -> int:
    """Memory that one run of a piece adds to a process of its own, in MiB."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", name, side]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _added_mib(name: str, side: str) -> int:
    piece = PIECES[name]()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # forget the peak that making the problem had
    before = _peak_mib()
    getattr(piece, side)()
    return _peak_mib() - before


def _peak_mib() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss starts from its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _has_fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in units of its own, as Linux says."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_added_mib(*sys.argv[1:]))
    else:
        sys.exit(main())
