"""FTI4CIR's training step as the specification words it, for comparison: clear, not fast.

Two visual passes, 77 positions, words spliced image by image with the count brought to the host, the text tower's
weights not frozen (fti4cir.md, sections 2 to 4).
"""

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor

from searle_lib.fti4cir.network import Fti4Cir


def step(model: CLIP, network: Fti4Cir, pixels: Tensor, subjects: list[str], attributes: list[str]) -> Tensor:
    """One step's loss, its gradients left in the network's weights and, needlessly, in the text tower's."""
    with torch.no_grad():
        embeddings = model.encode_image(pixels)
        patches = _last_block(model, pixels)
        sentences = [_real(s, a) for s, a in zip(subjects, attributes, strict=True)]
        real = model.encode_text(clip.tokenize(sentences, truncate=True).to(pixels.device))
    slots = network.local_atte_fc(network._read(patches))
    chosen = [_select(slots[i], embeddings[i]) for i in range(len(pixels))]
    latent = F.normalize(torch.stack([slots[i, kept] for i, (kept, _) in enumerate(chosen)]), dim=-1)
    counts = [count for _, count in chosen]
    subject_words, attribute_words = network.phi_s(embeddings), network.phi_a(latent)
    stars = ["* " * count for count in counts]
    whole = _encode(
        model,
        [f"a photo of * with {s}" for s in stars],
        [{4: subject_words[i]} | {6 + j: attribute_words[i, j] for j in range(r)} for i, r in enumerate(counts)],
    )
    subject = _encode(
        model,
        [f"a photo of * with {a}" for a in attributes],
        [{4: subject_words[i]} for i in range(len(pixels))],
    )
    starts = [5 + len(clip.clip._tokenizer.encode(s)) for s in subjects]
    attribute = _encode(
        model,
        [f"a photo of {s} with {star}" for s, star in zip(subjects, stars, strict=True)],
        [{starts[i] + j: attribute_words[i, j] for j in range(r)} for i, r in enumerate(counts)],
    )
    gram = latent @ latent.transpose(1, 2)
    loss = _contrastive(F.normalize(embeddings, dim=-1), F.normalize(whole, dim=-1), 0.2)
    loss = loss + (gram - torch.eye(12, device=gram.device)).square().mean()
    for spliced in (subject, attribute, whole):
        loss = loss + 1.4 * (1 - F.cosine_similarity(spliced, real, dim=-1)).mean()
    loss.backward()
    return loss.detach()


def _real(subject: str, attribute: str) -> str:
    return f"a photo of {subject} with {attribute}"


def _last_block(model: CLIP, pixels: Tensor) -> Tensor:
    visual = model.visual
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    return visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1)


def _select(slots: Tensor, embedding: Tensor) -> tuple[list[int], int]:
    scores = (slots @ embedding).softmax(0).tolist()
    count = min(max(sum(score > 0.05 for score in scores), 1), 12)
    order = sorted(range(24), key=lambda k: (-scores[k], k))[:12]
    return sorted(order[:count]) + order[count:], count


def _encode(model: CLIP, texts: list[str], words: list[dict[int, Tensor]]) -> Tensor:
    ids = clip.tokenize(texts, truncate=True).to(model.positional_embedding.device)
    x = model.token_embedding(ids)
    rows = []
    for i, placed in enumerate(words):
        row = [x[i, place] for place in range(77)]
        for place, word in placed.items():
            row[place] = word
        rows.append(torch.stack(row))
    x = (torch.stack(rows) + model.positional_embedding).permute(1, 0, 2)
    x = model.ln_final(model.transformer(x).permute(1, 0, 2))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection


def _contrastive(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    both = torch.cat([a, b])
    similar = torch.exp(both @ both.T / temperature)
    total = similar.sum(1) - similar.diagonal()
    positive = torch.exp((a * b).sum(1) / temperature)
    return -torch.log(torch.cat([positive, positive]) / total).mean()
