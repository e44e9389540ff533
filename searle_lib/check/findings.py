"""What a study needs, looked at before anything is computed: data, images, models, and what the user brings.

Each check is a Finding: what was expected, what was found, and every problem with its remedy.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from searle_lib.backbone.model import Backbone, load_clip
from searle_lib.data import annotations, benchmarks, readable
from searle_lib.data.benchmarks import IMAGENET, Benchmark
from searle_lib.fti4cir import captions, network
from searle_lib.releases import folders, searle_files
from searle_lib.releases.folders import is_trained
from searle_lib.searle import concepts, phi
from searle_lib.store.artefacts import Damaged, file_sha256
from searle_lib.store.records import Study
from searle_lib.study import plan

NAMED = 10  # images that are named of each list; the others are counted
VOCABULARY_SIZE = 20_931


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `expected` is "" where nothing is published; problems are whole sentences."""

    what: str
    expected: str
    found: str
    problems: tuple[str, ...] = ()


def data_root(values: Mapping, study: Study) -> Path:
    """Return the folder in which a study's data sets are looked for; a relative one lies below the project."""
    return study.root / Path(values["data_root"]).expanduser()


def data(values: Mapping, study: Study) -> Iterator[Finding]:
    """Look at every split of every data set: its queries, its image list, and each image decoded."""
    root, real = data_root(values, study), values["world"] == "real"
    policy, workers = values["missing_images"], values["workers"]
    seen = set()
    for dataset, split in benchmarks.names(values["datasets"], values["evaluate"]):
        title = benchmarks.PROTOCOLS[dataset].title
        try:
            loaded = benchmarks.load(dataset, root, split, values["fashioniq_gallery"])
        except (FileNotFoundError, ValueError) as problem:
            yield Finding(f"{title} {split}", "", "not readable", (str(problem),))
            continue
        for benchmark in loaded:
            union = "-union" if benchmark.images.endswith("-union") else ""
            published = benchmarks.SIZES[benchmark.name + union] if real else (None, None)
            yield _count(f"{benchmark.name}: queries", len(benchmark.queries), published[0])
            if benchmark.images not in seen:
                yield images(study, benchmark.images, benchmark.gallery, published[1], policy, workers)
            seen.add(benchmark.images)
            if policy == "report":
                yield _tried(f"{benchmark.name}: evaluated", functools.partial(_evaluated, study, benchmark, workers))
    if plan.needs_imagenet(values):
        try:
            unlabeled = annotations.imagenet(root)
        except FileNotFoundError as problem:
            yield Finding("ImageNet test", "", "not readable", (str(problem),))
            return
        published = benchmarks.IMAGENET_SIZE if real else None
        yield images(study, IMAGENET, unlabeled, published, policy, workers)


def _evaluated(study: Study, benchmark: Benchmark, workers: int) -> str:
    whole = readable.only(study.store, {benchmark.of_split: [benchmark]}, "report", workers)
    return "{} queries over {} images".format(*readable.counts(whole[benchmark.of_split]).iloc[0])


def images(study: Study, name: str, table: pd.DataFrame, published: int | None, policy: str, workers: int) -> Finding:
    """Look whether a list of images is complete and each can be decoded.

    With policy "report" those that cannot are no problem unless no other is in the list.
    """
    found = readable.verdicts(study.store, name, table, workers)
    good, missing, broken = (int((found == kind).sum()) for kind in (readable.GOOD, readable.MISSING, readable.BROKEN))
    parts = [f"{len(table):,} listed", f"{good:,} readable"]
    parts += [f"{n:,} {what}" for n, what in ((missing, "missing"), (broken, "broken")) if n]
    problems = list(_count(f"{name}: images", len(table), published).problems)
    file = study.reports / "unreadable" / f"{name.replace('/', '-')}.txt"
    file.unlink(missing_ok=True)
    if missing + broken:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{path}\n" for path in table["path"][(found != readable.GOOD).numpy()]))
    if policy == "error" or not good:
        problems += _unreadable(name, table, found, file)
    expected = "" if published is None else f"{published:,}"
    return Finding(f"{name}: images", expected, ", ".join(parts), tuple(problems))


def _unreadable(name: str, table: pd.DataFrame, found: Tensor, file: Path) -> list[str]:
    """Return a sentence on the images that are missing, and one on each of the first few that are broken."""
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


def clip(values: Mapping, study: Study) -> tuple[Backbone | None, Finding]:
    """Return the CLIP of the study, fetched if it is a published one, and a Finding with its sha256."""
    try:
        loaded = load_clip(
            study.path(values["clip_model"]), values["device"], values["precision"], values["preprocess"]
        )
    except (ValueError, ConnectionError, OSError) as problem:
        return None, Finding("CLIP", values["clip_model"], "not usable", (str(problem),))
    sizes = f"{loaded.dimension} numbers an image, tokens of {loaded.width}"
    return loaded, Finding("CLIP", "", f"{loaded.name} on {loaded.device}: {sizes}; sha256 {loaded.sha256}")


def models(values: Mapping, study: Study, loaded: Backbone | None) -> Iterator[Finding]:
    """Look at the other weights: a φ of a file, the language model, FTI4CIR's network or what its captions need."""
    methods, checkpoint = values["methods"], values["phi_checkpoint"]
    if loaded and "SEARLE" in methods and not is_trained(checkpoint):
        yield _tried("φ", lambda: _phi(study, loaded, study.path(checkpoint)))
    if _inverts(values) and not values["phrases_file"]:
        yield _hub("language model", "language_model", study.path(values["language_model"]))
    if "FTI4CIR" not in methods:
        return
    if values["fti_weights"]:
        if loaded:
            yield _tried("FTI4CIR's network", lambda: _fti(study, loaded, study.path(values["fti_weights"])))
    elif Path(study.path(values["captions_file"])).is_file():
        yield _tried("captions", lambda: _captions(values, study))
    else:
        yield _hub("BLIP", "blip_model", study.path(values["blip_model"]))
        there = importlib.util.find_spec("spacy") and importlib.util.find_spec("en_core_web_sm")
        remedy = "run: pip install spacy && python -m spacy download en_core_web_sm."
        problem = () if there else (f"splitting captions needs spaCy and its model; {remedy}",)
        yield Finding("spaCy", "", "here" if there else "absent", problem)


def brought(values: Mapping, study: Study, loaded: Backbone | None) -> Iterator[Finding]:
    """Look at the vocabulary, and at phrases, concepts and tokens that the user brings."""
    if _inverts(values):
        yield _tried("vocabulary", lambda: _vocabulary(study.path(values["vocabulary"]), values["world"] == "real"))
    if values["phrases_file"] not in ("", "published"):
        yield _tried("phrases", lambda: _phrases(Path(study.path(values["phrases_file"]))))
    try:
        lists = _reference_lists(values, study)
    except (FileNotFoundError, ValueError):  # a problem of the data, of which `data` tells
        return
    for name, ids in lists.items():
        yield from _brought_of(name, ids, values, study, loaded)


def _brought_of(name: str, ids: list[str], values: Mapping, study: Study, loaded: Backbone | None) -> Iterator[Finding]:
    if not loaded:
        return
    try:
        csv = folders.find_concepts(study.path(values["concepts_root"]), name, loaded.name)
        folder = folders.find_tokens(study.path(values["oti_root"]), name)
    except (ValueError, OSError) as problem:
        yield Finding(f"{name}: given", "", "not usable", (str(problem),))
        return
    if csv:
        yield _tried(
            f"{name}: concepts", lambda: f"{searle_files.read_concepts(csv, ids)[1].shape[1]} an image, of {csv.name}"
        )
    if folder:
        yield _tried(
            f"{name}: tokens", lambda: f"{len(searle_files.read_tokens(folder, ids, loaded.width)[0]):,} of {folder}"
        )


def _reference_lists(values: Mapping, study: Study) -> dict[str, list[str]]:
    """Return the ids of every list of images that may be inverted."""
    lists = {}
    if "SEARLE-OTI" in values["methods"]:
        whole = benchmarks.load_all(
            values["datasets"], data_root(values, study), values["evaluate"], values["fashioniq_gallery"]
        )
        splits = readable.only(study.store, whole, values["missing_images"], values["workers"])
        lists = {f"{n}/references": list(benchmarks.reference_table(loaded)["image"]) for n, loaded in splits.items()}
    if plan.trains_phi(values["methods"], values["phi_checkpoint"]):
        unlabeled = annotations.imagenet(data_root(values, study))
        table = readable.of(study.store, IMAGENET, unlabeled, values["missing_images"], values["workers"])
        lists[IMAGENET] = list(table["image"])
    return lists


def _tried(what: str, look: Callable[[], str]) -> Finding:
    """Return a Finding of what `look` says, or of the sentence with which it refuses."""
    try:
        return Finding(what, "", look())
    except (ValueError, OSError, Damaged) as problem:  # ConnectionError is an OSError
        return Finding(what, "", "not usable", (str(problem),))


def _count(what: str, found: int, published: int | None) -> Finding:
    if published is None or found == published:
        return Finding(what, "" if published is None else f"{published:,}", f"{found:,}")
    remedy = f"{what}: there are {found:,} and the published data set has {published:,}; download its lists again."
    return Finding(what, f"{published:,}", f"{found:,}", (remedy,))


def _phi(study: Study, loaded: Backbone, checkpoint: str) -> str:
    phi.bring(study.store, loaded, checkpoint)
    return f"fits {loaded.name}; sha256 {file_sha256(phi.file_of(checkpoint))}"


def _fti(study: Study, loaded: Backbone, path: str) -> str:
    network.bring(study.store, loaded, path)
    return f"fits {loaded.name}; sha256 {file_sha256(Path(path))}"


def _inverts(values: Mapping) -> bool:
    """Return whether vocabulary and phrases are needed; they are where oti_root cannot be used, which is a Finding."""
    try:
        return bool(plan.images_to_invert(values))
    except (ValueError, OSError):
        return True


def _captions(values: Mapping, study: Study) -> str:
    ids = list(annotations.imagenet(data_root(values, study))["image"])
    read = captions.read(study.path(values["captions_file"]), ids, values["caption_split"])
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
    table = searle_files.read_phrases(path)
    return f"{len(table):,} phrases about {table['concept'].nunique():,} concepts; sha256 {file_sha256(path)}"


def _hub(what: str, parameter: str, name: str) -> Finding:
    """Look whether a model is a folder here, or in the hub's cache, and take the sha256 of its weights."""
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
