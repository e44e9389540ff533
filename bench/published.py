"""The published algorithms in plain PyTorch that the benchmark alone runs; `searle_lib.plain` has what tests read too.

Float32, 77 positions, texts tokenized and concepts replaced at every step, the text tower's weights not frozen, and
rankings as matrices of names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from PIL import Image
from torch import Tensor, nn

from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.plain import contrastive_loss, encode_text, encode_with_word, select_attributes
from searle_lib.searle.concepts import TEMPLATES
from searle_lib.searle.phrases import Settings


def phi_losses(
    model: CLIP, phi: nn.Module, images: Tensor, tokens: Tensor, batches: list[Tensor], pairs: list[tuple[str, str]]
) -> list[float]:
    """Losses of φ's training steps.

    Args:
        model: the CLIP.
        phi: φ, whose weights are trained.
        images: [N, d] embeddings.
        tokens: [N, d_tok] pseudo-words of OTI.
        batches: image rows of each step.
        pairs: each image's concept and phrase.
    """
    optimizer, losses = torch.optim.AdamW(phi.parameters(), lr=1e-4, weight_decay=0.01), []
    for rows in batches:
        words = phi(images[rows])
        distil = contrastive_loss(F.normalize(tokens[rows], dim=-1), F.normalize(words, dim=-1), 0.25)
        chosen = [pairs[row] for row in rows.tolist()]
        spliced = encode_with_word(model, [phrase.replace(concept, " $ ") for concept, phrase in chosen], words)
        whole = encode_text(model, [phrase for _, phrase in chosen])
        loss = distil + 0.75 * (1 - F.cosine_similarity(spliced, whole, dim=-1)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def fti_step(model: CLIP, network: Fti4Cir, pixels: Tensor, subjects: list[str], attributes: list[str]) -> Tensor:
    """Loss of one training step of FTI4CIR, with two passes of the image tower.

    It leaves gradients in the network's weights and, for nothing, in the text tower's.
    """
    with torch.no_grad():
        embeddings = model.encode_image(pixels)
        patches = _last_block(model, pixels)
        captions = [f"a photo of {s} with {a}" for s, a in zip(subjects, attributes, strict=True)]
        real = model.encode_text(clip.tokenize(captions, truncate=True).to(pixels.device))
    slots = network.local_atte_fc(network.encode_slots(patches))
    chosen = [select_attributes(slots[i], embeddings[i]) for i in range(len(pixels))]
    latent = F.normalize(torch.stack([slots[i, kept] for i, (kept, _) in enumerate(chosen)]), dim=-1)
    counts = [count for _, count in chosen]
    subject_words, attribute_words = network.phi_s(embeddings), network.phi_a(latent)
    stars = ["* " * count for count in counts]
    whole = encode_text(
        model,
        [f"a photo of * with {s}" for s in stars],
        [{4: subject_words[i]} | {6 + j: attribute_words[i, j] for j in range(r)} for i, r in enumerate(counts)],
    )
    subject = encode_text(model, [f"a photo of * with {a}" for a in attributes], [{4: word} for word in subject_words])
    starts = [5 + len(clip.clip._tokenizer.encode(s)) for s in subjects]
    attribute = encode_text(
        model,
        [f"a photo of {s} with {star}" for s, star in zip(subjects, stars, strict=True)],
        [{starts[i] + j: attribute_words[i, j] for j in range(r)} for i, r in enumerate(counts)],
    )
    gram = latent @ latent.transpose(1, 2)
    loss = contrastive_loss(F.normalize(embeddings, dim=-1), F.normalize(whole, dim=-1), 0.2)
    loss = loss + (gram - torch.eye(12, device=gram.device)).square().mean()
    for spliced in (subject, attribute, whole):
        loss = loss + 1.4 * (1 - F.cosine_similarity(spliced, real, dim=-1)).mean()
    loss.backward()
    return loss.detach()


@torch.no_grad()
def nearest_names(model: CLIP, names: list[str], images: Tensor, count: int) -> list[list[str]]:
    """Each image's nearest names, best first, by the mean of 24 templates."""
    means = []
    for name in names:
        features = F.normalize(encode_text(model, [template.format(f" {name} ") for template in TEMPLATES]), dim=-1)
        means.append(F.normalize(features.mean(0), dim=-1))
    order = (F.normalize(images, dim=-1) @ torch.stack(means).T).argsort(dim=-1, descending=True, stable=True)
    return np.array(names)[order[:, :count].cpu().numpy()].tolist()


def cirr_recalls(
    queries: Tensor,
    gallery: Tensor,
    names: list[str],
    references: list[str],
    targets: list[str],
    groups: list[list[str]],
) -> dict[str, float]:
    """CIRR's metrics in percent, from rankings written out as names.

    Args:
        queries: [Q, d] unit vectors.
        gallery: [N, d] unit vectors.
        names: of the N gallery images.
        references: each query's reference.
        targets: each query's target.
        groups: the M other images of each query's group.
    """
    order = (1 - queries @ gallery.T).argsort(dim=-1, stable=True)
    ranked = np.array(names)[order.numpy()]  # [Q, N] names
    own = np.repeat(np.array(references), len(names)).reshape(len(queries), -1)
    without = ranked[ranked != own].reshape(len(queries), len(names) - 1)
    hits = without == np.repeat(np.array(targets), len(names) - 1).reshape(len(queries), -1)
    members = (without[..., None] == np.array(groups)[:, None, :]).sum(-1).astype(bool)  # [Q, N - 1, M] names compared
    of_group = hits[members].reshape(len(queries), -1)
    found = {f"R@{k}": hits[:, :k].any(1).mean() * 100 for k in (1, 5, 10, 50)}
    return found | {f"Rsubset@{k}": of_group[:, :k].any(1).mean() * 100 for k in (1, 2, 3)}


def best_names(queries: Tensor, gallery: Tensor, names: np.ndarray, count: int) -> list[list[str]]:
    """The first names of every query's whole ranking, query by query, so that it fits in memory."""
    order = [(1 - query @ gallery.T).argsort(stable=True) for query in queries]
    return [names[rows.numpy()][:count].tolist() for rows in order]


@torch.no_grad()
def image_embeddings(model: CLIP, paths: list[Path], to_pixels: Callable[[Image.Image], Tensor]) -> Tensor:
    """Embeddings [N, d], one image after another."""
    return torch.cat([model.encode_image(to_pixels(Image.open(path))[None]) for path in paths])


def sampled_phrases(
    model: nn.Module, tokenizer: Callable, concepts: Sequence[str], draws: list, settings: Settings
) -> list[list[int]]:
    """Token ids of phrases, concept after concept, sampled row by row with uniform draws [N, length]."""
    written = []
    for number, concept in enumerate(concepts):
        first = number * settings.phrases_per_concept
        prompt = tokenizer(f"a photo of {concept} that").input_ids
        every = torch.tensor([prompt] * settings.phrases_per_concept, device=model.device)

        def pick(ids: Tensor, scores: Tensor, first: int = first) -> Tensor:
            chosen = []
            for row in range(len(ids)):
                best, tokens = (scores[row] / settings.temperature).topk(50)
                shares, total, place = best.double().softmax(0).tolist(), 0.0, 0
                while place < 49 and total + shares[place] < draws[first + row][ids.shape[1]]:
                    total, place = total + shares[place], place + 1
                chosen.append(int(tokens[place]))
            only = torch.full_like(scores, float("-inf"))
            return only.scatter(1, torch.tensor(chosen, device=scores.device).unsqueeze(1), 0.0)

        ids = model.generate(
            every,
            attention_mask=torch.ones_like(every),
            do_sample=False,
            max_length=settings.max_length,
            no_repeat_ngram_size=settings.no_repeat_ngram,
            pad_token_id=tokenizer.eos_token_id,
            logits_processor=[pick],
        ).tolist()
        end = [tokenizer.eos_token_id] * settings.max_length
        written += [(row + end)[: settings.max_length] for row in ids]
    return written


def _last_block(model: CLIP, pixels: Tensor) -> Tensor:
    """The last block's tokens [N, P, w] of the image tower."""
    visual = model.visual
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    return visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1)
