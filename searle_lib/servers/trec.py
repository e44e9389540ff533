"""TREC's formats: run files of rankings, written and read, and qrels of targets.

A line of a run is `query Q0 image rank score tag`. A line of qrels is `query 0 image relevance`, where the target of
R@k has the relevance 2, and a query's other targets 1. White space and % in a name are percent-encoded.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd

from searle_lib.data.benchmarks import Benchmark, name_of
from searle_lib.servers.submissions import SUBSET
from searle_lib.store.artefacts import atomic_write
from searle_lib.store.reading import FileRefused, is_name, reads, show

REMEDY = "write lines of query, Q0, image, rank, score and tag"
MAX_BYTES = 1 << 30


def write_all(folder: Path, rankings: pd.DataFrame, benchmarks: Iterable[Benchmark]) -> list[Path]:
    """Write a run file for each benchmark and method, and qrels for each benchmark with public targets.

    CIRR gets a run of the three best members of each group, too, as its server takes them.

    Args:
        folder: where to write.
        rankings: as `scores.read_scores` returns them.
        benchmarks: those of the study.
    """
    paths = []
    for benchmark in benchmarks:
        if benchmark.is_scored:
            lines = [
                f"{_encode(query.query)} 0 {_encode(image)} {2 if image == query.target else 1}"
                for query in benchmark.queries.itertuples()
                for image in query.ground_truths
            ]
            paths.append(_write(folder / f"{benchmark.name.replace('/', '-')}.qrels", lines))
    for (*names, method), table in rankings.groupby(["dataset", "split", "category", "method"], sort=False):
        stem, tag = name_of(*names).replace("/", "-"), _encode(method)
        lists = {"": zip(table["query"], table["best"], table["scores"], strict=True)}
        if names[0] == "cirr":
            lists["subset-"] = (
                (query, list(group)[:SUBSET], ()) for query, group in table[["query", "group"]].to_numpy()
            )
        for kind, rows in lists.items():
            lines = [line for row in rows for line in _run_lines(*row, tag)]
            if lines:
                paths.append(_write(folder / f"{stem}-{kind}{method}.trec", lines))
    return paths


def is_run(file: Path) -> bool:
    """Return whether the first line of a file is one of a run, and not of JSON."""
    with file.open("rb") as content:
        first = content.readline(4096)
    return first.lstrip()[:1] not in (b"{", b"[") and len(first.split()) == 6


@reads("is not a TREC run file", REMEDY, limit=MAX_BYTES)
def read_run(file: Path) -> dict[str, list[str]]:
    """Return the images of each query, best first: by falling score, and equal scores by rank.

    Raises FileRefused for a line of another form, or an image that a query has twice.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if len(fields) != 6:
                raise FileRefused(f"line {number:,} of {file} has {len(fields)} fields, not 6; {REMEDY}.")
            query, _, image, rank, score, _ = map(unquote, fields)
            if not (is_name(query) and is_name(image)):
                raise FileRefused(f"line {number:,} of {file} has {show(image)}, which is no name; {REMEDY}.")
            if not re.fullmatch(r"-?\d{1,18}", rank) or not math.isfinite(_number(score)):
                raise FileRefused(f"line {number:,} of {file} has rank {rank:.20} and score {score:.20}; {REMEDY}.")
            images = rows.setdefault(query, {})
            if image in images:
                raise FileRefused(f"line {number:,} of {file} has {image} of query {query} again; keep one of both.")
            images[image] = (-_number(score), int(rank))
    return {query: sorted(images, key=images.get) for query, images in rows.items()}


def _run_lines(query: str, images: Sequence[str], scores: Sequence[float], tag: str) -> Iterator[str]:
    """Yield the lines of a query. Without scores, the number of images that are not better stands for one."""
    if len(scores) == 0:
        scores = range(len(images), 0, -1)
    last = np.float32(np.inf)
    for rank, (image, score) in enumerate(zip(images, scores, strict=True), 1):
        # evaluators sort by score alone, so each is below the one before it, as float32 too
        last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        yield f"{_encode(query)} Q0 {_encode(image)} {rank} {last:.9g} {tag}"


def _write(path: Path, lines: Iterable[str]) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _encode(name: str) -> str:
    return re.sub(r"[\s%]", lambda match: quote(match[0]), name)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
