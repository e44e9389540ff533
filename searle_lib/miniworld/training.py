"""Train the miniature world's own CLIP and language model from scratch: `python -m searle_lib.miniworld.training`.

With a file of φ, which `searle export` writes, the same command ships that φ beside them.

Both learn only from images and captions drawn for training. CLIP learns in two steps, since contrastive training alone
is slow on two cores. (1) The vision tower predicts how many of an image's captions hold each word, through a linear
head that is then discarded. (2) With the image features fixed, the text tower and the visual projection learn by
contrast. The weights are written as small safetensors beside this module, with a manifest of what they were made of.
"""

import json
import sys
import time
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

from searle_lib.data.images import MEAN, STD
from searle_lib.miniworld import grammar
from searle_lib.miniworld.fingerprint import WEIGHTS, fingerprint
from searle_lib.miniworld.garments import draw_garment
from searle_lib.miniworld.models import PHI, SIZES, language_model, tokenizer
from searle_lib.miniworld.scenes import draw_scene
from searle_lib.miniworld.specimens import KINDS, Scene, Specimen, concepts, random_garment, random_scene, varied
from searle_lib.releases import searle_files
from searle_lib.searle.concepts import TEMPLATES
from searle_lib.store.artefacts import file_sha256

SEED = 2303_15247
PICTURES = 24_000
HELD_OUT = 700
CAPTIONS_A_PICTURE = 12
VISION = {"steps": 1000, "batch": 256, "muon": 0.02, "adamw": 2e-3}
CONTRAST = {"steps": 1500, "batch": 512, "muon": 0.02, "adamw": 2e-3}
LANGUAGE = {"steps": 500, "batch": 128, "muon": 0.02, "adamw": 3e-3}


def main() -> None:
    """Train both models and write weights and manifest."""
    started = time.time()
    specimens, pictures = draw(PICTURES + HELD_OUT)
    backbone, vocabulary, recalls = train_backbone(specimens, pictures)
    weights = {name: value.half().contiguous() for name, value in backbone.state_dict().items()}
    save_file(weights | {"vocabulary": vocabulary}, WEIGHTS / "clip.safetensors")
    train_language_model()
    facts = {
        "world": fingerprint(),
        "seed": SEED,
        "pictures": PICTURES,
        "steps": {"vision": VISION, "contrast": CONTRAST, "language": LANGUAGE},
        "held_out_image_to_text_percent": recalls,
        "torch": torch.__version__,
    }
    (WEIGHTS / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"trained in {time.time() - started:.0f} s, held-out image-to-text recall {recalls}", file=sys.stderr)


def draw(count: int, seed: int = SEED) -> tuple[list[Specimen], Tensor]:
    """Return specimens, scenes and garments in turn, and their images [count, 3, 64, 64] uint8."""
    random = np.random.default_rng([seed, 1])
    specimens = [random_garment(random) if i % 2 else random_scene(random) for i in range(count)]
    drawn = [draw_scene(s, random) if isinstance(s, Scene) else draw_garment(s, random) for s in specimens]
    return specimens, torch.from_numpy(np.stack([np.asarray(picture) for picture in drawn])).permute(0, 3, 1, 2)


def train_backbone(specimens: list[Specimen], pictures: Tensor) -> tuple[CLIP, Tensor, dict[str, float]]:
    """Return a CLIP over the words in use, the ids of these words, and recalls in percent on held-out images."""
    torch.manual_seed(SEED)
    random = np.random.default_rng([SEED, 2])
    texts = [[grammar.caption(s, random) for _ in range(CAPTIONS_A_PICTURE)] for s in specimens]
    ids = clip.tokenize([text for of_one in texts for text in of_one])
    vocabulary = torch.unique(torch.cat([ids, clip.tokenize(_other_sentences(random))]))
    compact = torch.searchsorted(vocabulary, ids).view(len(specimens), CAPTIONS_A_PICTURE, -1)  # [N, C, 77]
    model = CLIP(vocab_size=len(vocabulary), **SIZES)
    _train_vision(model, pictures[:PICTURES], compact[:PICTURES])
    trunk = _trunk_features(model, pictures)
    _train_contrast(model, trunk[:PICTURES], compact[:PICTURES])
    return model.eval(), vocabulary, _recalls(model, trunk[PICTURES:], compact[PICTURES:, 0])


def _train_vision(model: CLIP, pictures: Tensor, captions: Tensor) -> None:
    words = int(captions.max()) + 1
    head = nn.Linear(model.visual.conv1.out_channels, words)
    projection, model.visual.proj = model.visual.proj, None  # the head reads the class token itself
    steps = _Steps([*model.visual.named_parameters(), *head.named_parameters(prefix="head")], **VISION)
    random = np.random.default_rng([SEED, 3])
    for _ in trange(VISION["steps"], desc="vision", mininterval=5):
        rows = torch.from_numpy(random.choice(len(pictures), VISION["batch"], replace=False))
        bags = torch.zeros(len(rows), captions.shape[1], words).scatter_(2, captions[rows], 1.0)  # [B, C, words]
        logits = head(model.visual(_pixels(pictures[rows])))
        loss = F.binary_cross_entropy_with_logits(logits, bags.mean(1))
        steps.take(loss * words)
    model.visual.proj = projection
    print(f"vision loss {loss.item() * words:.2f}", file=sys.stderr)


@torch.no_grad()
def _trunk_features(model: CLIP, pictures: Tensor) -> Tensor:
    """Return the class tokens [N, width] before the projection."""
    projection, model.visual.proj = model.visual.proj, None
    features = torch.cat([model.visual(_pixels(part)) for part in pictures.split(500)])
    model.visual.proj = projection
    return features


def _train_contrast(model: CLIP, trunk: Tensor, captions: Tensor) -> None:
    text = [(n, p) for n, p in model.named_parameters() if not n.startswith("visual.")]
    steps = _Steps([*text, ("visual.proj", model.visual.proj)], **CONTRAST)
    random = np.random.default_rng([SEED, 4])
    for _ in trange(CONTRAST["steps"], desc="contrast", mininterval=5):
        rows = torch.from_numpy(random.choice(len(trunk), CONTRAST["batch"], replace=False))
        chosen = _cut(captions[rows, int(random.integers(captions.shape[1]))])
        images = F.normalize(trunk[rows] @ model.visual.proj, dim=-1)
        logits = model.logit_scale.exp() * images @ F.normalize(model.encode_text(chosen), dim=-1).T
        pairs = torch.arange(len(rows))
        steps.take((F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2)
        model.logit_scale.data.clamp_(max=np.log(100))


@torch.no_grad()
def _recalls(model: CLIP, trunk: Tensor, captions: Tensor) -> dict[str, float]:
    images = F.normalize(trunk @ model.visual.proj, dim=-1)
    scores = images @ F.normalize(model.encode_text(_cut(captions)), dim=-1).T
    ranks = (scores > scores.diagonal().unsqueeze(1)).sum(1)
    return {f"R@{k}": round(float((ranks < k).float().mean()) * 100, 1) for k in (1, 5)}


def train_language_model() -> None:
    """Return a tiny GPT-Neo, trained on statements about the concepts of the vocabulary, and its tokenizer."""
    random = np.random.default_rng([SEED, 5])
    statements = [_statement(random) for _ in range(40_000)]
    words = tokenizer(statements)
    torch.manual_seed(SEED)
    model = language_model(len(words))
    ids = words(statements, padding=True, return_tensors="pt").input_ids
    steps = _Steps(list(model.named_parameters()), **LANGUAGE)
    for _ in trange(LANGUAGE["steps"], desc="language", mininterval=5):
        rows = torch.from_numpy(random.choice(len(ids), LANGUAGE["batch"], replace=False))
        batch = ids[rows]
        batch = batch[:, : int((batch != words.pad_token_id).sum(1).max()) + 1]
        ends = (batch == words.pad_token_id).cumsum(1)
        steps.take(model(batch, labels=batch.masked_fill(ends > 1, -100)).loss)
    print(f"language loss {model(batch, labels=batch.masked_fill(ends > 1, -100)).loss:.2f}", file=sys.stderr)
    weights = {n: v.half().contiguous() for n, v in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, WEIGHTS / "language_model.safetensors")
    (WEIGHTS / "tokenizer.json").write_text(words.backend_tokenizer.to_str())


class _Steps:
    """Muon for the matrices and AdamW for the rest, both with rates that fall to zero along a cosine."""

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], steps: int, muon: float, adamw: float, **_):
        matrices = [p for n, p in parameters if p.ndim == 2 and "embedding" not in n and "wte" not in n]
        others = [p for n, p in parameters if not any(p is m for m in matrices)]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=muon, weight_decay=0.01),
            torch.optim.AdamW(others, lr=adamw, weight_decay=0.01),
        ]
        fall = lambda step: 0.5 * (1 + np.cos(np.pi * step / steps)) * min(1, (step + 1) / 20)  # noqa: E731
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, fall) for o in self.optimizers]

    def take(self, loss: Tensor) -> None:
        loss.backward()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()


def _statement(random: np.random.Generator) -> str:
    specimen = random_garment(random) if random.random() < 0.5 else random_scene(random)
    kind = KINDS[specimen.kind]
    names = [kind.name, kind.name, kind.name, kind.hypernym]
    names += [specimen.setting] if isinstance(specimen, Scene) else []
    return grammar.statement(names[int(random.integers(len(names)))].capitalize(), specimen, random)


def _other_sentences(random: np.random.Generator) -> list[str]:
    """Return sentences that no model is trained on but whose words the vocabulary must hold."""
    sentences = [template.format(name) for template in TEMPLATES for name in concepts()]
    sentences += ["a photo of $ that * with * but"]
    for _ in range(3000):
        reference = random_scene(random) if random.random() < 0.5 else random_garment(random)
        sentences.append(grammar.relative_caption(reference, varied(reference, 3, random), random, 3))
    return sentences


def _cut(ids: Tensor) -> Tensor:
    return ids[:, : int(ids.argmax(1).max()) + 1]


def _pixels(pictures: Tensor) -> Tensor:
    return (pictures / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def ship_phi(file: Path) -> None:
    """Write the φ of a study of the miniature world beside the CLIP that it belongs to, in half precision."""
    weights = searle_files.read_phi(file, SIZES["embed_dim"], SIZES["transformer_width"])
    halves = {name: value.half() for name, value in weights.items()}
    save_file(halves, WEIGHTS / PHI, metadata={"clip_sha256": file_sha256(WEIGHTS / "clip.safetensors")})


if __name__ == "__main__":
    Path(WEIGHTS).mkdir(exist_ok=True)
    if sys.argv[1:]:
        ship_phi(Path(sys.argv[1]))
    else:
        main()
