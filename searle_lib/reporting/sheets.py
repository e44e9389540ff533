"""Rows of images as HTML that stands alone: strips of examples, and sheets of what each method retrieves.

Takes a benchmark's queries and the rankings of its methods. Each image is embedded once as a thumbnail.
"""

import base64
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from searle_lib.data import images
from searle_lib.data.benchmarks import Benchmark, Example
from searle_lib.reporting import templates

THUMBNAIL_SIDE = 128  # pixels, shown at half that size for dense screens
MAX_TARGETS = 5  # targets shown for a query


def strip(paths: Iterable[Path | str], captions: Iterable[str]) -> HTML:
    """Show a row of images, each above its caption."""
    figures = list(zip(paths, captions, strict=True))
    return HTML(templates.render("strip", figures=figures, thumbnails=_Thumbnails()))


def query(example: Example) -> HTML:
    """Show a query: its reference, its relative caption, and its targets unless they are secret."""
    return _sheet(_queries(example.benchmark, [example.row], {}, 0))


def retrieved(example: Example, rankings: pd.DataFrame, depth: int = 5) -> HTML:
    """Show a query and the `depth` best images of each method.

    `rankings` has columns dataset, split, category, method, query and best (image ids, best first).
    """
    best = _best_images(rankings, example.benchmark)
    return _sheet(_queries(example.benchmark, [example.row], best, depth))


def sheet(benchmark: Benchmark, rankings: pd.DataFrame, queries: int, depth: int = 8, seed: int = 0) -> HTML:
    """Show random queries of a benchmark and the best images of each method; a target has a green frame.

    Args:
        benchmark: one category of one split.
        rankings: as in `retrieved`.
        queries: number of queries.
        depth: images per method.
        seed: decides which queries are drawn.
    """
    rows = sorted(np.random.default_rng(seed).permutation(len(benchmark.queries))[:queries].tolist())
    return _sheet(_queries(benchmark, rows, _best_images(rankings, benchmark), depth), benchmark.name)


def of_study(benchmarks: list[Benchmark], rankings: pd.DataFrame, queries: int) -> list[HTML]:
    """Return one sheet for each benchmark with known targets."""
    return [sheet(benchmark, rankings, queries) for benchmark in benchmarks if benchmark.is_scored]


def data_uri(path: Path | str) -> str:
    """Return an image as a data URI, scaled down to fit a square of THUMBNAIL_SIDE pixels."""
    image = images.read(Path(path)).convert("RGB")
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    with io.BytesIO() as buffer:
        image.save(buffer, "WEBP", quality=92)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Thumbnails(dict):
    """The thumbnails of one output by path; each is read when a template first asks for it."""

    def __missing__(self, path: Path | str) -> dict[str, str]:
        uri = data_uri(path)
        self[path] = {"id": f"image-{hashlib.sha256(uri.encode()).hexdigest()[:16]}", "uri": uri}
        return self[path]


def _sheet(queries: list[dict], title: str = "") -> HTML:
    return HTML(templates.render("sheet", title=title, queries=queries, thumbnails=_Thumbnails()))


def _queries(benchmark: Benchmark, rows: list[int], best: dict[str, dict[str, list[str]]], depth: int) -> list[dict]:
    """Return what the template shows of these rows; `best` is what `_best_images` returns."""
    paths = dict(zip(benchmark.gallery["image"], benchmark.gallery["path"], strict=True))
    queries = []
    for query in benchmark.queries.iloc[rows].to_dict("records"):
        targets = query["ground_truths"]
        facts = {"reference": paths[query["reference"]], "sentence": query["sentences"][0], "methods": {}}
        facts |= {"targets": [paths[image] for image in targets[:MAX_TARGETS]], "more": len(targets) - MAX_TARGETS}
        default = "miss" if targets else ""  # secret targets leave every image unmarked
        marks = dict.fromkeys(targets, "hit")
        for method, images_of in best.items():
            facts["methods"][method] = [(paths[i], marks.get(i, default)) for i in images_of[query["query"]][:depth]]
        queries.append(facts)
    return queries


def _best_images(rankings: pd.DataFrame, benchmark: Benchmark) -> dict[str, dict[str, list[str]]]:
    """Return the best images for a benchmark's queries, by method and query."""
    same = [rankings[name] == getattr(benchmark, name) for name in ("dataset", "split", "category")]
    by_method = rankings[np.logical_and.reduce(same)].groupby("method", sort=False)
    return {method: dict(zip(rows["query"], rows["best"], strict=True)) for method, rows in by_method}
