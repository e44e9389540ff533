"""Validation curves: the metrics of a training's kept checkpoints, an artefact of their own.

No training depends on what it is validated on.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.data import benchmarks, images
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation.composers import Composer, Fti4CirQueries, Searle, Sources
from searle_lib.evaluation.rankings import compare, compose
from searle_lib.evaluation.scores import metric
from searle_lib.fti4cir import network, patches
from searle_lib.searle import phi
from searle_lib.searle.phi import Distilled
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import Artefact, Store
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

CURVE = "validation.csv"


def phi_log(study: Study, backbone: Backbone, training: Artefact | None) -> pd.DataFrame:
    """Return the losses of φ's training by epoch, and SEARLE's metrics on CIRR val at the epochs that were kept.

    Metrics are in percent, and absent where CIRR val is not in the study. Empty where φ was brought: `training` None.
    """
    asked = [benchmark for benchmark in benchmarks.read(study) if benchmark.name == "cirr/val"]
    galleries = {benchmark.images: embeddings.read(study, benchmark.images) for benchmark in asked}

    def metrics_at(epoch: int, benchmark: Benchmark) -> dict[str, float]:
        weights = training.read(lambda folder: load_file(checkpoints.file_of(folder, "phi", epoch)))
        distilled = Distilled(phi.network_of(backbone, weights), "", epoch)
        gallery = galleries[benchmark.images]
        return means(benchmark, gallery, Searle(Sources(backbone, gallery, distilled=distilled)))

    return _log(study, training, "phi", asked, galleries, metrics_at)


def fti_log(study: Study, backbone: Backbone, training: Artefact | None, parts: str) -> pd.DataFrame:
    """Return the losses of FTI4CIR's training by epoch, and metrics on CIRR val and CIRCO val at the kept epochs.

    `parts` are the words that queries use: both, subject or attributes. Otherwise as `phi_log`.
    """
    asked = [benchmark for benchmark in benchmarks.read(study) if benchmark.name in ("cirr/val", "circo/val")]
    galleries = {benchmark.images: embeddings.read(study, benchmark.images) for benchmark in asked}
    reader = images.reader(study)

    def metrics_at(epoch: int, benchmark: Benchmark) -> dict[str, float]:
        weights = training.read(lambda folder: load_file(checkpoints.file_of(folder, "fti", epoch)))
        model, table = network.network_of(backbone, weights), benchmarks.reference_table([benchmark])
        words, gallery = patches.words_by(backbone, model, table, reader, parts), galleries[benchmark.images]
        of_split = means(benchmark, gallery, Fti4CirQueries(Sources(backbone, gallery, image_words=words)))
        return {f"{benchmark.protocol.title} {name}": value for name, value in of_split.items()}

    return _log(study, training, "fti", asked, galleries, metrics_at)


def means(benchmark: Benchmark, gallery: Embeddings, composer: Composer) -> dict[str, float]:
    """Return the mean of every metric over a benchmark's queries, in percent."""
    ranks = compare(benchmark, gallery, compose(benchmark, composer))
    return {name: float(metric(name, ranks).mean()) * 100 for name, _ in benchmark.protocol.metrics}


def _log(
    store: Store,
    training: Artefact | None,
    name: str,
    asked: Sequence[Benchmark],
    galleries: Mapping[str, Embeddings],
    metrics_at: Callable[[int, Benchmark], dict[str, float]],
) -> pd.DataFrame:
    """Return a training's log with metrics at its kept epochs, which are an artefact of their own.

    So no training depends on what it is validated on.
    """
    if training is None:
        return pd.DataFrame()
    losses = training.read(lambda folder: pd.read_csv(folder / checkpoints.LOG))
    epochs = checkpoints.kept_epochs(training, name)
    facts = {"training": training.key, "epochs": epochs, "code": code_digest(Searle, Fti4CirQueries, means)}
    facts["on"] = [[benchmark.key, galleries[benchmark.images].key] for benchmark in asked]

    def make(folder: Path) -> None:
        rows = []
        for epoch in epochs if asked else ():
            splits = [metrics_at(epoch, benchmark) for benchmark in asked]
            rows.append({"epoch": epoch} | {name: value for of_split in splits for name, value in of_split.items()})
        checkpoints.write_log(pd.DataFrame(rows, columns=None if rows else ["epoch"]), folder / CURVE)

    curve = store.keep(f"{name}-validation", facts, make).read(lambda folder: pd.read_csv(folder / CURVE))
    return losses.merge(curve, on="epoch", how="left")
