"""The findings of `searle check`: data, images and user files, examined before anything is computed.

Each function takes a study's parameters and returns Findings. A Finding says what was expected and observed, and states
every problem in one sentence with what to do about it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from searle_lib.backbone.model import Backbone
from searle_lib.check.published import IMAGENET_SIZE, SIZES, SOURCES
from searle_lib.data import annotations, benchmarks, readable
from searle_lib.data.benchmarks import IMAGENET, Benchmark
from searle_lib.data.protocols import PROTOCOLS, dataset_name, protocol_of
from searle_lib.evaluation import other_models
from searle_lib.releases import folders, searle_files
from searle_lib.searle import concepts
from searle_lib.store.artefacts import DamagedArtefact, atomic_write, file_sha256
from searle_lib.store.records import Study
from searle_lib.study import plan

NAMED = 10  # images of a list that are named; the others are counted
VOCABULARY_SIZE = 20_931


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        subject: what was checked.
        expected: the published value, "" if there is none.
        observed: the value here.
        problems: a sentence for each problem.
        notes: a sentence for what differs from the published data and does not stop the study.
    """

    subject: str
    expected: str
    observed: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def data_root(values: Mapping, study: Study) -> Path:
    """Return the folder of a study's data sets; a relative path starts at the project's folder."""
    return study.root / Path(values["data_root"]).expanduser()


def check_data(values: Mapping, study: Study) -> Iterator[Finding]:
    """Check every split of every data set: its queries, its image list, and that each image can be decoded."""
    root, real = data_root(values, study), values["world"] == "real"
    policy, workers = values["missing_images"], values["workers"]
    galleries = set()
    for dataset, split in benchmarks.evaluated_splits(values["datasets"], values["evaluate"]):
        title = protocol_of(dataset_name(dataset)).title
        is_published = real and dataset in PROTOCOLS
        try:
            loaded = benchmarks.load(dataset, root, split, values["fashioniq_gallery"])
        except (FileNotFoundError, ValueError) as problem:
            yield _unusable(f"{title} {split}", problem, f"{title}: {SOURCES[dataset]}" if is_published else "")
            continue
        for benchmark in loaded:
            name = benchmark.gallery_name
            union = "-union" if name.endswith("-union") else ""
            published = SIZES[benchmark.name + union] if is_published else (None, None)
            yield _count(f"{benchmark.name}: queries", len(benchmark.queries), published[0])
            if name not in galleries:
                yield check_images(study, name, benchmark.gallery, published[1], policy, workers)
            galleries.add(name)
            if policy == "report":
                count = functools.partial(_count_complete, study, benchmark, workers)
                yield attempt(f"{benchmark.name}: evaluated", count)
    if plan.needs_imagenet(values):
        try:
            unlabeled = annotations.imagenet(root)
        except (FileNotFoundError, ValueError) as problem:
            yield _unusable("ImageNet test", problem, f"ImageNet: {SOURCES['imagenet']}" if real else "")
            return
        published = IMAGENET_SIZE if real else None
        yield check_images(study, IMAGENET, unlabeled, published, policy, workers)


def check_other_models(values: Mapping, study: Study) -> Iterator[Finding]:
    """Check that other models answer the queries of the study, with images of its galleries."""
    models = other_models.read_all(values["other_models"], values["methods"], study.root)
    try:
        splits = _complete_splits(values, study) if models else {}
    except (FileNotFoundError, ValueError):  # a problem of the data, which `check_data` states
        return
    loaded = [benchmark for of_split in splits.values() for benchmark in of_split]
    for model in models:
        try:
            evaluated, notes = other_models.select(model, loaded)
        except ValueError as problem:
            yield Finding(model.name, "", "not usable", (str(problem),))
        else:
            names = ", ".join(part.benchmark for part in evaluated.parts)
            yield Finding(model.name, "", f"scores of {names}", notes=tuple(notes))


def check_images(
    study: Study, name: str, table: pd.DataFrame, published: int | None, policy: str, workers: int
) -> Finding:
    """Check that a list of images is complete and that each image can be decoded; write the paths that cannot.

    Args:
        study: the study.
        name: of the list of images.
        table: columns image and path.
        published: the number of images in the published data set, if known.
        policy: error, or report: unreadable images are then a problem only if no image can be read.
        workers: threads that decode.
    """
    verdicts = readable.check_images(study.store, name, table, workers)
    kinds = (readable.GOOD, readable.MISSING, readable.BROKEN)
    good, missing, broken = (int((verdicts == kind).sum()) for kind in kinds)
    parts = [f"{len(table):,} listed", f"{good:,} readable"]
    parts += [f"{number:,} {kind}" for number, kind in ((missing, "missing"), (broken, "broken")) if number]
    problems = []
    file = study.reports / "unreadable" / f"{name.replace('/', '-')}.txt"
    file.unlink(missing_ok=True)
    if missing + broken:
        with atomic_write(file) as temporary:
            temporary.write_text("".join(f"{path}\n" for path in table["path"][(verdicts != readable.GOOD).numpy()]))
    if policy == "error" or not good:
        problems += _unreadable(name, table, verdicts, file)
    expected = "" if published is None else f"{published:,}"
    notes = _count(f"{name}: images", len(table), published).notes
    return Finding(f"{name}: images", expected, ", ".join(parts), tuple(problems), notes)


def check_user_files(values: Mapping, study: Study, clip: Backbone | None) -> Iterator[Finding]:
    """Check the vocabulary, and the user's files of phrases, concepts and OTI tokens."""
    if inverts(values):
        yield _vocabulary(study.path(values["vocabulary"]), values["world"] == "real")
    if values["phrases_file"] not in ("", "published"):
        yield attempt("phrases", lambda: _phrases(Path(study.path(values["phrases_file"]))))
    if not clip:
        return
    try:
        lists = _lists_to_invert(values, study)
    except (FileNotFoundError, ValueError):  # a problem of the data, which `check_data` states
        return
    for name, ids in lists.items():
        yield from _check_list(name, ids, values, study, clip)


def _check_list(name: str, ids: list[str], values: Mapping, study: Study, clip: Backbone) -> Iterator[Finding]:
    """Check the user's concepts and tokens of one list of images."""
    try:
        csv = folders.find_concepts(study.path(values["concepts_root"]), name, clip.name)
        folder = folders.find_tokens(study.path(values["oti_root"]), name)
    except (ValueError, OSError) as problem:
        yield Finding(f"{name}: user files", "", "not usable", (str(problem),))
        return
    if csv:
        yield attempt(
            f"{name}: concepts", lambda: f"{searle_files.read_concepts(csv, ids)[1].shape[1]} per image, of {csv.name}"
        )
    if folder:
        yield attempt(
            f"{name}: tokens", lambda: f"{len(searle_files.read_tokens(folder, ids, clip.width)[0]):,} of {folder}"
        )


def _lists_to_invert(values: Mapping, study: Study) -> dict[str, list[str]]:
    """Return the ids of every list of images that OTI may invert."""
    lists = {}
    root, policy, workers = data_root(values, study), values["missing_images"], values["workers"]
    if plan.uses_oti(values["methods"]):
        splits = _complete_splits(values, study)
        lists = {f"{n}/references": list(benchmarks.reference_table(loaded)["image"]) for n, loaded in splits.items()}
    if plan.trains_phi(values["methods"], values["phi_checkpoint"]):
        table = readable.drop_unreadable(study.store, IMAGENET, annotations.imagenet(root), policy, workers)
        lists[IMAGENET] = list(table["image"])
    return lists


def _complete_splits(values: Mapping, study: Study) -> dict[str, list[Benchmark]]:
    """Return the benchmarks of every split, as 02_concepts will keep them."""
    root = data_root(values, study)
    splits = benchmarks.load_all(values["datasets"], root, values["evaluate"], values["fashioniq_gallery"])
    return readable.drop_incomplete_queries(study.store, splits, values["missing_images"], values["workers"])


def inverts(values: Mapping) -> bool:
    """Return whether the study needs vocabulary and phrases; True if oti_root is unusable, which is another Finding."""
    try:
        return bool(plan.images_to_invert(values))
    except (ValueError, OSError):
        return True


def attempt(subject: str, examine: Callable[[], str]) -> Finding:
    """Return a Finding with the text that `examine` returns, or with the sentence of the error that it raises."""
    try:
        return Finding(subject, "", examine())
    except (ValueError, OSError, DamagedArtefact) as problem:  # ConnectionError is an OSError
        return Finding(subject, "", "not usable", (str(problem),))


def _count(subject: str, number: int, published: int | None) -> Finding:
    if published is None or number == published:
        return Finding(subject, "" if published is None else f"{published:,}", f"{number:,}")
    note = f"{subject}: there are {number:,} and the published data set has {published:,}; numbers will not compare."
    return Finding(subject, f"{published:,}", f"{number:,}", notes=(note,))


def _unusable(subject: str, problem: Exception, source: str) -> Finding:
    """Return a Finding about a data set that is absent, with where it comes from, or that cannot be read."""
    if not isinstance(problem, FileNotFoundError):
        return Finding(subject, "", "not readable", (str(problem),))
    return Finding(subject, "", "absent", (str(problem),), (f"where to get {source}.",) if source else ())


def _count_complete(study: Study, benchmark: Benchmark, workers: int) -> str:
    splits = {benchmark.split_name: [benchmark]}
    complete = readable.drop_incomplete_queries(study.store, splits, "report", workers)[benchmark.split_name]
    return "{} queries over {} images".format(*readable.counts(complete).iloc[0])


def _unreadable(name: str, table: pd.DataFrame, verdicts: Tensor, file: Path) -> list[str]:
    """Return one sentence about all missing images, and one about each of the first broken images."""
    sentences, missing = [], table[(verdicts == readable.MISSING).numpy()]
    if len(missing):
        names = ", ".join(missing["image"].head(NAMED)) + (", ..." if len(missing) > NAMED else "")
        sentences.append(
            f"{len(missing):,} of {len(table):,} images of {name} are missing ({names}; the first should be "
            f"{missing['path'].iloc[0]}; {file} lists all); download them, correct data_root, or set missing_images: "
            "report."
        )
    broken = table[(verdicts == readable.BROKEN).numpy()]
    sentences += readable.explain(broken["path"].head(NAMED))
    if len(broken) > NAMED:
        sentences.append(
            f"{len(broken):,} images of {name} are broken, and {NAMED} of them are named here; download again all that "
            f"{file} lists."
        )
    return sentences


def _vocabulary(path: str, real: bool) -> Finding:
    try:
        names = concepts.read_vocabulary(path).names
    except (FileNotFoundError, ValueError) as problem:
        return _unusable("vocabulary", problem, f"vocabulary: {SOURCES['vocabulary']}" if real else "")
    if not real or len(names) == VOCABULARY_SIZE:
        return Finding("vocabulary", "", f"{len(names):,} names")
    note = f"{path} has {len(names):,} names and Open Images V7 has {VOCABULARY_SIZE:,}; numbers will not compare."
    return Finding("vocabulary", f"{VOCABULARY_SIZE:,}", f"{len(names):,} names", notes=(note,))


def _phrases(path: Path) -> str:
    table = searle_files.read_phrases(path)
    return f"{len(table):,} phrases about {table['concept'].nunique():,} concepts; sha256 {file_sha256(path)}"
