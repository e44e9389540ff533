"""Rank a gallery that does not fit into the memory it may take: 5 million vectors of 512 numbers in half precision.

    python -m bench.large_gallery [--images N] [--queries Q] [--folder DIR]

The gallery is drawn and written to DIR, 5 GB, and removed at the end. Each ranking runs in a process of its own, whose
memory is its peak resident set: everything that it holds, and every page of a file that is mapped at that moment. What
the system keeps of files in free memory does not count. The goal: the 50 best images of 800 queries, exact, in 3 GB and
in no more than twice the time that the matrix products or the reading of the file take alone, whichever is longer.

The vectors are 20,000 random directions with random vectors around each, since embeddings are no even cloud. The exact
ranking takes equally long on any vectors; the recall of an approximate index depends on them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone.embeddings import LargeEmbeddings
from searle_lib.evaluation import indexes
from searle_lib.ranking import CELLS, ROWS, search_blocks
from searle_lib.store import shards
from searle_lib.study.run import ENVIRONMENT

WIDTH, DEPTH = 512, 50
CENTRES, SPREAD = 20_000, 1.0  # directions, and the length of what is added to each
SHARD = 2**16
LIMIT_GB, LIMIT_TIMES = 3.0, 2.0


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if the exact ranking misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000_000)
    parser.add_argument("--queries", type=int, default=800)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; by default the temporary folder")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(PARTS[options.only](options.folder, options.queries)))
        return 0
    with tempfile.TemporaryDirectory(prefix="gallery-", dir=options.folder) as name:
        folder = Path(name)
        began = time.perf_counter()
        shards.write(folder / "gallery", options.images, SHARD, draw, "drawing")
        print(f"drawn and written in {time.perf_counter() - began:.0f} s", flush=True)
        facts = {}
        for part in ("reading", "products", "exact", "products again", "faiss"):
            is_cold = part in ("reading", "exact") and drop_caches()
            facts[part] = run(part.split()[0], folder, options.queries)
            facts[part]["cold"] = is_cold
            print(f"{part}: {facts[part]}", flush=True)
    return report(facts, options.images, options.queries)


def draw(first: int, end: int) -> dict[str, Tensor]:
    """Return the vectors [end - first, WIDTH] float16 of a range of images."""
    random = torch.Generator().manual_seed(first)
    centres = F.normalize(torch.randn(CENTRES, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    noise = torch.randn(end - first, WIDTH, generator=random) * (SPREAD / WIDTH**0.5)
    return {"vectors": (centres[torch.randint(CENTRES, (end - first,), generator=random)] + noise).half()}


def draw_queries(gallery: LargeEmbeddings, count: int) -> Tensor:
    """Return unit vectors [count, WIDTH], each near an image of the gallery."""
    random = torch.Generator().manual_seed(2)
    vectors = gallery.unit[torch.randint(len(gallery.vectors), (count,), generator=random)]
    return F.normalize(vectors + torch.randn(count, WIDTH, generator=random) * (SPREAD / WIDTH**0.5), dim=-1)


def open_gallery(folder: Path) -> LargeEmbeddings:
    """Return the gallery without names of images."""
    rows = shards.memory_map(folder / "gallery")["vectors"]
    return LargeEmbeddings("drawn", range(len(rows)), rows, "")


def reading(folder: Path, _: int) -> dict:
    """Measure how fast the files are read, and nothing else."""
    buffer, size = bytearray(2**26), 0
    began = time.perf_counter()
    for path in sorted((folder / "gallery").iterdir()):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "GB/s": size / seconds / 1e9}


def products(folder: Path, queries: int) -> dict:
    """Measure the matrix products that the ranking needs, on one block again and again, and nothing else."""
    block, chunk = torch.randn(ROWS, WIDTH), min(queries, CELLS // ROWS)
    left, flop = torch.randn(chunk, WIDTH), 2.0 * chunk * ROWS * WIDTH
    out = torch.empty(chunk, ROWS)
    rates = []
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(left, block.T, out=out)
        rates.append(flop / (time.perf_counter() - began))
    rate = sorted(rates)[len(rates) // 2]
    images = len(open_gallery(folder).vectors)
    return {"seconds": 2.0 * queries * images * WIDTH / rate, "GFLOP/s": rate / 1e9}


def exact(folder: Path, queries: int) -> dict:
    """Rank the gallery exactly."""
    gallery = open_gallery(folder)
    vectors = draw_queries(gallery, queries)
    began = time.perf_counter()
    answers = search_blocks(vectors, gallery.unit, k=DEPTH)
    seconds = time.perf_counter() - began
    torch.save(answers.top, folder / "top.pt")
    return {"seconds": seconds, "GB": peak_bytes() / 1e9}


def faiss(folder: Path, queries: int) -> dict:
    """Rank the gallery by an index, and compare it with the exact ranking."""
    gallery = open_gallery(folder)
    vectors, none = draw_queries(gallery, queries), torch.full((queries, 1), -1)
    index = indexes.of_gallery(gallery, "faiss")
    began = time.perf_counter()
    index.search(vectors[:1], DEPTH, none[:1], none[:1], None)
    built = time.perf_counter()
    top = index.search(vectors, DEPTH, none, none, None).top
    seconds = time.perf_counter() - built
    best = torch.load(folder / "top.pt")
    recall = (top.unsqueeze(2) == best.unsqueeze(1)).any(1).double().mean().item()
    return {"seconds": seconds, "building": built - began, "GB": peak_bytes() / 1e9, "recall": recall}


PARTS = {"reading": reading, "products": products, "exact": exact, "faiss": faiss}


def run(part: str, folder: Path, queries: int) -> dict:
    """Run a part in a process of its own, in the environment of a notebook that `searle run` runs."""
    command = [sys.executable, "-m", "bench.large_gallery", "--only", part, "--folder", folder, "--queries", queries]
    process = {"env": os.environ | ENVIRONMENT, "stdout": subprocess.PIPE, "text": True, "check": True}
    printed = subprocess.run(list(map(str, command)), **process).stdout
    return json.loads(printed.splitlines()[-1])


def drop_caches() -> bool:
    """Let the system forget what it keeps of files; return whether that is allowed."""
    try:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Return the largest resident set of this process so far, mapped pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(facts: dict, images: int, queries: int) -> int:
    """Print the table and whether the goal is met; return 1 if it is not."""
    fastest = min(facts["products"]["seconds"], facts["products again"]["seconds"])  # others may use the machine, too
    floor, one = max(facts["reading"]["seconds"], fastest), facts["exact"]
    print(f"\n{images:,} images, {queries:,} queries, the {DEPTH} best; {torch.get_num_threads()} threads")
    cold = "not in memory before" if facts["reading"]["cold"] else "perhaps in memory before: run as root to be sure"
    rows = [
        ("reading alone", facts["reading"]["seconds"], f"{facts['reading']['GB/s']:.2f} GB/s, {cold}"),
        ("products alone, before", facts["products"]["seconds"], f"{facts['products']['GFLOP/s']:.0f} GFLOP/s"),
        (
            "products alone, after",
            facts["products again"]["seconds"],
            f"{facts['products again']['GFLOP/s']:.0f} GFLOP/s",
        ),
        ("exact", one["seconds"], f"{one['GB']:.2f} GB; {one['seconds'] / floor:.2f} times the slower of the two"),
        (
            "FAISS",
            facts["faiss"]["seconds"],
            f"{facts['faiss']['GB']:.2f} GB; recall@{DEPTH} {facts['faiss']['recall']:.3f}",
        ),
        ("FAISS, building", facts["faiss"]["building"], ""),
    ]
    for name, seconds, text in rows:
        print(f"{name:24}{seconds:8.1f} s   {text}")
    is_met = one["GB"] <= LIMIT_GB and one["seconds"] <= LIMIT_TIMES * floor
    print(f"goal ({LIMIT_GB:g} GB, {LIMIT_TIMES:g} times): {'met' if is_met else 'missed'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
