"""The stages of a study with their rows, arithmetic, bytes and shards. Sizes of shards are constants of the library.

SEARLE's stages use ViT-B/32, and FTI4CIR's use ViT-L/14. `rates` are those of `scale.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from bench import arithmetic
from searle_lib.backbone import embeddings
from searle_lib.backbone.model import CONTEXT
from searle_lib.check.estimates import GPT_NEO, PHRASE_BYTES, PROMPT_TOKENS
from searle_lib.check.findings import VOCABULARY_SIZE
from searle_lib.check.published import IMAGENET_SIZE, SHAPES
from searle_lib.fti4cir import patches
from searle_lib.fti4cir.network import MAX_ATTRIBUTES, SLOTS
from searle_lib.ranking import ROWS
from searle_lib.searle import concepts, oti, phrase_bank

B32, L14, QUERIES = SHAPES["ViT-B/32"], SHAPES["ViT-L/14"], 800
PARAMETERS = yaml.safe_load((Path(__file__).parents[1] / "params" / "searle-xl.yaml").read_text(encoding="utf-8"))


class Stage(NamedTuple):
    """A stage: `flop`, `read` and `written` are per row, the last two in bytes.

    `kind` names a rate of `two_cores`. `seconds` are what a row takes besides arithmetic: of one core if the rows are
    cut into shards, else of the process. `shard` is the rows of a shard; 0: one process computes all rows.
    """

    name: str
    rows: int
    kind: str
    flop: float
    read: float
    written: float
    shard: int = 0
    seconds: float = 0.0


def growing(images: int, rates: Mapping[str, float]) -> list[Stage]:
    """Return the stages that grow with the gallery."""
    file, d, decoding = rates["file of an image"], B32[0], rates["decoding, per image and core"]
    words = 4 * (L14[7] * (1 + MAX_ATTRIBUTES) + L14[0] * MAX_ATTRIBUTES + SLOTS) + 8 * (1 + MAX_ATTRIBUTES)
    depth, fti = PARAMETERS["concept_depth"], arithmetic.image(L14) + arithmetic.fti(L14)
    return [
        Stage("hashes of files", images, "scores", 0, file, 0, 0, file / rates["hashing"]),
        Stage("embeddings", images, "images", arithmetic.image(B32), file, 4 * d, embeddings.SHARD, decoding),
        Stage("nearest concepts", images, "scores", 2 * VOCABULARY_SIZE * d, 4 * d, 8 * depth),
        _oti("OTI of all images", images),
        Stage("φ of all images, not kept", images, "φ", arithmetic.phi(B32), 4 * d, 0),
        Stage(f"exact ranking, {QUERIES} queries", images, "scores", 2 * QUERIES * d, 4 * d, 0, ROWS),
        Stage("index, vectors assigned to lists", images, "scores", 2 * 4 * images**0.5 * d, 4 * d, 4 * d + 8),
        _patches("patch tokens of all images (L/14)", images, rates),
        Stage("FTI4CIR's words of all images (L/14)", images, "images", fti, file, words, patches.SHARD, decoding),
    ]


def constant(rates: Mapping[str, float]) -> list[Stage]:
    """Return the stages of the vocabulary, and those that learn from a list of images, which need not grow."""
    learned, d, each = IMAGENET_SIZE, B32[0], PARAMETERS["phrases_per_concept"]
    flop = 2 * GPT_NEO * (PARAMETERS["phrase_max_length"] - PROMPT_TOKENS)
    bank, batch = 4 * d + 2 * 4 * (CONTEXT + 1), PARAMETERS["phrase_batch_size"]
    phi, fti = learned * PARAMETERS["phi_epochs"], learned * PARAMETERS["fti_epochs"]
    phrase, caption, file = arithmetic.text(B32, arithmetic.PHRASE), arithmetic.caption(), rates["file of an image"]
    return [
        Stage("phrases", VOCABULARY_SIZE, "sampling", each * flop, 0, each * PHRASE_BYTES, batch),
        Stage("phrase bank", VOCABULARY_SIZE * each, "names", phrase, PHRASE_BYTES, bank, phrase_bank.SHARD),
        Stage("features of names", VOCABULARY_SIZE, "names", arithmetic.name_feature(B32), 0, 4 * d, concepts.SHARD),
        _oti("OTI of the training list", learned),
        Stage("training of φ", phi, "φ", arithmetic.phi_step(B32), bank, 0),
        Stage("captions by BLIP", learned, "images", caption, file, 0),
        _patches("patch tokens of the training list (L/14)", learned, rates),
        Stage("training of FTI4CIR (L/14)", fti, "FTI4CIR", arithmetic.fti_step(L14), _patch_bytes(), 0),
    ]


def _oti(name: str, images: int) -> Stage:
    d, steps = B32[0], PARAMETERS["oti_steps"]
    read = 4 * d + 8 * PARAMETERS["concept_depth"] + steps * (4 * d + 4 * (CONTEXT + 1))  # a phrase at each step
    written = 4 * (2 * B32[7] + 2 * oti.HISTORY)
    shard = PARAMETERS["oti_batch_size"] * PARAMETERS["oti_save_every"]
    return Stage(name, images, "OTI", steps * arithmetic.oti_step(B32), read, written, shard)


def _patches(name: str, images: int, rates: Mapping[str, float]) -> Stage:
    file, decoding = rates["file of an image"], rates["decoding, per image and core"]
    return Stage(name, images, "images", arithmetic.image(L14), file, _patch_bytes(), patches.SHARD, decoding)


def _patch_bytes() -> int:
    return 2 * arithmetic.vision_tokens(L14) * L14[3] + 4 * L14[0]
