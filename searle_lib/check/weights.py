"""The findings of `searle check` about weights and packages: CLIP, φ, networks, language models, methods of one's own.

Each function takes a study's parameters and returns Findings, as those of `findings` do.
"""

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from searle_lib.backbone.model import Backbone, load_clip
from searle_lib.check import trials
from searle_lib.check.findings import Finding, attempt, data_root, inverts
from searle_lib.data import annotations
from searle_lib.evaluation import indexes
from searle_lib.evaluation.methods import Method, by_name, network_files
from searle_lib.fti4cir import captions, network
from searle_lib.releases.folders import is_trained
from searle_lib.searle import other_networks, phi
from searle_lib.store import executors
from searle_lib.store.artefacts import file_sha256
from searle_lib.store.records import Study
from searle_lib.study import plan


def check_clip(values: Mapping, study: Study) -> tuple[Backbone | None, Finding]:
    """Return the study's CLIP, None if it cannot be used, and a Finding with its sha256. Downloads a published CLIP."""
    try:
        clip = load_clip(study.path(values["clip_model"]), values["device"], values["precision"], values["preprocess"])
    except (ValueError, ConnectionError, OSError) as problem:
        return None, Finding("CLIP", values["clip_model"], "not usable", (str(problem),))
    sizes = f"{clip.dimension} numbers per image, tokens of {clip.width}"
    return clip, Finding("CLIP", "", f"{clip.name} on {clip.device}: {sizes}; sha256 {clip.sha256}")


def check_models(values: Mapping, study: Study, clip: Backbone | None) -> Iterator[Finding]:
    """Check the other weights: a pretrained φ, the language model, FTI4CIR's network or what its captions need.

    The cluster that is to compute and the package of the index are checked, too.
    """
    methods, checkpoint = values["methods"], values["phi_checkpoint"]
    if values["executor"] == "ray":
        yield attempt("Ray cluster", lambda: executors.of_parameters(values).describe())
    if values["index"] == "faiss":
        yield attempt("FAISS", lambda: f"version {indexes.load_faiss().__version__}")
    if clip and plan.uses_phi(methods) and not is_trained(checkpoint):
        yield attempt("φ", lambda: _phi(study, clip, study.path(checkpoint)))
    for name, method in by_name(methods, study.root).items():
        if clip and method.checkpoint:
            yield attempt(f"network of {name}", functools.partial(_other_network, study, clip, name, method, values))
        if clip and (method.file or values["index"] == "faiss"):
            yield attempt(f"method {name}", functools.partial(trials.try_method, clip, name, method, values["index"]))
    if inverts(values) and not values["phrases_file"]:
        yield _hub_model("language model", "language_model", study.path(values["language_model"]))
    if not plan.uses_fti(methods):
        return
    if clip:
        yield attempt(
            "FTI4CIR's CLIP", lambda: f"{network.require_fit(clip).patch_count} patch tokens of {clip.patch_width}"
        )
    if values["fti_weights"]:
        if clip:
            yield attempt("FTI4CIR's network", lambda: _fti(study, clip, study.path(values["fti_weights"])))
    elif Path(study.path(values["captions_file"])).is_file():
        yield attempt("captions", lambda: _captions(values, study))
    else:
        yield _hub_model("BLIP", "blip_model", study.path(values["blip_model"]))
        installed = importlib.util.find_spec("spacy") and importlib.util.find_spec("en_core_web_sm")
        command = "pip install spacy && python -m spacy download en_core_web_sm"
        problem = () if installed else (f"splitting captions needs spaCy and its model; run: {command}.",)
        yield Finding("spaCy", "", "installed" if installed else "absent", problem)


def _phi(study: Study, clip: Backbone, checkpoint: str) -> str:
    phi.import_phi(study.store, clip, checkpoint)
    return f"fits {clip.name}; sha256 {file_sha256(phi.fetch_checkpoint(checkpoint))}"


def _other_network(study: Study, clip: Backbone, name: str, method: Method, values: Mapping) -> str:
    file = network_files({name: method}, values, study)[name]
    other_networks.import_network(study.store, clip, name, file)
    return f"fits {clip.name}; sha256 {file_sha256(file)}"


def _fti(study: Study, clip: Backbone, path: str) -> str:
    network.import_network(study.store, clip, path)
    return f"fits {clip.name}; sha256 {file_sha256(Path(path))}"


def _captions(values: Mapping, study: Study) -> str:
    ids = list(annotations.imagenet(data_root(values, study))["image"])
    pairs = captions.read(study.path(values["captions_file"]), ids, values["caption_split"])
    return f"{len(pairs.ids):,} of {len(ids):,} images"


def _hub_model(subject: str, parameter: str, name: str) -> Finding:
    """Check that a model is a folder, or is in the Hugging Face hub's cache, and compute the sha256 of its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder, label = Path(name), name
    if not folder.is_dir():
        repository, _, revision = name.partition("@")
        try:
            folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
            problem = f"{parameter} {name} is neither a folder nor in the hub's cache; run: {command}."
            return Finding(subject, name, "absent", (problem,))
        label = f"{repository} at {folder.name}"
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin")]
    if not files:
        problem = f"{parameter} {name} has no weights in {folder} (*.safetensors or *.bin); download it again."
        return Finding(subject, name, "no weights", (problem,))
    return Finding(subject, "", f"{label}; sha256 of {files[0].name} {file_sha256(files[0])}")
