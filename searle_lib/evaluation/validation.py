"""Validate the saved epochs of a training: their losses and their metrics, as a table with one row per epoch.

Takes a training's artefact. Keeps the metrics as an artefact of their own, so that no training depends on what it is
validated on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.data import benchmarks, images
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation.composers import Fti4CirQueries, Searle
from searle_lib.evaluation.contract import Composer, Sources
from searle_lib.evaluation.rankings import compare, compose
from searle_lib.evaluation.scores import metric
from searle_lib.fti4cir import network, patches
from searle_lib.searle import phi
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import Artefact, Store
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study
from searle_lib.training import TrainedNetwork

CURVE = "validation.csv"


def phi_log(study: Study, backbone: Backbone, training: Artefact | None) -> pd.DataFrame:
    """Return the losses of φ's training by epoch, and SEARLE's metrics on CIRR val at the saved epochs, in percent.

    The metrics are absent if CIRR val is not in the study. The table is empty if φ was not trained here (`training` is
    None).
    """

    def composer_of(weights: dict[str, Tensor], benchmark: Benchmark, gallery: Embeddings) -> Composer:
        trained_phi = TrainedNetwork(phi.build_network(backbone, weights), "", 0)
        return Searle(Sources(backbone, gallery, trained_phi=trained_phi))

    return _log(study, training, "phi", _validation_sets(study, "cirr/val"), composer_of)


def fti_log(study: Study, backbone: Backbone, training: Artefact | None, parts: str) -> pd.DataFrame:
    """Return the losses of FTI4CIR's training by epoch, and metrics on CIRR val and CIRCO val, as `phi_log` does.

    `parts` are the words that queries use: both, subject or attributes.
    """
    reader = images.reader(study)

    def composer_of(weights: dict[str, Tensor], benchmark: Benchmark, gallery: Embeddings) -> Composer:
        model, table = network.build_network(backbone, weights), benchmarks.reference_table([benchmark])
        words = patches.predict_words(backbone, model, table, reader, parts)
        return Fti4CirQueries(Sources(backbone, gallery, image_words=words))

    return _log(study, training, "fti", _validation_sets(study, "cirr/val", "circo/val"), composer_of, titles=True)


def means(benchmark: Benchmark, gallery: Embeddings, composer: Composer) -> dict[str, float]:
    """Return the mean of every metric over a benchmark's queries, in percent."""
    rankings = compare(benchmark, gallery, compose(benchmark, composer))
    return {name: float(metric(name, rankings).mean()) * 100 for name, _ in benchmark.protocol.metrics}


def _validation_sets(study: Study, *names: str) -> list[tuple[Benchmark, Embeddings]]:
    """The benchmarks of these names that are in the study, each with its gallery."""
    chosen = [benchmark for benchmark in benchmarks.read(study) if benchmark.name in names]
    return [(benchmark, embeddings.read(study, benchmark.gallery_name)) for benchmark in chosen]


def _log(
    store: Store,
    training: Artefact | None,
    name: str,
    validation_sets: Sequence[tuple[Benchmark, Embeddings]],
    composer_of: Callable[[dict[str, Tensor], Benchmark, Embeddings], Composer],
    titles: bool = False,
) -> pd.DataFrame:
    """The losses of a training by epoch, and its metrics at the saved epochs.

    Args:
        store: where the metrics are kept.
        training: the training, None if there was none.
        name: "phi" or "fti", as its files are named.
        validation_sets: benchmarks with their galleries.
        composer_of: returns the composer of an epoch's weights on a benchmark.
        titles: whether the data set's title stands before each metric.
    """
    if training is None:
        return pd.DataFrame()
    losses = training.read(lambda folder: pd.read_csv(folder / checkpoints.LOG))
    epochs = checkpoints.saved_epochs(training, name)
    facts = {"training": training.key, "epochs": epochs, "code": code_digest(Searle, Fti4CirQueries, means)}
    facts["on"] = [[benchmark.key, gallery.key] for benchmark, gallery in validation_sets]

    def metrics_at(epoch: int) -> dict[str, float]:
        weights = training.read(lambda folder: load_file(checkpoints.weights_file(folder, name, epoch)))
        metrics = {}
        for benchmark, gallery in validation_sets:
            prefix = f"{benchmark.protocol.title} " if titles else ""
            values = means(benchmark, gallery, composer_of(weights, benchmark, gallery))
            metrics |= {f"{prefix}{metric_name}": value for metric_name, value in values.items()}
        return metrics

    def make(folder: Path) -> None:
        rows = [{"epoch": epoch} | metrics_at(epoch) for epoch in epochs] if validation_sets else []
        checkpoints.write_log(pd.DataFrame(rows, columns=None if rows else ["epoch"]), folder / CURVE)

    curve = store.keep(f"{name}-validation", facts, make).read(lambda folder: pd.read_csv(folder / CURVE))
    return losses.merge(curve, on="epoch", how="left")
