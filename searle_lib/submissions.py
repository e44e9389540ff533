"""Submission files for the test servers of CIRR and CIRCO (searle.md section 5)."""

import json
from pathlib import Path

from searle_lib.artefacts import written_aside
from searle_lib.benchmarks import Benchmark
from searle_lib.evaluation import Rankings

SUBSET = 3


def write_all(folder: Path, evaluated: list[tuple[Benchmark, dict[str, Rankings]]]) -> list[Path]:
    """Write every method's files for each split that a server scores, and remove those of an earlier run."""
    written = [
        path
        for benchmark, ranked in evaluated
        if benchmark.split == benchmark.protocol.submission
        for method, rankings in ranked.items()
        for path in write(folder, benchmark, rankings, method)
    ]
    for path in set(folder.glob("*.json")) - set(written):
        path.unlink()
    return written


def write(folder: Path, benchmark: Benchmark, rankings: Rankings, method: str) -> list[Path]:
    """Write a method's files for the benchmark's server, two for CIRR and one for CIRCO; the paths written.

    Raises ValueError for a dataset without a test server.
    """
    forms = {"cirr": _cirr, "circo": _circo}
    if benchmark.dataset not in forms:
        raise ValueError(f"{benchmark.protocol.title} has no test server; CIRR and CIRCO have.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in forms[benchmark.dataset](benchmark, rankings).items():
        written.append(folder / f"{benchmark.dataset}-{benchmark.split}-{name}{method}.json")
        with written_aside(written[-1]) as aside:
            aside.write_text(json.dumps(content, sort_keys=True))
    return written


def _cirr(benchmark: Benchmark, rankings: Rankings) -> dict[str, dict]:
    """The 50 best names of each pair, and the 3 best of its group, which is listed without the reference."""
    images = benchmark.gallery["image"].tolist()
    best = _best(benchmark, rankings, images)
    subset = {}
    groups = benchmark.queries["group"]
    for query, group, ranks in zip(benchmark.queries["query"], groups, rankings.group.tolist(), strict=True):
        subset[query] = [image for _, image in sorted(zip(ranks, group, strict=False))][:SUBSET]
    head = {"version": "rc2"}
    return {
        "": head | {"metric": "recall"} | best,
        "subset-": head | {"metric": "recall_subset"} | subset,
    }


def _circo(benchmark: Benchmark, rankings: Rankings) -> dict[str, dict]:
    """The 50 best image ids of each query, as integers."""
    images = [int(image) for image in benchmark.gallery["image"]]
    return {"": _best(benchmark, rankings, images)}


def _best(benchmark: Benchmark, rankings: Rankings, images: list) -> dict[str, list]:
    pairs = zip(benchmark.queries["query"], rankings.top.tolist(), strict=True)
    return {query: [images[row] for row in rows] for query, rows in pairs}
