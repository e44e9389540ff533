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

from searle_lib import images
from searle_lib.benchmarks import Benchmark

THUMBNAIL = 64  # CSS pixels; embedded at twice that for dense screens
STYLE = f"<style>{resources.files('searle_lib').joinpath('report.css').read_text()}</style>"


def strip(pictures: Iterable[Path | str], captions: Iterable[str]) -> HTML:
    """A row of pictures, each above its caption."""
    parts = [_figure(path, caption) for path, caption in zip(pictures, captions, strict=True)]
    return HTML(f'{STYLE}<div class="strip">{"".join(parts)}</div>')


def sheet(benchmark: Benchmark, rankings: pd.DataFrame, queries: int, shown: int = 8, seed: int = 0) -> HTML:
    """Some queries, drawn at random, with the reference, the caption, what is wanted, and each method's best images.

    `rankings` holds columns category, method, query and best (image ids, best first), as `evaluation.leave` writes
    them for the benchmark's split. A hit is framed and ticked, a miss crossed.
    """
    rankings = rankings[rankings["category"] == benchmark.category]
    chosen = np.random.default_rng(seed).permutation(len(benchmark.queries))[:queries]
    paths = dict(zip(benchmark.gallery["image"], benchmark.gallery["path"], strict=True))
    best = {(row.method, row.query): row.best for row in rankings.itertuples()}
    parts = []
    for row in sorted(chosen.tolist()):
        query = benchmark.queries.iloc[row]
        wanted = query["ground_truths"]
        lanes = ['<div class="name">reference</div>', _figure(paths[query["reference"]], "", "given")]
        lanes += ['<div class="name beside">wanted</div>']
        lanes += [_figure(paths[image], "", "given") for image in wanted[: shown - 3]]
        if len(wanted) > shown - 3:
            lanes.append(f'<div class="more">+{len(wanted) - shown + 3}</div>')
        for method in rankings["method"].unique():
            lanes.append(f'<div class="name">{html.escape(method)}</div>')
            for image in best[method, query["query"]][:shown]:
                lanes.append(_figure(paths[image], "", "hit" if image in wanted else "miss"))
        parts.append(
            f'<div class="query"><p class="caption">“{html.escape(query["sentences"][0])}”</p>'
            f'<div class="lanes">{"".join(lanes)}</div></div>'
        )
    return HTML(f'{STYLE}<div class="sheet">{"".join(parts)}</div>')


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
