"""Choose the setting of a method on another data set than the one it is reported on.

A method with settings has a `grid`, `parts` that hold for all settings, and `fuse`, which turns parts and a setting
into queries. The setting is chosen on FashionIQ val, and for FashionIQ itself on CIRR val: the one with the best mean
of the data set's first main metric. A study without that data set uses the first setting of the grid.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from searle_lib.backbone import embeddings
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation.contract import Composer, Fusion, fold
from searle_lib.evaluation.intervals import MAIN
from searle_lib.evaluation.rankings import compare
from searle_lib.evaluation.scores import SETTING, load_setting, metric
from searle_lib.store.artefacts import write_json
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

Setting = Sequence[float]


class TunedComposer(Composer, Protocol):
    """A composer whose setting is one of a grid."""

    grid: Sequence[Setting]

    def parts(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Sequence[Tensor]:
        """Return tensors [N, d] that no setting changes; the arguments are those of `compose`."""

    def fuse(self, parts: Sequence[Tensor], setting: Setting) -> Tensor | Fusion:
        """Return what `compose` returns with a setting."""


def chosen_on(split: str) -> str:
    """Return the split on which settings for another split are chosen."""
    return "cirr/val" if split.startswith("fashioniq/") else "fashioniq/val"


def choose(study: Study, name: str, composer: TunedComposer, split: str, loaded: Sequence[Benchmark]) -> list[float]:
    """Return the best setting of a method on a split, computed once and kept.

    Args:
        study: keeps it.
        name: of the method.
        composer: the method's composer on this split, with the first setting.
        split: the split, as in "cirr/val".
        loaded: the benchmarks of the split; none if the study lacks it.
    """
    galleries = [embeddings.read(study, benchmark.gallery_name) for benchmark in loaded]
    facts = {"composer": composer.key, "grid": [list(setting) for setting in composer.grid]}
    facts |= {"on": [[b.key, gallery.key] for b, gallery in zip(loaded, galleries, strict=True)]}
    facts |= {"code": code_digest(type(composer), mean_lead)}

    def make(folder: Path) -> None:
        parts = [composer.parts(list(b.queries["reference"]), list(b.queries["sentences"])) for b in loaded]
        values = []
        for setting in composer.grid if loaded else ():
            queries = [fold(composer.fuse(of_benchmark, setting)) for of_benchmark in parts]
            values.append(mean_lead(loaded, galleries, queries))
        best = composer.grid[int(np.argmax(values)) if values else 0]
        write_json(folder / SETTING, {"setting": list(best), "values": values})

    return study.keep(f"settings/{split}/{name}", facts, make).read(load_setting)["setting"]


def mean_lead(loaded: Sequence[Benchmark], galleries: Sequence, queries: Sequence) -> float:
    """Return the first main metric of a data set in percent, the plain mean over its categories."""
    means = []
    for benchmark, gallery, of_benchmark in zip(loaded, galleries, queries, strict=True):
        rankings = compare(benchmark, gallery, of_benchmark)
        lead = next(name for title, *_, name in MAIN if title == benchmark.protocol.title)
        means.append(float(metric(lead, rankings).mean()) * 100)
    return sum(means) / len(means)
