"""The benchmark: `make bench`. Each piece of work by the library and in a plain rendering, by turns, in one run.

Prints a table and writes reports/bench/bench.json and index.html. It fails when results differ. Where there is a CUDA
device, the pieces that run on it are measured there too, both ways.
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

from bench import page, pieces, ranking
from bench.pieces import Piece

REPEATS = 3
FOLDER = Path("reports/bench")
PLAIN = "plain"
PIECES: dict[str, Callable[[str], Piece]] = {
    "oti": lambda device: pieces.oti_steps(64, 2, target=15.0, device=device),
    "oti-bfloat16": lambda device: pieces.oti_steps(
        64, 2, "bfloat16", target=45.0 if device == "cuda" or _has_fast_bfloat16() else 0.0, device=device
    ),
    "phi": lambda device: pieces.phi_epoch(128, 64, device),
    "fti": lambda device: pieces.fti(16, device),
    "association": lambda device: pieces.association(24, device),
    "phrases": lambda device: pieces.written_phrases(8, 32, device),
    "embedding": lambda device: pieces.embedding(64, device),
    "cirr": lambda device: ranking.cirr(),
    "circo": lambda device: ranking.circo(),
}
SAME_WORK = (("oti", "oti-bfloat16"),)  # measured against one run of the plain rendering
SHARES = {  # of an operation's own time, by what it is for
    "matrix products": ("addmm", "mm"),
    "attention's products": ("bmm", "_softmax", "_softmax_backward_data"),
    "gathers and copies": ("index_select", "index_copy_", "index", "copy_", "cat", "fill_"),
    "activations and norms": (
        "silu", "silu_backward", "native_layer_norm", "native_layer_norm_backward", "add", "add_", "mul",
    ),
}  # fmt: skip
ON_CPU = ("cirr", "circo")  # whatever the device
GROWTH: dict[str, tuple[str, dict[int, Callable[[], Piece]]]] = {
    "OTI by images": ("images", {n: (lambda n=n: pieces.oti_steps(n, 1)) for n in (16, 64, 256)}),
    "ranking by queries": ("queries", {n: (lambda n=n: ranking.circo(n, 30_000)) for n in (200, 800, 3200)}),
    "ranking by gallery": (
        "gallery images",
        {n: (lambda n=n: ranking.circo(200, n)) for n in (15_000, 60_000, 240_000)},
    ),
}


def main() -> int:
    """Measure everything, print it, write the files; 1 when results differ."""
    cuda = torch.cuda.is_available()
    devices = ["cpu", "cuda"] if cuda else ["cpu"]
    facts = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemm_gflops": {device: _rates(device) for device in devices},
        "fast_bfloat16": _has_fast_bfloat16(),
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "work": {device: _measured_on(device) for device in devices},
        "growth": {title: grown(unit, sizes) for title, (unit, sizes) in GROWTH.items()},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(page.write(FOLDER / "index.html", facts))
    return int(any(not row["agree"] for rows in facts["work"].values() for row in rows))


def measured(names: tuple[str, ...], device: str, rate: float, peaks: dict[str, int]) -> list[dict]:
    """Rows of the table for pieces that are the same work: medians, how many times faster than the plain rendering, the
    share of the matrix-multiply rate, peaks, and whether the results agree."""
    made = {name: PIECES[name](device) for name in names}
    for piece in made.values():
        print(f"{device}: {piece.name}, {piece.what}", file=sys.stderr, flush=True)
    works = {name: piece.ours for name, piece in made.items()}
    results = {name: work() for name, work in works.items()}  # the first run makes ready and allocates
    works[PLAIN] = made[names[0]].plain
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            took, results[name] = _timed(work)
            seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name, piece in made.items():
        faster = medians[PLAIN] / medians[name]
        rows.append(
            {
                "name": piece.name,
                "what": piece.what,
                "seconds": {"ours": round(medians[name], 4), "plain": round(medians[PLAIN], 4)},
                "times_faster": round(faster, 2),
                "target": piece.target or None,
                "missed": bool(piece.target and faster < piece.target),
                "share_of_gemm": round(piece.flop / medians[name] / rate, 2) if piece.flop else None,
                "floor_seconds": round(piece.flop / rate, 4) if piece.flop else None,
                "time_goes_to": shares(piece.ours) if piece.flop else None,
                "peak_mib": {"ours": peaks[name], "plain": peaks[PLAIN]},
                "agree": bool(piece.agree(results[name], results[PLAIN])),
            }
        )
    return rows


def shares(work: Callable[[], object]) -> dict[str, float]:
    """What part of the host's time goes to what kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        work()
    own = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(own.values())
    found = {kind: round(sum(own.get(name, 0) for name in names) / total, 3) for kind, names in SHARES.items()}
    return found | {"the rest": round(1 - sum(found.values()), 3)}


def grown(unit: str, sizes: dict[int, Callable[[], Piece]]) -> dict:
    """How the library's time grows with a size: medians, and the exponent of the power that fits them."""
    seconds = {}
    for size, make in sizes.items():
        piece = make()
        piece.ours()
        seconds[size] = round(statistics.median(_timed(piece.ours)[0] for _ in range(REPEATS)), 4)
    exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    return {"unit": unit, "seconds": seconds, "exponent": round(float(exponent), 2)}


def multiply_rate(kind: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations a second of a matrix product of the text tower's shape."""
    x, weight = torch.randn(1024, 512, device=device).to(kind), torch.randn(2048, 512, device=device).to(kind)

    def work() -> None:
        for _ in range(10):
            torch.nn.functional.linear(x, weight)

    work()
    seconds = min(_timed(work)[0] for _ in range(5)) / 10
    return 2 * 1024 * 512 * 2048 / seconds


def peak(name: str, side: str, device: str) -> int:
    """Memory that one run of a piece adds to a process of its own, in MiB; on CUDA, the device's."""
    command = [sys.executable, "-W", "ignore", "-m", "bench", name, side, device]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _measured_on(device: str) -> list[dict]:
    together = {names[0]: names for names in SAME_WORK}
    alone = [name for name in PIECES if not any(name in names[1:] for names in SAME_WORK)]
    works = [together.get(name, (name,)) for name in alone if device == "cpu" or name not in ON_CPU]
    peaks = [  # before this process keeps memory of its own
        {name: peak(name, "ours", device) for name in names} | {PLAIN: peak(names[0], PLAIN, device)} for names in works
    ]
    rate = multiply_rate(torch.float32, device)
    return [
        row for names, peaks_of in zip(works, peaks, strict=True) for row in measured(names, device, rate, peaks_of)
    ]


def _rates(device: str) -> dict[str, int]:
    return {
        str(kind).removeprefix("torch."): round(multiply_rate(kind, device) / 1e9)
        for kind in (torch.float32, torch.bfloat16)
    }


def _added_mib(name: str, side: str, device: str) -> int:
    piece = PIECES[name](device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        getattr(piece, side)()
        return (torch.cuda.max_memory_allocated() - before) // 2**20
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


def _timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def _has_fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in units of its own, as Linux says."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_added_mib(*sys.argv[1:]))
    else:
        sys.exit(main())
