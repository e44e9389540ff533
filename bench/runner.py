"""Run the benchmark: each piece of work by the library and in plain PyTorch, by turns.

It prints a table and writes reports/bench/bench.json and index.html. It fails when results differ. Where there is a
CUDA device, the pieces that run on it are measured there too. A half precision whose matrix products are slower than
float32's is skipped.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench import instruments, page, pieces, ranking
from bench.instruments import Progress
from bench.pieces import Piece

ROUNDS = 3  # of both ways by turns
SECONDS = 60.0  # after which a piece gets no further round, so that a slow machine needs a quarter of an hour too
FOLDER = Path("reports/bench")
PIECES: dict[str, Callable[[str], Piece]] = {
    "OTI": lambda device: pieces.oti_steps(64, 2, target=15.0, device=device),
    "φ": lambda device: pieces.phi_epoch(128, 64, device),
    "FTI4CIR": lambda device: pieces.fti_step(16, device),
    "concept association": lambda device: pieces.association(24, device),
    "phrases": lambda device: pieces.written_phrases(8, 32, device),
    "image embeddings": lambda device: pieces.embedding(64, device),
    "CIRR": lambda device: ranking.cirr(),
    "CIRCO": lambda device: ranking.circo(),
}
IN_HALF: dict[str, Callable[[str, float, str], Piece]] = {  # by precision, target and device
    "OTI": lambda precision, target, device: pieces.oti_steps(64, 2, precision, target, device),
}
HALF_TARGET = 45.0  # of a half precision whose matrix products are at least FAST times as fast as float32's
FAST = 4.0
ON_CPU = ("CIRR", "CIRCO")  # whatever the device
GROWTH: dict[str, tuple[str, Callable[[int], Piece], tuple[int, ...]]] = {
    "OTI by images": ("images", lambda images: pieces.oti_steps(images, 1), (16, 64, 256)),
    "ranking by queries": ("queries", lambda queries: ranking.circo(queries, 30_000), (200, 800, 3200)),
    "ranking by gallery": ("gallery images", lambda images: ranking.circo(200, images), (15_000, 60_000, 240_000)),
}


def main() -> int:
    """Measure everything, print it, write the files; 1 when results differ."""
    cuda = torch.cuda.is_available()
    works = [("cpu", name) for name in PIECES] + [("cuda", name) for name in PIECES if cuda and name not in ON_CPU]
    devices = list(dict.fromkeys(device for device, _ in works))
    progress = Progress(len(devices) + len(works) + len(GROWTH))
    facts = {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "gemm_gflops": {},
        "work": {device: [] for device in devices},
        "growth": {},
    }
    for device in devices:
        progress.next(f"{device}: matrix products in {', '.join(instruments.KINDS)}")
        facts["gemm_gflops"][device] = instruments.product_rates(device)
    for device, name in works:
        progress.next(f"{device}: {name}")
        facts["work"][device] += measure_work(name, device, facts["gemm_gflops"][device])
    for title, (unit, make, sizes) in GROWTH.items():
        progress.next(title)
        facts["growth"][title] = measure_growth(unit, make, sizes)
    facts["took"] = progress.elapsed.strip()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(page.write(FOLDER / "index.html", facts))
    return int(any(not row.get("agree", True) for rows in facts["work"].values() for row in rows))


def main_on_cuda() -> int:
    """Measure the pieces that run on a CUDA device there alone, and print them; 1 when results differ."""
    if not torch.cuda.is_available():
        print("this machine has no CUDA device; nothing was measured.")
        return 0
    works = [name for name in PIECES if name not in ON_CPU]
    progress, rows = Progress(1 + len(works)), []
    progress.next(f"cuda: matrix products in {', '.join(instruments.KINDS)}")
    rates = instruments.product_rates("cuda")
    for name in works:
        progress.next(f"cuda: {name}")
        rows += measure_work(name, "cuda", rates)
    print(page.cuda_text({"cuda": torch.cuda.get_device_name(), "gemm_gflops": {"cuda": rates}}, rows))
    return int(any(not row.get("agree", True) for row in rows))


def measure_work(name: str, device: str, rates: dict[str, float]) -> list[dict]:
    """Measure a work in float32, and in each half precision that it has; return a row of the table for each."""
    same, skipped = {"float32": PIECES[name](device)}, []
    for precision in [kind for kind in rates if kind != "float32" and name in IN_HALF]:
        faster = rates[precision] / rates["float32"]
        if faster < 1:
            reason = f"skipped: slower than float32 here ({1 / faster:.1f} times)"
            skipped.append({"name": same["float32"].name.replace("float32", precision), "skipped": reason})
        else:
            same[precision] = IN_HALF[name](precision, HALF_TARGET if faster >= FAST else 0.0, device)
    return measure_pieces(same, device, rates) + skipped


def measure_pieces(same: dict[str, Piece], device: str, rates: dict[str, float]) -> list[dict]:
    """Measure pieces that are the same work in several precisions, against the plain rendering in float32.

    Args:
        same: the pieces by precision.
        device: where they run.
        rates: GFLOP/s of a matrix product by precision.

    Returns:
        A row of the table for each piece: medians of seconds, how many times faster than the plain rendering, the share
        of its precision's rate, the memory that a first run adds, and whether the results agree.
    """
    start, plain_work = time.perf_counter(), same["float32"].plain
    first = {kind: instruments.run(piece.ours, device) for kind, piece in same.items()}  # prepares and allocates
    plain = instruments.run(plain_work, device)  # prepares nothing, so its seconds count
    plain_seconds = [plain.seconds]
    seconds = {kind: [instruments.seconds(piece.ours)] for kind, piece in same.items()}
    while len(plain_seconds) < ROUNDS and time.perf_counter() - start < SECONDS:
        plain_seconds.append(instruments.seconds(plain_work))
        for kind, piece in same.items():
            seconds[kind].append(instruments.seconds(piece.ours))
    rows = []
    for kind, piece in same.items():
        ours, published = statistics.median(seconds[kind]), statistics.median(plain_seconds)
        missed = bool(piece.target and published / ours < piece.target)
        floor = piece.flop / (rates[kind] * 1e9) if piece.flop else None  # seconds that the arithmetic takes
        rows.append(
            {
                "name": piece.name,
                "what": piece.what,
                "seconds": {"ours": round(ours, 4), "plain": round(published, 4)},
                "rounds": len(plain_seconds),
                "times_faster": round(published / ours, 2),
                "target": piece.target or None,
                "missed": missed,
                "share_of_gemm": round(floor / ours, 2) if floor else None,
                "floor_seconds": round(floor, 4) if floor else None,
                "time_goes_to": instruments.shares(piece.ours) if missed and device == "cpu" else None,
                "peak_mib": {"ours": first[kind].mib, "plain": plain.mib},
                "agree": bool(piece.agree(first[kind].result, plain.result)),
            }
        )
    return rows


def measure_growth(unit: str, make: Callable[[int], Piece], sizes: tuple[int, ...]) -> dict:
    """Measure how the library's time grows with a size: medians, and the exponent of the power that fits them."""
    seconds = {size: round(instruments.median_seconds(make(size).ours, ROUNDS, SECONDS / 6), 4) for size in sizes}
    exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    return {"unit": unit, "seconds": seconds, "exponent": round(float(exponent), 2)}
