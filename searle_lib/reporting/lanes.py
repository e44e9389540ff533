"""What every method retrieves for one query, as HTML: a lane of images per method, and the target's rank by wording.

`html` is a pure function of `Lanes`: it needs no widget, no CLIP and no study. `live` shows its result in JupyterLab.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from searle_lib.evaluation import methods
from searle_lib.evaluation.own_query import Query, Ranking
from searle_lib.reporting import sheets, templates


@dataclass(frozen=True)
class Lanes:
    """The state that is shown.

    Args:
        query: the query.
        methods: the methods in order.
        rankings: by wording of the caption and method; a method that is still at work has none.
        wording: the wording whose images are shown.
        notes: why a method has no ranking, by method.
    """

    query: Query
    methods: Sequence[str]
    rankings: Mapping[str, Mapping[str, Ranking]]
    wording: str
    notes: Mapping[str, str] = field(default_factory=dict)


def html(lanes: Lanes) -> str:
    """Return a query's reference and targets, a lane of images for each method, and the target's ranks by wording."""
    query, gallery = lanes.query, lanes.query.benchmark.gallery
    return templates.render(
        "live",
        **vars(lanes),
        colours=methods.colours(lanes.methods),
        paths=dict(zip(gallery["image"], gallery["path"], strict=True)),
        size=len(gallery) - bool(query.excluded),
        targets=query.targets[: sheets.MAX_TARGETS],
        more=len(query.targets) - sheets.MAX_TARGETS,
        thumbnail=thumbnail,
    )


def thumbnail(path: Path | str) -> str:
    """Return an image as a data URI; the file is read once, and again after it has changed."""
    return _thumbnail(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _thumbnail(path: Path | str, changed: int) -> str:
    return sheets.data_uri(path)
