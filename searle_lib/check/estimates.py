"""Estimates of what a study will take: disk and memory by arithmetic, time from two short measurements.

The time per image and the time per text are measured on this machine, at the study's own batch sizes and precision. The
time of OTI and of the two trainings is the number of texts that CLIP's text tower encodes, times the time per text.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from searle_lib.backbone.model import PRECISIONS, Backbone, encode_images
from searle_lib.backbone.texts import encode_texts
from searle_lib.check import published
from searle_lib.check.findings import VOCABULARY_SIZE, data_root
from searle_lib.data import annotations, benchmarks, images, readable
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.searle import oti, phi
from searle_lib.searle.concepts import TEMPLATES, read_vocabulary
from searle_lib.store.records import Study
from searle_lib.study import plan

SAMPLE = 32  # images of a measurement
SAMPLE_TEXTS = 128
REPEATS = 3
SLOW = 5.0  # seconds; a measurement that takes longer is not repeated
TEXTS_PER_STEP = {"OTI": 2, "φ": 1, "FTI4CIR's training": 3}  # that carry a pseudo-word, per image
PASSES_PER_STEP = 3  # a forward pass, and a backward pass that costs about two
GPT_NEO = 2_700_000_000  # parameters of the default language model, which is downloaded if language_model is no folder
PROMPT_TOKENS = 7  # "a photo of {concept} that"
NOTEBOOKS = {  # the notebook that makes a kind of artefact, or takes the time of a stage
    "image embeddings": "02_concepts",
    "phrases": "01_phrases",
    "phrase features and tokens": "03_oti",
    "concepts": "02_concepts",
    "text features": "03_oti",
    "OTI tokens": "03_oti",
    "OTI": "03_oti",
    "φ": "04_phi",
    "FTI4CIR's network": "05_fti4cir",
    "FTI4CIR's training": "05_fti4cir",
    "patch tokens": "05_fti4cir",
}
PHRASE_BYTES = 45  # a phrase in Parquet, as measured on the miniature world's
PHRASE_MEMORY = 150  # a phrase as a Python string in a tuple


@dataclass(frozen=True)
class Workload:
    """How much there is to do.

    Args:
        gallery: images in all galleries.
        references: references by split.
        unlabeled: images that φ or FTI4CIR's network learns from.
        concepts: concepts that get phrases.
        phrases: phrases about all concepts.
        language_model: parameters of the language model.
        sample: readable images to measure with.
        assumed: the data sets that are absent and count with their published sizes.
    """

    gallery: int
    references: Mapping[str, int]
    unlabeled: int
    concepts: int
    phrases: int
    language_model: int
    sample: tuple[Path, ...]
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A part of the study, the seconds it takes, and the arithmetic behind them as text."""

    name: str
    seconds: float
    arithmetic: str


def workload(values: Mapping, study: Study) -> Workload:
    """Count the images, concepts and phrases of a study. What is absent counts with its published size.

    Raises ValueError for data that cannot be read, and FileNotFoundError for an absent file of unknown size.
    """
    root, real = data_root(values, study), values["world"] == "real"
    galleries: dict[str, int] = {}
    references, sample, assumed = {}, [], []
    for dataset, split in benchmarks.evaluated_splits(values["datasets"], values["evaluate"]):
        try:
            loaded = benchmarks.load(dataset, root, split, values["fashioniq_gallery"])
        except FileNotFoundError:
            if not real or dataset not in benchmarks.PROTOCOLS:
                raise
            queries, published_galleries = published.split_sizes(dataset, split, values["fashioniq_gallery"])
            references[f"{dataset}/{split}"] = queries  # a bound, since queries may share a reference
            galleries |= published_galleries
            assumed.append(f"{benchmarks.PROTOCOLS[dataset].title} {split}")
            continue
        references[loaded[0].split_name] = len(benchmarks.reference_table(loaded))
        for benchmark in loaded:
            name, table = benchmark.gallery_name, benchmark.gallery
            if name not in galleries:
                readable_rows = readable.check_images(study.store, name, table, values["workers"]) == readable.GOOD
                sample += map(Path, table["path"][readable_rows.numpy()].head(SAMPLE))
            galleries[name] = len(table)
    unlabeled = concepts = 0
    if plan.needs_imagenet(values):
        unlabeled = _count_or_assume(lambda: len(annotations.imagenet(root)), published.IMAGENET_SIZE, real)
        assumed += ["ImageNet test"] * (not (root / "ImageNet1K" / "test").is_dir())
    if plan.images_to_invert(values):
        vocabulary = study.path(values["vocabulary"])
        concepts = _count_or_assume(lambda: len(set(read_vocabulary(vocabulary).names)), VOCABULARY_SIZE, real)
    return Workload(
        gallery=sum(galleries.values()),
        references=references,
        unlabeled=unlabeled,
        concepts=concepts,
        phrases=concepts * values["phrases_per_concept"],
        language_model=_count_parameters(Path(study.path(values["language_model"]))),
        sample=tuple(sample[:SAMPLE]),
        assumed=tuple(assumed),
    )


def _count_or_assume(count: Callable[[], int], size: int, real: bool) -> int:
    """Return a count, or the published size if the data set is a real one and absent."""
    try:
        return count()
    except FileNotFoundError:
        if not real:
            raise
        return size


def disk(values: Mapping, clip: Backbone, load: Workload) -> dict[str, int]:
    """Return the bytes of each kind of artefact."""
    trains_phi = plan.trains_phi(values["methods"], values["phi_checkpoint"])
    inverted = _count_inverted(values, load)
    embedded = load.gallery + sum(load.references.values()) + load.unlabeled * trains_phi  # references a second time
    sizes = {"image embeddings": embedded * clip.dimension * 4}
    if load.concepts:
        sizes["phrases"] = load.phrases * PHRASE_BYTES
        sizes["phrase features and tokens"] = load.phrases * (clip.dimension * 4 + 2 * (clip.context + 1) * 4)
        sizes["concepts"] = inverted * values["concept_depth"] * 8
        sizes["OTI tokens"] = inverted * (2 * clip.width + 2 * oti.HISTORY) * 4
    if trains_phi:
        networks = -(-values["phi_epochs"] // values["phi_save_every"]) + 1  # and the one that the study uses
        sizes["φ"] = networks * 4 * _size(phi.Phi(clip.dimension, clip.width))
    if plan.trains_fti(values) and clip.patch_count:
        item = clip.exact.model.dtype.itemsize
        weights = item * _size(Fti4Cir(clip.dimension, clip.patch_width))
        sizes["FTI4CIR's network"] = (-(-values["fti_epochs"] // values["fti_save_every"]) + 1) * weights
        item = 2 if PRECISIONS[clip.precision] else item
        sizes["patch tokens"] = load.unlabeled * clip.patch_count * clip.patch_width * item
    return sizes


def memory(clip: Backbone, load: Workload) -> int:
    """Return the bytes of main memory at the peak, roughly: weights, embeddings, a chunk of scores, phrases as text."""
    vectors = (load.gallery + load.unlabeled) * clip.dimension * 4
    scores = 3 * 512 * load.gallery * 4
    return int(1.5e9 + 4 * _size(clip.model) + 2 * vectors + scores + load.phrases * PHRASE_MEMORY)


def machine_memory() -> int:
    """Return the bytes of main memory of this machine; 0 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def times(values: Mapping, clip: Backbone, load: Workload) -> list[Stage]:
    """Return the time of each stage; the two measurements take some seconds."""
    trains_phi = plan.trains_phi(values["methods"], values["phi_checkpoint"])
    image, text = _seconds_per_image(values, clip, load.sample), _seconds_per_text(values, clip)
    number = load.gallery + load.unlabeled * trains_phi
    stages = [Stage("image embeddings", number * image, f"{number:,} images x {image * 1e3:.1f} ms")]
    if load.concepts and not values["phrases_file"]:
        stages.append(_phrases(values, clip, load))
    if load.concepts:
        number = load.concepts * len(TEMPLATES) + load.phrases
        arithmetic = f"{number:,} templates and phrases x {text * 1e3:.2f} ms"
        stages.append(Stage("text features", number * text, arithmetic))
        stages.append(_training("OTI", values["oti_steps"], "steps", _count_inverted(values, load), text))
    if load.concepts and trains_phi:
        number = load.unlabeled // values["phi_batch_size"] * values["phi_batch_size"]
        stages.append(_training("φ", values["phi_epochs"], "epochs", number, text))
    if plan.trains_fti(values):
        number = load.unlabeled // values["fti_batch_size"] * values["fti_batch_size"]
        training = _training("FTI4CIR's training", values["fti_epochs"], "epochs", number, text)
        arithmetic = f"{load.unlabeled:,} images x {image * 1e3:.1f} ms + {training.arithmetic}"
        stages.append(Stage(training.name, load.unlabeled * image + training.seconds, arithmetic))
    return stages


def _training(name: str, rounds: int, unit: str, number: int, text: float) -> Stage:
    """Estimate a training by the texts it encodes, without the rest of its work.

    The estimate for OTI and φ is high: CLIP's weights get no gradients, and shared prefixes are encoded once.

    Args:
        name: of the stage, a key of TEXTS_PER_STEP.
        rounds: how often each image takes part.
        unit: what a round is called.
        number: images.
        text: seconds per text.
    """
    texts = TEXTS_PER_STEP[name]
    arithmetic = (
        f"{number:,} images x {rounds:,} {unit} x {texts} text{'s' * (texts > 1)} x {PASSES_PER_STEP} passes x "
        f"{text * 1e3:.2f} ms; estimated"
    )
    return Stage(name, number * rounds * texts * PASSES_PER_STEP * text, arithmetic)


def _phrases(values: Mapping, clip: Backbone, load: Workload) -> Stage:
    """Estimate the language model's work: 2 operations per parameter and token, at half the speed of a matrix product.

    Sampling is slower than this, so it is a lower bound.
    """
    rate, size = _multiply_rate(clip.device), load.language_model
    tokens = load.phrases * (values["phrase_max_length"] - PROMPT_TOKENS)
    arithmetic = (
        f"2 x {size / 1e6:,.1f} M parameters x {tokens / 1e6:,.1f} M tokens at half of {rate / 1e12:,.2f} TFLOP/s; "
        "estimated, at least this"
    )
    return Stage("phrases", 2 * (2 * size * tokens) / rate, arithmetic)


def _count_inverted(values: Mapping, load: Workload) -> int:
    """Return the number of images that OTI inverts."""
    trains_phi = plan.trains_phi(values["methods"], values["phi_checkpoint"])
    return sum(load.references.values()) * plan.uses_oti(values["methods"]) + load.unlabeled * trains_phi


def _count_parameters(folder: Path) -> int:
    """Return the number of parameters in a model's safetensors; GPT-Neo-2.7B's if the folder holds none."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or GPT_NEO


def _seconds_per_image(values: Mapping, clip: Backbone, paths: tuple[Path, ...]) -> float:
    """Return the seconds to read, prepare and encode an image; only to encode random pixels if there are no images."""
    batch = min(values["image_batch_size"], SAMPLE)

    def encode_files() -> None:
        for pixels in images.Reader(batch, values["workers"]).batches(paths, *clip.pixel_form):
            encode_images(clip, pixels)

    def encode_random() -> None:
        encode_images(clip, torch.randn(batch, 3, clip.resolution, clip.resolution))

    return _median(encode_files, clip) / len(paths) if paths else _median(encode_random, clip) / batch


def _seconds_per_text(values: Mapping, clip: Backbone) -> float:
    """Return the seconds to encode a text as long as a phrase."""
    phrase = "a photo of thing number {} that is used to carry something along the road"
    texts = [phrase.format(number) for number in range(SAMPLE_TEXTS)]
    return _median(lambda: encode_texts(clip, texts, values["text_batch_size"]), clip) / len(texts)


def _multiply_rate(device: torch.device) -> float:
    """Return the floating-point operations per second of a large matrix product, in the language model's type."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(2048, 2048, device=device, dtype=dtype)
    return 2 * 2048**3 / _time(lambda: matrix @ matrix, device)


def _median(work: Callable[[], object], clip: Backbone) -> float:
    first = _time(work, clip.device)  # allocates, too
    if first > SLOW:
        return first
    return statistics.median(_time(work, clip.device) for _ in range(REPEATS))


def _time(work: Callable[[], object], device: torch.device) -> float:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
