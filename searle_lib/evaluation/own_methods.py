"""Build a method's composer; a class of one's own stands behind a check, so that its mistakes are one sentence.

The check refuses what would rank silently wrong: vectors of another shape, not finite, or not of unit norm.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation.contract import FUSIONS, PROVIDES, Composer, Fusion, Sources
from searle_lib.evaluation.methods import Method
from searle_lib.store.artefacts import digest
from searle_lib.store.code import code_digest

TOLERANCE = 1e-3  # of a unit norm
TRIED = 2  # queries that a method of one's own composes before anything is ranked


def build(name: str, method: Method, sources: Sources, setting: Sequence[float] | None = None) -> Composer:
    """Return a method's composer.

    Args:
        name: of the method.
        method: the method.
        sources: what composers are made from; a class of one's own gets only what its `needs` name.
        setting: of a method that has a grid of settings; by default the first one of the grid.

    Raises:
        ValueError: if a class of one's own raises.
    """
    if method.file:
        return OwnComposer(name, method, sources, setting)
    return _construct(method.composer_class(), sources, setting)


def try_out(composer: Composer, benchmark: Benchmark) -> None:
    """Compose the first queries of a benchmark. Raises ValueError as `OwnComposer` does."""
    queries = benchmark.queries.head(TRIED)
    composer.compose(list(queries["reference"]), list(queries["sentences"]))


class OwnComposer:
    """A composer of one's own behind a check.

    Its key holds the file, the code of this library that the class reaches, and the words or network that it uses.
    Every call raises ValueError if the class raises, or returns anything but unit vectors [N, d] or a Fusion of them.
    """

    def __init__(self, name: str, method: Method, sources: Sources, setting: Sequence[float] | None = None):
        self.subject = f"method {name} of {method.file}"
        self.dimension = sources.embeddings.vectors[:1].shape[1]
        absent = {field: None for notebook, field in PROVIDES.items() if notebook not in method.needs}
        sources = replace(sources, networks={}, **absent)
        inputs = [getattr(getattr(sources, field), "key", "") for field in PROVIDES.values()]
        with self._one_sentence():
            own_class = method.composer_class()
            self.inner = _construct(own_class, sources, setting)
            facts = [name, method.file_sha256(), code_digest(own_class), *inputs, setting]
            self.key = f"{digest(facts)} {getattr(self.inner, 'key', '')}"
        for attribute in ("grid", "setting"):  # of a class whose setting is chosen on other data
            if hasattr(self.inner, attribute):
                setattr(self, attribute, getattr(self.inner, attribute))
        if hasattr(self.inner, "subject_words"):
            self.subject_words = self.inner.subject_words

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor | Fusion:
        with self._one_sentence():
            composed = self.inner.compose(references, sentences)
        return self._checked(composed, len(references))

    def parts(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Sequence[Tensor]:
        with self._one_sentence():
            return self.inner.parts(references, sentences)

    def fuse(self, parts: Sequence[Tensor], setting: Sequence[float]) -> Tensor | Fusion:
        with self._one_sentence():
            composed = self.inner.fuse(parts, setting)
        return self._checked(composed, len(parts[0]))

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except Exception as problem:
            reason = " ".join(str(problem).split())[:160].rstrip(".")
            raise ValueError(
                f"{self.subject} raises {type(problem).__name__} ({reason}); correct its class."
            ) from problem

    def _checked(self, composed: Tensor | Fusion, count: int) -> Tensor | Fusion:
        vectors, shape = composed, [count, self.dimension]
        if isinstance(composed, Fusion):
            vectors, weights = composed.vectors, [float(weight) for weight in composed.weights]
            shape = [count, len(weights), self.dimension]
            if composed.kind not in FUSIONS:
                raise ValueError(f"{self.subject} names the fusion {composed.kind}; name {' or '.join(FUSIONS)}.")
            if not any(weights) or (composed.kind == "product" and min(weights) < 0):
                raise ValueError(f"{self.subject} has the weights {weights}; none of a product is negative, nor all 0.")
        if not isinstance(vectors, Tensor) or list(vectors.shape) != shape:
            form = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"{self.subject} returns {form} for {count} queries; return a tensor of {shape}.")
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{self.subject} returns a vector that is not finite; correct its compose.")
        norms = vectors.float().norm(dim=-1)
        if (norms - 1).abs().max() > TOLERANCE:
            row = int((norms - 1).abs().flatten().argmax())
            raise ValueError(
                f"{self.subject} returns a vector of norm {norms.flatten()[row]:.3g}; return vectors of unit norm."
            )
        return composed


def _construct(composer_class: type, sources: Sources, setting: Sequence[float] | None) -> Composer:
    return composer_class(sources) if setting is None else composer_class(sources, setting)
