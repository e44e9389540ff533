"""What a study will take: disk and memory by arithmetic, time from a short measurement on this machine.

Small pieces of the real work are run on random input, at the study's own batch sizes and precision, and scaled up.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import CONTEXT, PRECISIONS, Backbone, encode_images, encode_patches
from searle_lib.backbone.texts import encode_texts
from searle_lib.check.findings import data_root
from searle_lib.data import annotations, benchmarks, images, readable
from searle_lib.fti4cir import training as fti_training
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.searle import distillation, oti, phi, phrase_bank, phrases
from searle_lib.searle.concepts import TEMPLATES, Concepts, read_vocabulary
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study
from searle_lib.study import plan

SAMPLE = 32  # pictures and texts of a measurement, unless the study's batch is smaller
REPEATS = 3
GPT_NEO = 2_700_000_000  # parameters, of the model that is fetched where language_model is no folder
PROMPT_TOKENS = 7  # "a photo of {concept} that"
PHRASE_BYTES = 45  # of a phrase in Parquet, as measured on the miniature world's
PHRASE_MEMORY = 150  # of a phrase as a Python string in a tuple


@dataclass(frozen=True)
class Workload:
    """How much there is to do: pictures of all galleries, references by split, unlabeled pictures, concepts, phrases,
    the language model's parameters, and some pictures to measure with."""

    gallery: int
    references: Mapping[str, int]
    unlabeled: int
    concepts: int
    phrases: int
    language_model: int
    first: tuple[Path, ...]


@dataclass(frozen=True)
class Stage:
    """A piece of the study: how long it takes, and the arithmetic."""

    name: str
    seconds: float
    arithmetic: str


def workload(values: Mapping, study: Study) -> Workload:
    """Count what the annotations name. Raises as `benchmarks.load` does for data that cannot be read."""
    root = data_root(values, study)
    splits = benchmarks.load_all(values["datasets"], root, values["evaluate"], values["fashioniq_gallery"])
    galleries = {b.images: b.gallery for loaded in splits.values() for b in loaded}
    references = {name: len(benchmarks.reference_table(loaded)) for name, loaded in splits.items()}
    unlabeled = len(annotations.imagenet(root)) if plan.needs_imagenet(values) else 0
    concepts = len(set(read_vocabulary(study.path(values["vocabulary"])).names)) if plan.images_to_invert(values) else 0
    first: list[Path] = []
    for name, table in galleries.items():
        good = readable.verdicts(study.store, name, table, values["workers"]) == readable.GOOD
        first += map(Path, table["path"][good.numpy()].head(SAMPLE))
    total = sum(map(len, galleries.values()))
    written = concepts * values["phrases_per_concept"]
    model = _parameters(Path(study.path(values["language_model"])))
    return Workload(total, references, unlabeled, concepts, written, model, tuple(first[:SAMPLE]))


def disk(values: Mapping, clip: Backbone, load: Workload) -> dict[str, int]:
    """Return the bytes of each kind of artefact."""
    learns = plan.trains_phi(values["methods"], values["phi_checkpoint"])
    inverted = _inverted(values, load)
    embedded = load.gallery + sum(load.references.values()) + load.unlabeled * learns  # references a second time
    found = {"image embeddings": embedded * clip.dimension * 4}
    if load.concepts:
        found["phrases"] = load.phrases * PHRASE_BYTES
        found["phrase features and tokens"] = load.phrases * (clip.dimension * 4 + 2 * (CONTEXT + 1) * 4)
        found["concepts"] = inverted * values["concept_depth"] * 8
        found["OTI tokens"] = inverted * (2 * clip.width + 2 * oti.HISTORY) * 4
    if learns:
        kept = -(-values["phi_epochs"] // values["phi_save_every"]) + 1  # and the chosen one
        found["φ"] = kept * 4 * _size(phi.Phi(clip.dimension, clip.width))
    if "FTI4CIR" in values["methods"] and not values["fti_weights"]:
        number = clip.exact.model.dtype.itemsize
        weights = number * _size(Fti4Cir(clip.dimension, clip.patch_width))
        found["FTI4CIR's network"] = (-(-values["fti_epochs"] // values["fti_save_every"]) + 1) * weights
        number = 2 if PRECISIONS[clip.precision] else number
        found["patch tokens"] = load.unlabeled * _patches(clip) * clip.patch_width * number
    return found


def memory(clip: Backbone, load: Workload) -> int:
    """Return the bytes of main memory at the most, roughly: weights, embeddings, a chunk of scores, phrases as text."""
    vectors = (load.gallery + load.unlabeled) * clip.dimension * 4
    scores = 3 * 512 * load.gallery * 4
    return int(1.5e9 + 4 * _size(clip.model) + 2 * vectors + scores + load.phrases * PHRASE_MEMORY)


def machine_memory() -> int:
    """Return the bytes of main memory that this machine has; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def times(values: Mapping, clip: Backbone, load: Workload) -> list[Stage]:
    """Return each stage's time, measured by a few batches of the real work, for seconds to a minute."""
    stages = []
    learns = plan.trains_phi(values["methods"], values["phi_checkpoint"])
    picture = _per_picture(values, clip, load.first)
    number = load.gallery + load.unlabeled * learns
    stages.append(Stage("image embeddings", number * picture, f"{number:,} pictures x {picture * 1e3:.1f} ms"))
    if load.concepts:
        stages += _words(values, clip, load, learns)
    if "FTI4CIR" in values["methods"] and not values["fti_weights"]:
        step = _fti_step(values, clip)
        batches = values["fti_epochs"] * (load.unlabeled // values["fti_batch_size"])
        look = load.unlabeled * picture
        arithmetic = f"{load.unlabeled:,} pictures once, then {batches:,} steps x {step:.2f} s"
        stages.append(Stage("FTI4CIR's training", look + batches * step, arithmetic))
    return stages


def _words(values: Mapping, clip: Backbone, load: Workload, learns: bool) -> list[Stage]:
    stages, text = [], _per_text(values, clip)
    if not values["phrases_file"]:
        rate, size = _multiply_rate(clip.device), load.language_model
        tokens = load.phrases * (values["phrase_max_length"] - PROMPT_TOKENS)
        said = (
            f"2 x {size / 1e6:,.1f} M parameters x {tokens / 1e6:,.1f} M tokens at half of {rate / 1e12:,.2f} TFLOP/s"
        )
        stages.append(Stage("phrases", 2 * (2 * size * tokens) / rate, f"{said}; not measured, at least this"))
    sentences = load.concepts * len(TEMPLATES) + load.phrases
    said = f"{sentences:,} templates and phrases x {text * 1e3:.2f} ms"
    stages.append(Stage("text features", sentences * text, said))
    step, phi_step = _oti_step(values, clip), 0.0
    number = _inverted(values, load)
    steps = values["oti_steps"]
    said = f"{number:,} pictures x {steps} steps x {step * 1e3:.1f} ms"
    stages.append(Stage("OTI", number * steps * step, said))
    if learns:
        phi_step = _phi_step(values, clip)
        batches = values["phi_epochs"] * (load.unlabeled // values["phi_batch_size"])
        stages.append(Stage("φ", batches * phi_step, f"{batches:,} steps x {phi_step:.3f} s"))
    return stages


def _inverted(values: Mapping, load: Workload) -> int:
    """Return how many images get pseudo-words of their own."""
    learns = plan.trains_phi(values["methods"], values["phi_checkpoint"])
    return sum(load.references.values()) * ("SEARLE-OTI" in values["methods"]) + load.unlabeled * learns


def _parameters(folder: Path) -> int:
    """Return how many numbers the safetensors of a model's folder hold; GPT-Neo-2.7B's where it has none."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or GPT_NEO


def _per_picture(values: Mapping, clip: Backbone, paths: tuple[Path, ...]) -> float:
    """Return the seconds a picture takes, read, prepared and encoded; random pixels where no picture can be read."""
    batch = min(values["image_batch_size"], SAMPLE)

    def work() -> None:
        for pixels in images.Reader(batch, values["workers"]).batches(paths, clip.resolution, clip.preprocess):
            encode_images(clip, pixels)

    def random() -> None:
        encode_images(clip, torch.randn(batch, 3, clip.resolution, clip.resolution))

    return _median(work, clip) / len(paths) if paths else _median(random, clip) / batch


def _per_text(values: Mapping, clip: Backbone) -> float:
    texts = [f"a photo of thing number {i} that is used to carry something along the road" for i in range(SAMPLE * 4)]
    return _median(lambda: encode_texts(clip, texts, values["text_batch_size"]), clip) / len(texts)


def _problem(clip: Backbone, number: int) -> tuple[Embeddings, Concepts, phrases.Phrases]:
    """Return random embeddings, one concept and its phrases, as long as a language model's are."""
    text = "a photo of thing that is used to carry something along the road to the old town and back in the"
    table = pd.DataFrame({"concept": ["thing"] * 8, "phrase": [f"{text} {i}" for i in range(8)]})
    ids = tuple(map(str, range(number)))
    vectors = torch.randn(number, clip.dimension, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(number, 1, dtype=torch.int64)
    return Embeddings("random", ids, vectors, "random"), Concepts(ids, rows, ("thing",), ""), phrases.from_table(table)


def _oti_step(values: Mapping, clip: Backbone) -> float:
    """Return the seconds a step and picture take at the study's batch."""
    batch, few = values["oti_batch_size"], oti.Settings(steps=1, top_k=1)
    with tempfile.TemporaryDirectory() as folder:
        pictures, concepts, written = _problem(clip, batch)
        bank = phrase_bank.prepare(Store(Path(folder)), clip, written)

        def run(steps: int) -> Callable[[], object]:
            settings = replace(few, steps=steps)
            return lambda: oti.optimise(clip, pictures, concepts, bank, range(batch), settings)

        return max(_median(run(9), clip) - _median(run(1), clip), 1e-6) / 8 / batch


def _phi_step(values: Mapping, clip: Backbone) -> float:
    """Return the seconds a step takes at the study's batch: an epoch of three against an epoch of one."""

    def run(steps: int) -> Callable[[], object]:
        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                store = Store(Path(folder))
                pictures, concepts, written = _problem(clip, steps * values["phi_batch_size"])
                tokens = replace(pictures, vectors=torch.randn(len(pictures.ids), clip.width))
                settings = distillation.Settings(epochs=1, batch_size=values["phi_batch_size"], top_k=1)
                known = distillation.TrainingSet(pictures, tokens, concepts, written)
                distillation.train(store, clip, known, settings)

        return work

    return max(_median(run(3), clip) - _median(run(1), clip), 1e-6) / 2


def _fti_step(values: Mapping, clip: Backbone) -> float:
    """Return the seconds a step takes, patches at hand, at the study's batch."""
    clip, batch = clip.exact, values["fti_batch_size"]
    pixels = torch.randn(min(batch, SAMPLE), 3, clip.resolution, clip.resolution)
    embeddings, tokens = (_repeated(part, batch).to(clip.device) for part in encode_patches(clip, pixels))
    ids = tuple(map(str, range(batch)))
    captions = Captions(ids, ("a thing",) * batch, ("standing beside a road",) * batch)
    sentences = fti_training.sentences_of(clip, captions)
    model = Fti4Cir(clip.dimension, clip.patch_width).to(clip.device, clip.model.dtype)

    def work() -> None:
        with clip.autocast():
            words = model(embeddings, tokens)
        unit = F.normalize(embeddings, dim=-1)
        terms = fti_training.losses(clip, words, unit, sentences, values["fti_temperature"])
        fti_training.total(terms, fti_training.Settings()).backward()

    return _median(work, clip)


def _repeated(part: Tensor, number: int) -> Tensor:
    return part.repeat(-(-number // len(part)), *[1] * (part.dim() - 1))[:number]


def _multiply_rate(device: torch.device) -> float:
    """Return the floating-point operations a second of a large matrix product, in the language model's type."""
    kind = torch.float16 if device.type == "cuda" else torch.float32
    a = torch.randn(2048, 2048, device=device, dtype=kind)
    return 2 * 2048**3 / _timed(lambda: a @ a, device)


def _median(work: Callable[[], object], clip: Backbone) -> float:
    work()  # the first run allocates
    return statistics.median(_timed(work, clip.device) for _ in range(REPEATS))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _patches(clip: Backbone) -> int:
    return clip.model.visual.positional_embedding.shape[0]


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
