"""Pictures beside pictures as HTML that stands alone: strips of examples, and sheets of what each method retrieves.

Images are embedded and every text from a data set is escaped.
"""

import base64
import html
import io
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from searle_lib.data import images
from searle_lib.data.benchmarks import Benchmark, Example

THUMBNAIL = 64  # CSS pixels; embedded at twice that for dense screens
WANTED = 5  # targets shown of a query
STYLE = f"<style>{resources.files('searle_lib.reporting').joinpath('report.css').read_text()}</style>"


def strip(pictures: Iterable[Path | str], captions: Iterable[str]) -> HTML:
    """A row of pictures, each above its caption."""
    parts = [_figure(path, caption) for path, caption in zip(pictures, captions, strict=True)]
    parts = parts or ["<p>Nothing to show: this study brought what is made here.</p>"]
    return HTML(f'{STYLE}<div class="strip">{"".join(parts)}</div>')


def query(example: Example) -> HTML:
    """A query: its reference, its relative caption, and its targets, unless they are secret."""
    paths = dict(zip(example.benchmark.gallery["image"], example.benchmark.gallery["path"], strict=True))
    asked = example.query
    lanes = ['<div class="name">reference</div>', _figure(paths[asked["reference"]], "", "given")]
    lanes += [f'<div class="asked">“{html.escape(asked["sentences"][0])}”</div>']
    lanes += ['<div class="name beside">target</div>'] * bool(asked["ground_truths"])
    lanes += [_figure(paths[image], "", "given") for image in asked["ground_truths"][:WANTED]]
    return HTML(f'{STYLE}<div class="sheet"><div class="act">{"".join(lanes)}</div></div>')


def retrieved(example: Example, rankings: pd.DataFrame, shown: int = 5) -> HTML:
    """A query with the best images of each method, in order.

    `rankings` holds columns dataset, split, category, method, query and best (image ids, best first).
    """
    best = _best(rankings, example.benchmark)
    return HTML(f'{STYLE}<div class="sheet">{_query(example.benchmark, example.row, best, shown)}</div>')


def sheet(benchmark: Benchmark, rankings: pd.DataFrame, queries: int, shown: int = 8, seed: int = 0) -> HTML:
    """Some queries of a benchmark, drawn at random: reference, caption, targets, and what was retrieved.

    `rankings` is as `retrieved` says. A hit is framed and ticked, a miss crossed.
    """
    best = _best(rankings, benchmark)
    chosen = np.random.default_rng(seed).permutation(len(benchmark.queries))[:queries]
    parts = [_query(benchmark, row, best, shown) for row in sorted(chosen.tolist())]
    return HTML(f'{STYLE}<div class="sheet">{"".join(parts)}</div>')


def of_study(benchmarks: list[Benchmark], rankings: pd.DataFrame, queries: int) -> list[HTML]:
    """A sheet of each benchmark whose targets are known, under its name."""
    shown = []
    for benchmark in (one for one in benchmarks if one.is_scored):
        shown += [HTML(f"<h3>{html.escape(benchmark.name)}</h3>"), sheet(benchmark, rankings, queries)]
    return shown


def _best(rankings: pd.DataFrame, benchmark: Benchmark) -> dict[str, dict[str, list[str]]]:
    """Return the best images of a benchmark's queries by method and query."""
    where = {name: getattr(benchmark, name) for name in ("dataset", "split", "category")}
    of_benchmark = rankings[np.logical_and.reduce([rankings[name] == value for name, value in where.items()])]
    by_method = of_benchmark.groupby("method", sort=False)
    return {method: dict(zip(rows["query"], rows["best"], strict=True)) for method, rows in by_method}


def _query(benchmark: Benchmark, row: int, best: dict[str, dict[str, list[str]]], shown: int) -> str:
    paths = dict(zip(benchmark.gallery["image"], benchmark.gallery["path"], strict=True))
    asked = benchmark.queries.iloc[row]
    targets = asked["ground_truths"]
    lanes = ['<div class="name">reference</div>', _figure(paths[asked["reference"]], "", "given")]
    lanes += ['<div class="name beside">target</div>']
    lanes += [_figure(paths[image], "", "given") for image in targets[:WANTED]]
    lanes += [f'<div class="more">+{len(targets) - WANTED}</div>'] * (len(targets) > WANTED)
    for method, images_of in best.items():
        lanes.append(f'<div class="name">{html.escape(method)}</div>')
        for image in images_of[asked["query"]][:shown]:
            lanes.append(_figure(paths[image], "", "hit" if image in targets else "miss"))
    caption = f'<p class="caption">“{html.escape(asked["sentences"][0])}”</p>'
    return f'<div class="query">{caption}<div class="lanes">{"".join(lanes)}</div></div>'


def embedded(path: Path | str) -> str:
    """A picture, at most twice THUMBNAIL wide and high, as a data address."""
    picture = images.read(Path(path)).convert("RGB")
    picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    with io.BytesIO() as buffer:
        picture.save(buffer, "WEBP", quality=92)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(path: Path | str, caption: str, mark: str = "") -> str:
    label = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{mark}"><img src="{embedded(path)}" alt="">{label}</figure>'
