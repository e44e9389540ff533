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
from PIL import Image

from searle_lib.data import images
from searle_lib.data.benchmarks import Benchmark, Example
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.reporting import templates

THUMBNAIL_SIDE = 192  # pixels: three times the size in a sheet, half the size of an enlarged image
MAX_TARGETS = 5  # targets shown for a query


def strip(shown: Iterable[Path | str | Image.Image], captions: Iterable[str]) -> HTML:
    """Show a row of images, or of files of images, each above its caption."""
    figures = list(zip(shown, captions, strict=True))
    return HTML(templates.render("strip", figures=figures, thumbnails=_Thumbnails()))


def query(example: Example) -> HTML:
    """Show a query: its reference, its relative caption, and its targets unless they are secret."""
    return _sheet(_queries(example.benchmark, [example.row], {}, 0))


def retrieved(example: Example, rankings: pd.DataFrame, depth: int = 5) -> HTML:
    """Show a query and the `depth` best images of each method.

    `rankings` has columns dataset, split, category, method, query, best (image ids, best first), scores
    and rank (of the first target, from 0; -1 if it is secret).
    """
    answers = _answers(rankings, example.benchmark)
    return _sheet(_queries(example.benchmark, [example.row], answers, depth))


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
    return _sheet(_queries(benchmark, rows, _answers(rankings, benchmark), depth), benchmark.name)


def of_study(benchmarks: list[Benchmark], rankings: pd.DataFrame, queries: int) -> list[HTML]:
    """Return one sheet for each benchmark with known targets."""
    return [sheet(benchmark, rankings, queries) for benchmark in benchmarks if benchmark.is_scored]


def data_uri(source: Path | str | Image.Image) -> str:
    """Return an image, or a file's image, as a data URI, scaled down to fit a square of THUMBNAIL_SIDE pixels."""
    image = source.copy() if isinstance(source, Image.Image) else images.read(Path(source)).convert("RGB")
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    with io.BytesIO() as buffer:
        image.save(buffer, "WEBP", quality=88)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Thumbnails(dict):
    """The thumbnails of one output by what is shown; each is made when a template first asks for it."""

    def __getitem__(self, shown: Path | str | Image.Image) -> dict[str, str]:
        key = id(shown) if isinstance(shown, Image.Image) else shown
        if key not in self:
            uri = data_uri(shown)
            self[key] = {"id": f"image-{hashlib.sha256(uri.encode()).hexdigest()[:16]}", "uri": uri}
        return self.get(key)


def _sheet(queries: list[dict], title: str = "") -> HTML:
    return HTML(templates.render("sheet", title=title, queries=queries, thumbnails=_Thumbnails()))


def _queries(benchmark: Benchmark, rows: list[int], answers: dict[str, dict[str, dict]], depth: int) -> list[dict]:
    """Return what the template shows of these rows; `answers` is what `_answers` returns."""
    paths = dict(zip(benchmark.gallery["image"], benchmark.gallery["path"], strict=True))
    queries = []
    for query in benchmark.queries.iloc[rows].to_dict("records"):
        targets = query["ground_truths"]
        facts = {"sentence": query["sentences"][0], "more": len(targets) - MAX_TARGETS}
        facts["reference"] = {"path": paths[query["reference"]], "label": f"reference\n{query['reference']}"}
        facts["targets"] = [{"path": paths[image], "label": f"target\n{image}"} for image in targets[:MAX_TARGETS]]
        facts["methods"] = [
            {"name": method, "images": _images(method, answer[query["query"]], targets, paths, depth)}
            | {"note": _note(answer[query["query"]], depth)}
            for method, answer in answers.items()
        ]
        queries.append(facts)
    return queries


def _images(method: str, answer: dict, targets: list[str], paths: dict, depth: int) -> list[dict]:
    """Return the path, the mark and the label of a method's best images for one query."""
    default = "miss" if targets else ""  # secret targets leave every image unmarked
    images, scores = [], answer["scores"]  # another model's lists may have no scores
    for rank, image in enumerate(answer["best"][:depth], 1):
        mark = "hit" if image in targets else default
        suffix = f", {mark}" if mark else ""
        score = f"score {scores[rank - 1]:.3f}\n" if len(scores) else ""
        label = f"{method}, rank {rank}{suffix}\n{score}{image}"
        images.append({"path": paths[image], "mark": mark, "label": label})
    return images


def _note(answer: dict, depth: int) -> str:
    """Return at which rank, from 1, the first target stands, where it is not among the images that are shown."""
    if answer["rank"] == UNLISTED:
        return f"target not among the first {len(answer['best'])}"
    return f"target at {answer['rank'] + 1:,}" if answer["rank"] >= depth else ""


def _answers(rankings: pd.DataFrame, benchmark: Benchmark) -> dict[str, dict[str, dict]]:
    """Return the best images, their scores and the target's rank for a benchmark's queries, by method and query."""
    same = [rankings[name] == getattr(benchmark, name) for name in ("dataset", "split", "category")]
    by_method = rankings[np.logical_and.reduce(same)].groupby("method", sort=False)
    columns = ["best", "scores", "rank"]
    return {method: rows.set_index("query")[columns].to_dict("index") for method, rows in by_method}
