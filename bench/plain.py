"""SEARLE's pieces of work as the specification words them, for comparison: clear, not fast.

Float32, 77 positions, texts tokenized and concepts replaced at every step, the text tower's weights not frozen, and
rankings as matrices of names (searle.md, sections 2 to 5).
"""

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor, nn

from searle_lib.searle.concepts import TEMPLATES
from searle_lib.searle.phrases import Settings

PLACEHOLDER = 259


def encode(model: CLIP, texts: list[str], words: Tensor | None = None) -> Tensor:
    """Text features [N, d], each first "$" replaced by its word."""
    ids = clip.tokenize(texts, truncate=True).to(model.positional_embedding.device)
    x = model.token_embedding(ids)
    if words is not None:
        for row in range(len(texts)):
            x[row, ids[row].tolist().index(PLACEHOLDER)] = words[row]
    x = model.transformer((x + model.positional_embedding).permute(1, 0, 2)).permute(1, 0, 2)
    return model.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection


def oti(
    model: CLIP, start: Tensor, images: Tensor, templates: list[list[str]], phrases: list[list[tuple[str, str]]]
) -> Tensor:
    """EMA tokens [B, d_tok] after a step for each list of templates, one an image, and of (concept, phrase) pairs."""
    words = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([words], lr=2e-2, weight_decay=0.01)
    ema = words.detach().clone()
    for of_step, pairs in zip(templates, phrases, strict=True):
        replaced = [phrase.replace(concept, " $ ", 1) for concept, phrase in pairs]
        texts = encode(model, [template.format(" $ ") for template in of_step], words)
        cos = (1 - F.cosine_similarity(texts, images, dim=-1)).sum()  # a sum, as each image in a batch of its own
        spliced, whole = encode(model, replaced, words), encode(model, [phrase for _, phrase in pairs])
        gpt = (1 - F.cosine_similarity(spliced, whole, dim=-1)).sum()
        ((cos + 0.5 * gpt) / 1.5).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema = 0.99 * ema + 0.01 * words.detach()
        for parameter in model.parameters():
            parameter.grad = None
    return ema


def phi_steps(
    model: CLIP, phi: nn.Module, images: Tensor, tokens: Tensor, batches: list[Tensor], pairs: list[tuple[str, str]]
) -> list[float]:
    """Losses of φ's steps over batches of image rows; pairs are each image's (concept, phrase)."""
    optimizer, losses = torch.optim.AdamW(phi.parameters(), lr=1e-4, weight_decay=0.01), []
    for rows in batches:
        words = phi(images[rows])
        a, b = F.normalize(tokens[rows], dim=-1), F.normalize(words, dim=-1)
        both = torch.cat([a, b])
        similar = torch.exp(both @ both.T / 0.25)
        positive = torch.exp((a * b).sum(-1) / 0.25).repeat(2)
        distil = -torch.log(positive / (similar.sum(-1) - similar.diagonal())).mean()
        chosen = [pairs[row] for row in rows.tolist()]
        spliced = encode(model, [phrase.replace(concept, " $ ") for concept, phrase in chosen], words)
        whole = encode(model, [phrase for _, phrase in chosen])
        loss = distil + 0.75 * (1 - F.cosine_similarity(spliced, whole, dim=-1)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = None
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def concepts_of(model: CLIP, names: list[str], images: Tensor, count: int) -> list[list[str]]:
    """Each image's nearest names, best first, by the mean of 24 templates."""
    means = []
    for name in names:
        features = F.normalize(encode(model, [template.format(f" {name} ") for template in TEMPLATES]), dim=-1)
        means.append(F.normalize(features.mean(0), dim=-1))
    order = (F.normalize(images, dim=-1) @ torch.stack(means).T).argsort(dim=-1, descending=True, stable=True)
    return np.array(names)[order[:, :count].numpy()].tolist()


def cirr_recalls(
    queries: Tensor,
    gallery: Tensor,
    names: list[str],
    references: list[str],
    targets: list[str],
    groups: list[list[str]],
) -> dict[str, float]:
    """CIRR's metrics in percent, from rankings written out as names."""
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
def image_embeddings(model: CLIP, paths: list, to_pixels) -> Tensor:
    """Embeddings [N, d], picture after picture."""
    from PIL import Image

    return torch.cat([model.encode_image(to_pixels(Image.open(path))[None]) for path in paths])


def phrases(model, tokenizer, concepts: tuple[str, ...], draws: list, settings: Settings) -> list[list[int]]:
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
