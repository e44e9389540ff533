"""The benchmark: `make bench`. Each piece of work by the library and in plain PyTorch, by turns, in one run.

Prints a table and writes reports/bench/bench.json and index.html. It fails when results differ. Where there is a CUDA
device, the pieces that run on it are measured there too, both ways. A half precision whose matrix products are slower
than float32's is skipped.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench import instruments, page, pieces, ranking
from bench.instruments import Progress
from bench.pieces import Piece

ROUNDS = 3
PLAIN_SECONDS = 40.0  # after so many seconds of the plain rendering it is not run again
FOLDER = Path("reports/bench")
PLAIN = "plain"
PIECES: dict[str, Callable[[str], Piece]] = {
    "oti": lambda device: pieces.oti_steps(64, 2, target=15.0, device=device),
    "phi": lambda device: pieces.phi_epoch(128, 64, device),
    "fti": lambda device: pieces.fti_step(16, device),
    "association": lambda device: pieces.association(24, device),
    "phrases": lambda device: pieces.written_phrases(8, 32, device),
    "embedding": lambda device: pieces.embedding(64, device),
    "cirr": lambda device: ranking.cirr(),
    "circo": lambda device: ranking.circo(),
}
IN_HALF: dict[str, Callable[[str, float, str], Piece]] = {  # by precision, target and device
    "oti": lambda precision, target, device: pieces.oti_steps(64, 2, precision, target, device),
}
HALF_TARGET = 45.0  # of a half precision whose matrix products are at least FAST times as fast as float32's
FAST = 4.0
ON_CPU = ("cirr", "circo")  # whatever the device
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
        facts["work"][device] += rows_of(name, device, facts["gemm_gflops"][device])
    for title, (unit, make, sizes) in GROWTH.items():
        progress.next(title)
        facts["growth"][title] = grown(unit, make, sizes)
    facts["took"] = progress.elapsed.strip()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(page.write(FOLDER / "index.html", facts))
    return int(any(not row.get("agree", True) for rows in facts["work"].values() for row in rows))


def rows_of(name: str, device: str, rates: dict[str, float]) -> list[dict]:
    """Rows of the table for a piece: in float32, and in half precision where there is such a piece."""
    same, skipped = [PIECES[name](device)], []
    for precision in [kind for kind in rates if kind != "float32" and name in IN_HALF]:
        faster = rates[precision] / rates["float32"]
        if faster < 1:
            reason = f"skipped: slower than float32 here ({1 / faster:.1f} times)"
            skipped.append({"name": same[0].name.replace("float32", precision), "skipped": reason})
        else:
            same.append(IN_HALF[name](precision, HALF_TARGET if faster >= FAST else 0.0, device))
    return measured(same, device, rates["float32"] * 1e9) + skipped


def measured(same: list[Piece], device: str, rate: float) -> list[dict]:
    """Rows of the table for pieces that are the same work, whose plain rendering is the first one's.

    A row has medians, how many times faster than the plain rendering, the share of the rate of matrix products, the
    memory added, and whether the results agree.
    """
    first = {piece.name: instruments.run(piece.ours, device) for piece in same}  # prepares and allocates
    plain = instruments.run(same[0].plain, device)  # prepares nothing, so its seconds count
    seconds: dict[str, list[float]] = {piece.name: [] for piece in same} | {PLAIN: [plain.seconds]}
    for number in range(ROUNDS):
        for piece in same:
            seconds[piece.name].append(instruments.seconds(piece.ours))
        if number + 1 < ROUNDS and sum(seconds[PLAIN]) < PLAIN_SECONDS:
            seconds[PLAIN].append(instruments.seconds(same[0].plain))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for piece in same:
        ours = medians[piece.name]
        missed = bool(piece.target and medians[PLAIN] / ours < piece.target)
        rows.append(
            {
                "name": piece.name,
                "what": piece.what,
                "seconds": {"ours": round(ours, 4), "plain": round(medians[PLAIN], 4)},
                "runs": {"ours": ROUNDS, "plain": len(seconds[PLAIN])},
                "times_faster": round(medians[PLAIN] / ours, 2),
                "target": piece.target or None,
                "missed": missed,
                "share_of_gemm": round(piece.flop / ours / rate, 2) if piece.flop else None,
                "floor_seconds": round(piece.flop / rate, 4) if piece.flop else None,
                "time_goes_to": instruments.shares(piece.ours) if missed and device == "cpu" else None,
                "peak_mib": {"ours": first[piece.name].mib, "plain": plain.mib},
                "agree": bool(piece.agree(first[piece.name].result, plain.result)),
            }
        )
    return rows


def grown(unit: str, make: Callable[[int], Piece], sizes: tuple[int, ...]) -> dict:
    """How the library's time grows with a size: medians, and the exponent of the power that fits them."""
    seconds = {size: round(instruments.median_seconds(make(size).ours, ROUNDS), 4) for size in sizes}
    exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    return {"unit": unit, "seconds": seconds, "exponent": round(float(exponent), 2)}


if __name__ == "__main__":
    sys.exit(main())
