"""What a study takes at 1e5, 1e7 and 1e9 images: the tables of docs/scale.md.

`arithmetic.py` has the formulas, and `stages.py` what each stage computes, reads and writes. Hours follow from RATES.
Change a rate here, or in a JSON file as `{"GPU, other": 80}`: `python -m bench.scale --rates my.json`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from bench import arithmetic
from bench.stages import B32, L14, PARAMETERS, Stage, constant, growing
from searle_lib.check.estimates import PHRASE_BYTES, PROMPT_TOKENS
from searle_lib.check.findings import VOCABULARY_SIZE
from searle_lib.store import contents

IMAGES, GPUS = (10**5, 10**7, 10**9), (1, 8, 256)
UNITS = {"PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3, "bytes": 1, "GB/s": 1e9, "TFLOP/s": 1e12}
UNITS |= {"s": 1, "ms": 1e-3, "µs": 1e-6, "cores": 1}
RATES = {  # by name: value, unit, where it was measured or from what it is derived
    "image": (39, "ms", "measured, two cores: [speed](speed.md#measurements), image embeddings of ViT-B/32"),
    "OTI, 64 images, 3 steps": (4.0, "s", "measured, two cores: [speed](speed.md#measurements), ViT-B/32"),
    "φ, epoch of 128 images": (2.6, "s", "measured, two cores: [speed](speed.md#measurements), ViT-B/32"),
    "FTI4CIR, step of 16 images": (1.7, "s", "measured, two cores: [speed](speed.md#measurements), ViT-B/32"),
    "name": (49, "ms", "measured, two cores: [speed](speed.md#measurements), concept association, ViT-B/32"),
    "256 phrases": (6.2, "s", "measured, two cores: [speed](speed.md#measurements), a GPT-Neo of 44 M parameters"),
    "ranking, 800 x 123,403": (0.45, "s", "measured, two cores: [speed](speed.md#measurements), CIRCO, d = 512"),
    "decoding, per image and core": (1.4, "ms", "measured, two cores: [speed](speed.md#what-is-left-out), 640 x 480"),
    "hashing": (0.6, "GB/s", "measured, two cores: [design](design.md#runs-that-last-days), 0.5 to 0.7 from disk"),
    "look at an unchanged file": (25, "µs", "measured, two cores: [design](design.md#runs-that-last-days)"),
    "write a hash to its cache": (2.2, "µs", "measured, two cores, for this page: 100,000 files in one folder"),
    "kernel's memory, per image": (1740, "bytes", "measured, two cores, for this page: 100,000 names like ImageNet's"),
    "list for a worker, per image": (99, "bytes", "measured, two cores, for this page: the same names, pickled"),
    "file of an image": (154, "KB", "COCO 2017 unlabeled, 19 GB and 123,403 images: [data](published-study.md#data)"),
    "GPU, vision": (198, "TFLOP/s", "**derived, not measured**: 20 % of 989, an H200's stated peak in half precision"),
    "GPU, other": (40, "TFLOP/s", "**derived, not measured**: 4 %, as [here](published-study.md#hardware-and-time)"),
    "cores of a GPU": (8, "cores", "assumed: `workers: 8` in the parameter files"),
    "executor, per range": (2, "ms", "the goal; [measured on a cluster](#measured-on-a-cluster)"),
}


def in_units(other: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the rates in seconds, bytes and FLOP/s; `other` has values that replace those of RATES, in their units."""
    return {name: (other or {}).get(name, value) * UNITS[unit] for name, (value, unit, _) in RATES.items()}


def two_cores(rates: Mapping[str, float]) -> dict[str, float]:
    """Return the FLOP/s of two cores by kind of work: the arithmetic of a measured piece over its seconds."""
    return {
        "images": arithmetic.image(B32) / rates["image"],
        "OTI": 64 * 3 * arithmetic.oti_step(B32) / rates["OTI, 64 images, 3 steps"],
        "φ": 128 * arithmetic.phi_step(B32) / rates["φ, epoch of 128 images"],
        "FTI4CIR": 16 * (arithmetic.image(B32) + arithmetic.fti_step(B32)) / rates["FTI4CIR, step of 16 images"],
        "names": arithmetic.name_feature(B32) / rates["name"],
        "sampling": 256 * (35 - PROMPT_TOKENS) * 2 * 44e6 / rates["256 phrases"],
        "scores": 2 * 800 * 123_403 * 512 / rates["ranking, 800 x 123,403"],
    }


def hours(stage: Stage, gpus: int, rates: Mapping[str, float]) -> float:
    """Return the hours of a stage; 0 GPUs are two cores. A worker computes whole shards, and decodes meanwhile."""
    speed = two_cores(rates)[stage.kind]
    if gpus and stage.kind != "scores":  # matrix products of scores run on the processor
        speed = rates["GPU, vision" if stage.kind in ("images", "FTI4CIR") else "GPU, other"]
    cores = rates["cores of a GPU"] if gpus else 2
    rounds = ceil(ceil(stage.rows / stage.shard) / max(1, gpus)) if stage.shard else 1
    rows = min(stage.rows, rounds * stage.shard) if stage.shard else stage.rows
    return rows * max(stage.flop / speed, stage.seconds / (cores if stage.shard else 1)) / 3600


def kernel(images: int, rates: Mapping[str, float]) -> dict[str, str]:
    """Return what the notebook's kernel holds, sends and does for a gallery, beside the stages."""
    d, depth, each = B32[0], PARAMETERS["concept_depth"], rates["write a hash to its cache"] / 3600
    shards = [ceil(stage.rows / stage.shard) for stage in growing(images, rates) if stage.shard]
    phrases = VOCABULARY_SIZE * PARAMETERS["phrases_per_concept"] * PHRASE_BYTES
    return {
        "kernel's memory: names, paths, hashes": size(images * rates["kernel's memory, per image"]),
        "kernel's memory: nearest concepts": size(images * 8 * depth),
        "memory of each worker: list of images": size(images * rates["list for a worker, per image"]),
        "memory of each worker: OTI": size(images * (4 * d + 8 * depth) + phrases),
        "memory: an index of vectors in float32": size(images * (4 * d + 8)),
        "memory: an index of codes of 64 bytes": size(images * (64 + 8)),
        "hours: look at unchanged files": number(images * rates["look at an unchanged file"] / 3600),
        "hours: keep hashes, all files in one folder": number(images * max(1, images / contents.CHUNK / 2) * each),
        f"hours: keep hashes, {contents.CHUNK:,} files in a folder": number(images * each),
        "hours: hand out the ranges of all stages": number(sum(shards) * rates["executor, per range"] / 3600),
    }


def number(value: float) -> str:
    """Return a number with two digits that count, without an exponent."""
    return "" if not value else "< 0.001" if value < 0.001 else f"{float(f'{value:.2g}'):,.10g}"


def size(count: float) -> str:
    """Return bytes as text."""
    unit = next((unit for unit in ("PB", "TB", "GB") if count >= UNITS[unit]), "MB")
    return f"{number(count / UNITS[unit])} {unit}" if count else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    first, *others = (f"| {' | '.join(line)} |" for line in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *others])


def stage_table(stages: Sequence[Stage], rates: Mapping[str, float]) -> str:
    """Return the table of some stages."""
    hours_on = ["hours: two cores", "1 GPU", *(f"{count} GPUs" for count in GPUS[1:])]
    header = ["stage", "PFLOP", "read", "written", "shards", *hours_on, f"GB/s, {GPUS[-1]} GPUs"]
    return table(
        header,
        [
            [
                stage.name,
                number(stage.rows * stage.flop / 1e15),
                size(stage.rows * stage.read),
                size(stage.rows * stage.written),
                f"{ceil(stage.rows / stage.shard):,}" if stage.shard else "not cut",
                *(number(hours(stage, gpus, rates)) for gpus in (0, *GPUS)),
                number(stage.rows * (stage.read + stage.written) / hours(stage, GPUS[-1], rates) / 3600 / 1e9),
            ]
            for stage in stages
        ],
    )


def tables(rates: Mapping[str, float]) -> dict[str, str]:
    """Return all tables by title."""
    units = {
        "an image": arithmetic.image,
        "a phrase, plain": lambda clip: arithmetic.text(clip, arithmetic.PHRASE),
        "a name, 24 templates": arithmetic.name_feature,
        "a step of OTI for an image": arithmetic.oti_step,
        "φ for an image": arithmetic.phi,
        "an image in an epoch of φ": arithmetic.phi_step,
        "FTI4CIR's network for an image": arithmetic.fti,
        "an image in an epoch of FTI4CIR's network": arithmetic.fti_step,
    }
    kernels = [kernel(images, rates) for images in IMAGES]
    named = [f"{images:,} images" for images in IMAGES]
    return {
        "Rates": table(
            ["rate", "value", "source"],
            [[name, f"{rates[name] / UNITS[unit]:,.4g} {unit}", source] for name, (_, unit, source) in RATES.items()],
        ),
        "Arithmetic": table(
            ["GFLOP", "ViT-B/32", "ViT-L/14"],
            [[name, *(number(flop(clip) / 1e9) for clip in (B32, L14))] for name, flop in units.items()],
        ),
        "Two cores": table(
            ["work", "GFLOP/s"], [[kind, number(rate / 1e9)] for kind, rate in two_cores(rates).items()]
        ),
        "Whatever the gallery": stage_table(constant(rates), rates),
        **{title: stage_table(growing(images, rates), rates) for title, images in zip(named, IMAGES, strict=True)},
        "The notebook's kernel": table(
            ["", *named], [[name, *(each[name] for each in kernels)] for name in kernels[0]]
        ),
    }


def main() -> None:
    """Print the tables, with the rates of a file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--rates", type=Path, help="a JSON file with rates that replace those of RATES")
    file = parser.parse_args().rates
    other = json.loads(file.read_text(encoding="utf-8")) if file else {}
    unknown = next((name for name in other if name not in RATES), None)
    if unknown:
        parser.error(f"{file} has a rate {unknown!r}, which is not known; choose from {', '.join(RATES)}.")
    for title, text in tables(in_units(other)).items():
        print(f"### {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
