"""What a study needs, looked at before anything is computed: data, images, models, what is given, the machine.

Each check is a Finding: what was expected, what was found, and every problem with its remedy.
"""

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from searle_lib import (
    annotations,
    authors,
    backbone,
    benchmarks,
    captions,
    concepts,
    distillation,
    fti_training,
    plan,
    readable,
)
from searle_lib.artefacts import Store, file_sha256
from searle_lib.backbone import Backbone
from searle_lib.benchmarks import Benchmark
from searle_lib.workspace import Workspace

NAMED = 10  # images that are named of each list; the others are counted
VOCABULARY_SIZE = 20_931


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `expected` is "" where nothing is published; problems are whole sentences."""

    what: str
    expected: str
    found: str
    problems: tuple[str, ...] = ()


def data(values: Mapping, here: Workspace) -> Iterator[Finding]:
    """Every split of every data set: its queries, its image list, and each image decoded."""
    real = values["world"] == "real"
    policy, workers = values["missing_images"], values["workers"]
    seen = set()
    for dataset, split in benchmarks.names(values["datasets"], values["evaluate"]):
        title = benchmarks.PROTOCOLS[dataset].title
        try:
            loaded = benchmarks.load(dataset, here.data, split, values["fashioniq_gallery"])
        except (FileNotFoundError, ValueError) as problem:
            yield Finding(f"{title} {split}", "", "not readable", (str(problem),))
            continue
        for benchmark in loaded:
            union = "-union" if benchmark.images.endswith("-union") else ""
            published = benchmarks.SIZES[benchmark.name + union] if real else (None, None)
            yield _count(f"{benchmark.name}: queries", len(benchmark.queries), published[0])
            if benchmark.images not in seen:
                yield images(here, benchmark.images, benchmark.gallery, published[1], policy, workers)
            seen.add(benchmark.images)
            if policy == "report":
                yield _tried(f"{benchmark.name}: evaluated", functools.partial(_left, here, benchmark, workers))
    if plan.needs_imagenet(values):
        try:
            unlabeled = annotations.imagenet(here.data)
        except FileNotFoundError as problem:
            yield Finding("ImageNet test", "", "not readable", (str(problem),))
            return
        published = benchmarks.IMAGENET_SIZE if real else None
        yield images(here, plan.IMAGENET, unlabeled, published, policy, workers)


def _left(here: Workspace, benchmark: Benchmark, workers: int) -> str:
    left = readable.only(here.store, {benchmark.name: [benchmark]}, "report", workers)
    return "{} queries over {} images".format(*readable.counts(left).iloc[0])


def images(
    here: Workspace, name: str, table: pd.DataFrame, published: int | None, policy: str, workers: int
) -> Finding:
    """Whether a list of images is complete and each can be decoded; with policy "report" those that cannot are no
    problem unless none is left."""
    found = readable.verdicts(here.store, name, table, workers)
    good, missing, broken = (int((found == kind).sum()) for kind in (readable.GOOD, readable.MISSING, readable.BROKEN))
    parts = [f"{len(table):,} listed", f"{good:,} readable"]
    parts += [f"{n:,} {what}" for n, what in ((missing, "missing"), (broken, "broken")) if n]
    problems = list(_count(f"{name}: images", len(table), published).problems)
    file = here.reports / "unreadable" / f"{name.replace('/', '-')}.txt"
    file.unlink(missing_ok=True)
    if missing + broken:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{path}\n" for path in table["path"][(found != readable.GOOD).numpy()]))
    if policy == "error" or not good:
        problems += _unreadable(name, table, found, file)
    expected = "" if published is None else f"{published:,}"
    return Finding(f"{name}: images", expected, ", ".join(parts), tuple(problems))


def _unreadable(name: str, table: pd.DataFrame, found: Tensor, file: Path) -> list[str]:
    """A sentence on the images that are missing, and one on each of the first few that are broken."""
    said, missing = [], table[(found == readable.MISSING).numpy()]
    if len(missing):
        names = ", ".join(missing["image"].head(NAMED)) + (", ..." if len(missing) > NAMED else "")
        said.append(
            f"{len(missing):,} of {len(table):,} images of {name} are missing ({names}; the first would be "
            f"{missing['path'].iloc[0]}; all in {file}); download them, correct "
            "data_root, or set missing_images: report."
        )
    broken = table[(found == readable.BROKEN).numpy()]
    said += readable.reasons(broken["path"].head(NAMED))
    if len(broken) > NAMED:
        said.append(f"{len(broken):,} images of {name} are broken, of which {NAMED} are named here and all in {file}.")
    return said


def clip(values: Mapping, here: Workspace) -> tuple[Backbone | None, Finding]:
    """The CLIP of the study, fetched if it is a published one, and its sha256."""
    try:
        loaded = backbone.load(here.path(values["clip_model"]), values["device"], values["precision"])
    except (ValueError, ConnectionError, OSError) as problem:
        return None, Finding("CLIP", values["clip_model"], "not usable", (str(problem),))
    sizes = f"{loaded.dimension} numbers an image, tokens of {loaded.width}"
    return loaded, Finding("CLIP", "", f"{loaded.name} on {loaded.device}: {sizes}; sha256 {loaded.sha256}")


def models(values: Mapping, here: Workspace, loaded: Backbone | None) -> Iterator[Finding]:
    """The other weights: φ where it is given, the language model, FTI4CIR's network or what its captions need."""
    methods, checkpoint = values["methods"], values["phi_checkpoint"]
    if loaded and "SEARLE" in methods and not plan.is_trained(checkpoint):
        yield _tried("φ", lambda: _phi(here, loaded, here.path(checkpoint)))
    if _writes(values) and not values["phrases_file"]:
        yield _hub("language model", "language_model", here.path(values["language_model"]))
    if "FTI4CIR" not in methods:
        return
    if values["fti_weights"]:
        if loaded:
            yield _tried("FTI4CIR's network", lambda: _fti(here, loaded, here.path(values["fti_weights"])))
    elif Path(here.path(values["captions_file"])).is_file():
        yield _tried("captions", lambda: _captions(values, here))
    else:
        yield _hub("BLIP", "blip_model", here.path(values["blip_model"]))
        there = importlib.util.find_spec("spacy") and importlib.util.find_spec("en_core_web_sm")
        remedy = "run: pip install spacy && python -m spacy download en_core_web_sm."
        problem = () if there else (f"splitting captions needs spaCy and its model; {remedy}",)
        yield Finding("spaCy", "", "here" if there else "absent", problem)


def given(values: Mapping, here: Workspace, loaded: Backbone | None) -> Iterator[Finding]:
    """The vocabulary, and phrases, concepts and tokens that the study is given."""
    if {"SEARLE-OTI", "FTI4CIR"} & set(values["methods"]) or plan.teaches_phi(
        values["methods"], values["phi_checkpoint"]
    ):
        yield _tried("vocabulary", lambda: _vocabulary(here.path(values["vocabulary"]), values["world"] == "real"))
    if values["phrases_file"] not in ("", "published"):
        yield _tried("phrases", lambda: _phrases(Path(here.path(values["phrases_file"]))))
    try:
        lists = _reference_lists(values, here)
    except (FileNotFoundError, ValueError):  # told with the data
        return
    for name, ids in lists.items():
        yield from _given_of(name, ids, values, here, loaded)


def _given_of(
    name: str, ids: list[str], values: Mapping, here: Workspace, loaded: Backbone | None
) -> Iterator[Finding]:
    if not loaded:
        return
    try:
        csv = plan.given_concepts(here.path(values["concepts_root"]), name, loaded.name)
        folder = plan.given_tokens(here.path(values["oti_root"]), name)
    except (ValueError, OSError) as problem:
        yield Finding(f"{name}: given", "", "not usable", (str(problem),))
        return
    if csv:
        yield _tried(
            f"{name}: concepts", lambda: f"{authors.read_concepts(csv, ids)[1].shape[1]} an image, of {csv.name}"
        )
    if folder:
        yield _tried(
            f"{name}: tokens", lambda: f"{len(authors.read_tokens(folder, ids, loaded.width)[0]):,} of {folder}"
        )


def _reference_lists(values: Mapping, here: Workspace) -> dict[str, list[str]]:
    """Ids of every list of images that may be inverted."""
    lists = {}
    if "SEARLE-OTI" in values["methods"]:
        pairs = (values["datasets"], here.data, values["evaluate"], values["fashioniq_gallery"])
        splits = readable.only(here.store, benchmarks.load_all(*pairs), values["missing_images"], values["workers"])
        lists = {f"{n}/references": list(benchmarks.reference_table(loaded)["image"]) for n, loaded in splits.items()}
    if plan.teaches_phi(values["methods"], values["phi_checkpoint"]):
        unlabeled = annotations.imagenet(here.data)
        table = readable.of(here.store, plan.IMAGENET, unlabeled, values["missing_images"], values["workers"])
        lists[plan.IMAGENET] = list(table["image"])
    return lists


def _tried(what: str, look) -> Finding:
    """A Finding of what `look` says, or of the sentence with which it refuses."""
    try:
        return Finding(what, "", look())
    except (ValueError, OSError) as problem:  # ConnectionError is one of them
        return Finding(what, "", "not usable", (str(problem),))


def _count(what: str, found: int, published: int | None) -> Finding:
    if published is None or found == published:
        return Finding(what, "" if published is None else f"{published:,}", f"{found:,}")
    remedy = f"{what}: there are {found:,} and the published data set has {published:,}; download its lists again."
    return Finding(what, f"{published:,}", f"{found:,}", (remedy,))


def _phi(here: Workspace, loaded: Backbone, checkpoint: str) -> str:
    distillation.pretrained(here.store, loaded, checkpoint)
    return f"fits {loaded.name}; sha256 {file_sha256(distillation.file_of(checkpoint))}"


def _fti(here: Workspace, loaded: Backbone, path: str) -> str:
    fti_training.from_released(Store(here.store.root), loaded, path)
    return f"fits {loaded.name}; sha256 {file_sha256(Path(path))}"


def _writes(values: Mapping) -> bool:
    """Whether phrases are needed; so they are where an oti_root cannot be used, which is told with the lists."""
    try:
        return plan.writes_phrases(values)
    except (ValueError, OSError):
        return True


def _captions(values: Mapping, here: Workspace) -> str:
    ids = list(annotations.imagenet(here.data)["image"])
    read = captions.read(here.path(values["captions_file"]), ids, values["caption_split"])
    return f"{len(read.ids):,} of {len(ids):,} images"


def _vocabulary(path: str, real: bool) -> str:
    names = concepts.read_vocabulary(path).names
    if real and len(names) != VOCABULARY_SIZE:
        raise ValueError(
            f"{path} has {len(names):,} names and Open Images V7 has {VOCABULARY_SIZE:,}; download "
            "oidv7-class-descriptions.csv again, or leave it if another vocabulary is meant."
        )
    return f"{len(names):,} names"


def _phrases(path: Path) -> str:
    table = authors.read_phrases(path)
    return f"{len(table):,} phrases about {table['concept'].nunique():,} concepts; sha256 {file_sha256(path)}"


def _hub(what: str, parameter: str, name: str) -> Finding:
    """Whether a model is a folder here, or in the hub's cache; the sha256 of its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder, said = Path(name), name
    if not folder.is_dir():
        repository, _, revision = name.partition("@")
        try:
            folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
            problem = f"{parameter} {name} is neither a folder nor in the hub's cache; run: {command}."
            return Finding(what, name, "absent", (problem,))
        said = f"{repository} at {folder.name}"
    files = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin")]
    if not files:
        problem = f"{parameter} {name} has no weights in {folder} (*.safetensors or *.bin); download it again."
        return Finding(what, name, "no weights", (problem,))
    return Finding(what, "", f"{said}; sha256 of {files[0].name} {file_sha256(files[0])}")
