"""A query of one's own on a finished study: any reference image, any sentence, every method of the study.

`load_retriever` reads what the methods need once. `query_of_study` and `query_of_image` state a query, `invert` adds
the methods that optimise, and `rank` ranks the gallery by one method. `answer` does all of it in one call, and
`retrieve` returns its answer as a table. Nothing here writes scores or records.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
from torch.optim.optimizer import register_optimizer_step_post_hook

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import Backbone, encode_images, read_clip
from searle_lib.data import benchmarks, images
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import contract, own_methods
from searle_lib.evaluation.composers import load_composers, load_networks
from searle_lib.evaluation.contract import Composer, Sources
from searle_lib.evaluation.methods import METHODS, Method, by_name
from searle_lib.fti4cir import network, patches
from searle_lib.ranking import search_blocks
from searle_lib.searle import concepts, oti, phi, phrase_bank, phrases
from searle_lib.store import bars
from searle_lib.store.artefacts import digest, file_sha256
from searle_lib.store.records import MissingInput, StaleInput, Study

INVERTS = "03_oti"  # a method that needs this notebook optimises a pseudo-word, which takes long for a new image
LIST = "own"  # the name of the image list that holds an image of one's own

Progress = Callable[[float], None]  # called with the share of the work that is done, in (0, 1]


def _ignore(share: float) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Retriever:
    """What a study's methods need to answer a query.

    Args:
        study: the study.
        clip: its CLIP.
        benchmarks: its benchmarks by name, as in "cirr/val".
        methods: its methods by name, in order.
        composers: by split and method; they know the references of the split's queries.
        reasons: why a method is left out, by method.
        galleries: embeddings by name, read when they are first used.
    """

    study: Study
    clip: Backbone
    benchmarks: dict[str, Benchmark]
    methods: dict[str, Method]
    composers: dict[str, dict[str, Composer]]
    reasons: dict[str, str]
    galleries: dict[str, Embeddings] = field(default_factory=dict)

    def gallery(self, name: str) -> Embeddings:
        """Return the embeddings of a gallery."""
        if name not in self.galleries:
            self.galleries[name] = embeddings.read(self.study, name)
        return self.galleries[name]


@dataclass(frozen=True)
class Query:
    """A reference image, and what is known about it.

    Args:
        benchmark: its gallery is ranked.
        reference: the id of the reference.
        path: the file of the reference.
        composers: by method; they know the reference.
        targets: ids of the images that answer the query; empty if they are secret or not known.
        excluded: the image of the gallery that takes no rank, "" if there is none.
    """

    benchmark: Benchmark
    reference: str
    path: Path
    composers: dict[str, Composer]
    targets: tuple[str, ...] = ()
    excluded: str = ""


@dataclass(frozen=True)
class Ranking:
    """What one method retrieves for one query.

    Args:
        best: ids of the best images, best first.
        scores: their cosines.
        target: the rank of the first target, 0 is best; -1 if no target is known.
    """

    best: list[str]
    scores: list[float]
    target: int


@dataclass(frozen=True)
class Answer:
    """What the methods retrieve for one query.

    Args:
        query: the query.
        rankings: by method.
        reasons: why a method has none, by method.
    """

    query: Query
    rankings: dict[str, Ranking]
    reasons: dict[str, str]


def load_retriever(study: Study, device: str = "auto") -> Retriever:
    """Read what the methods of a finished study need. Raises MissingInput or StaleInput as `Study.read` does."""
    study = Study(study.name, study.root, study.store, study.reports)  # so that no notebook's record lists these reads
    record = study.find("06_retrieval")
    names = record.parameters["methods"] if record else [name for name, one in METHODS.items() if not one.checkpoint]
    clip = read_clip(study, device)
    composers, reasons = load_composers(study, clip, names)
    loaded = {benchmark.name: benchmark for benchmark in benchmarks.read(study)}
    return Retriever(study, clip, loaded, by_name(names, study.root), composers, reasons)


def query_of_study(retriever: Retriever, benchmark: str, row: int) -> Query:
    """Return a query of a benchmark, by the benchmark's name and the row of its table of queries."""
    facts = retriever.benchmarks[benchmark].queries.iloc[row]
    return _query_of_reference(retriever, benchmark, facts["reference"], tuple(facts["ground_truths"]))


def query_of_image(retriever: Retriever, benchmark: str, path: Path, image: str = "") -> Query:
    """Return a query with an image file as its reference, for all methods but those that invert images.

    Args:
        retriever: from `load_retriever`.
        benchmark: the name of the benchmark whose gallery is ranked.
        path: the image file.
        image: the id of the image, by default the name of its file. OTI's random numbers depend on it.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be decoded.
    """
    query = Query(retriever.benchmarks[benchmark], image or path.stem, path, {})
    vector = _embed(retriever.clip, query)
    for method in retriever.methods:
        if method not in retriever.reasons and INVERTS not in retriever.methods[method].needs:
            query.composers[method] = _composer(retriever, query, vector, method, _ignore)
    return query


def invert(retriever: Retriever, query: Query, progress: Progress) -> dict[str, str]:
    """Add the methods to a query that optimise a pseudo-word of its reference, and return why one cannot be added.

    The settings are those of the study's 03_oti.
    """
    reasons = {}
    for method in slow_methods(retriever, query):
        try:
            query.composers[method] = _composer(retriever, query, _embed(retriever.clip, query), method, progress)
        except (MissingInput, StaleInput, LookupError, ValueError) as problem:
            reasons[method] = str(problem)
    return reasons


def slow_methods(retriever: Retriever, query: Query) -> list[str]:
    """Return the methods that `invert` would add to a query."""
    others = [method for method in retriever.methods if method not in {*query.composers, *retriever.reasons}]
    return [method for method in others if INVERTS in retriever.methods[method].needs]


def rank(retriever: Retriever, query: Query, method: str, sentences: Sequence[str], depth: int = 10) -> Ranking:
    """Rank the gallery by one method for a query with a caption of its own or of the user.

    Args:
        retriever: from `load_retriever`.
        query: the query.
        method: one of those in its composers.
        sentences: forms of one caption, as in a benchmark's queries; their features are averaged.
        depth: how many images to return.
    """
    gallery = retriever.gallery(query.benchmark.gallery_name)
    queries = contract.compose(query.composers[method], [query.reference], [sentences])
    targets = gallery.rows(query.targets).unsqueeze(0)  # [1, G]
    excluded = gallery.rows([query.excluded]) if query.excluded else None
    answers = search_blocks(queries, gallery.unit, k=depth, candidates=targets, excluded=excluded)
    best = [gallery.ids[row] for row in answers.top[0].tolist()]
    first = min((place for place in answers.ranks[0].tolist() if place >= 0), default=-1)
    return Ranking(best, answers.scores[0].tolist(), first)


def answer(
    retriever: Retriever,
    image: Path | str,
    caption: str,
    benchmark: str = "",
    methods: Sequence[str] = (),
    depth: int = 10,
) -> Answer:
    """Rank a gallery for an image and a sentence by every method, those included that optimise a pseudo-word.

    A bar shows the optimisation.

    Args:
        retriever: from `load_retriever`.
        image: an image file, or the id of a reference of the benchmark.
        caption: the relative caption.
        benchmark: the name of the benchmark whose gallery is ranked; by default that of the running example.
        methods: by default all methods of the study that can answer.
        depth: images per method.

    Raises:
        FileNotFoundError: if the image is neither a file nor a reference.
        ValueError: if the study has no such benchmark, or cannot answer by one of the methods.
    """
    name = benchmark or benchmarks.example(retriever.benchmarks.values()).benchmark.name
    if name not in retriever.benchmarks:
        raise ValueError(f"the study has no benchmark {name}; choose one of {', '.join(retriever.benchmarks)}.")
    reasons = dict(retriever.reasons)
    if str(image) in set(retriever.benchmarks[name].queries["reference"]):
        query = _query_of_reference(retriever, name, str(image))
    elif Path(image).is_file():
        query = query_of_image(retriever, name, Path(image))
        if {*(methods or retriever.methods)} & {*slow_methods(retriever, query)}:
            with bars.bar(100, "optimising a pseudo-word") as bar:
                reasons |= invert(retriever, query, lambda share: bar.update(round(100 * share) - bar.n))
    else:
        raise FileNotFoundError(f"image {image} is neither a file nor a reference of {name}; correct the path or id.")
    names = methods or [method for method in retriever.methods if method in query.composers]
    missing = next((method for method in names if method not in query.composers), None)
    if missing:
        raise ValueError(f"{missing} cannot answer: {reasons.get(missing, 'the study does not have it.')}")
    return Answer(query, {method: rank(retriever, query, method, [caption], depth) for method in names}, reasons)


def retrieve(
    retriever: Retriever,
    image: Path | str,
    caption: str,
    benchmark: str = "",
    methods: Sequence[str] = (),
    depth: int = 10,
) -> pd.DataFrame:
    """Return what each method retrieves for an image and a sentence; arguments and errors are those of `answer`.

    Returns:
        Columns method, rank (from 0), image, path and score (cosine), best first.
    """
    response = answer(retriever, image, caption, benchmark, methods, depth)
    gallery = response.query.benchmark.gallery
    paths = dict(zip(gallery["image"], gallery["path"], strict=True))
    tables = []
    for method, ranking in response.rankings.items():
        table = pd.DataFrame({"image": ranking.best, "score": ranking.scores})
        tables.append(table.assign(method=method, rank=range(len(table)), path=table["image"].map(paths)))
    return pd.concat(tables, ignore_index=True)[["method", "rank", "image", "path", "score"]]


def oti_settings(study: Study) -> oti.Settings:
    """Return the settings that a study's 03_oti ran with."""
    values = study.settings(INVERTS)
    names = [one.name for one in fields(oti.Settings) if one.name != "seed"]
    return oti.Settings(seed=values["seed"], **{name: values[f"oti_{name}"] for name in names})


def _query_of_reference(retriever: Retriever, name: str, image: str, targets: tuple[str, ...] = ()) -> Query:
    benchmark = retriever.benchmarks[name]
    path = benchmark.gallery.loc[benchmark.gallery["image"] == image, "path"].iloc[0]
    excluded = image if benchmark.protocol.excludes_reference else ""
    return Query(benchmark, image, Path(path), retriever.composers[benchmark.split_name], targets, excluded)


def _embed(clip: Backbone, query: Query) -> Embeddings:
    pixels = images.to_pixels(images.read(query.path), *clip.pixel_form)
    key = digest([query.reference, file_sha256(query.path), clip.sha256, clip.precision, clip.preprocess])
    return Embeddings(LIST, (query.reference,), encode_images(clip, pixels.unsqueeze(0)).cpu(), key, clip.sha256)


def _composer(retriever: Retriever, query: Query, vector: Embeddings, method: str, progress: Progress) -> Composer:
    """Return a method's composer that knows the reference of a query and no other image."""
    study, clip, needs = retriever.study, retriever.clip, retriever.methods[method].needs
    sources = Sources(clip, vector)
    if INVERTS in needs:
        sources = replace(sources, pseudo_words=_optimise(study, clip, vector, progress))
    if "04_phi" in needs:
        sources = replace(sources, trained_phi=phi.read(study, clip))
    if retriever.methods[method].checkpoint:
        sources = replace(sources, networks=load_networks(study, clip, {method: retriever.methods[method]}))
    if "05_fti4cir" in needs:
        table = pd.DataFrame({"image": [query.reference], "path": [str(query.path)]})
        parts, model = study.settings("05_fti4cir")["fti_words"], network.read(study, clip).module
        words = patches.predict_words(clip, model, table, images.DEFAULT_READER, parts)
        sources = replace(sources, image_words=words)
    known = retriever.composers[query.benchmark.split_name].get(method)
    return own_methods.build(method, retriever.methods[method], sources, getattr(known, "setting", None))


def _optimise(study: Study, clip: Backbone, vector: Embeddings, progress: Progress) -> Embeddings:
    """Return OTI's pseudo-word of one image, as 03_oti would compute it."""
    settings, values = oti_settings(study), study.settings("02_concepts")
    names, depth, batch = concepts.read_names(study), values["concept_depth"], values["text_batch_size"]
    nearest = concepts.associate(study.store, clip, vector, names, depth, batch_size=batch)
    bank = phrase_bank.prepare(study.store, clip, phrases.read(study))
    steps = itertools.count(1)
    hook = register_optimizer_step_post_hook(lambda *_: progress(next(steps) / settings.steps))
    try:
        words = oti.optimise(clip, vector, nearest, bank, range(1), settings)["ema"]
    finally:
        hook.remove()
    return Embeddings(vector.name, vector.ids, words, vector.key, clip.sha256)
