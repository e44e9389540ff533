"""The method in plain PyTorch, as the papers write it: slow and obvious. Tests, the benchmark and newcomers read it;
nothing else imports it.

`model` is a CLIP of the clip package in float32. Each function takes strings and tensors, and prepares nothing ahead.
The rest of the library computes the same numbers in less time (docs/speed.md).
"""

from collections.abc import Mapping, Sequence

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor, nn

PLACEHOLDER = 259  # CLIP's token id of "$" as a word of its own


def encode_text(model: CLIP, texts: Sequence[str], words: Sequence[Mapping[int, Tensor]] = ()) -> Tensor:
    """CLIP's text pass over all 77 positions, with vectors in the place of some token embeddings.

    Args:
        model: the CLIP.
        texts: N texts. A text of more than 77 tokens is cut.
        words: for each text, vectors [d_tok] by position; position 0 is the start-of-text. Empty: texts as they are.

    Returns:
        [N, d], not normalised.
    """
    ids = clip.tokenize(list(texts), truncate=True).to(model.positional_embedding.device)  # [N, 77]
    x = model.token_embedding(ids)  # [N, 77, d_tok]
    for row, of_text in enumerate(words):
        for position, word in of_text.items():
            x[row, position] = word
    x = x + model.positional_embedding
    x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)  # CLIP's blocks take [77, N, d_tok]
    ends = ids.argmax(dim=-1)  # the end-of-text has the largest id
    return model.ln_final(x)[torch.arange(len(x)), ends] @ model.text_projection


def encode_with_word(model: CLIP, texts: Sequence[str], words: Tensor) -> Tensor:
    """Text features [N, d] of N texts, the first "$" of each replaced by its pseudo-word of words [N, d_tok]."""
    ids = clip.tokenize(list(texts), truncate=True).tolist()
    return encode_text(model, texts, [{row.index(PLACEHOLDER): word} for row, word in zip(ids, words, strict=True)])


def oti(
    model: CLIP,
    start: Tensor,
    images: Tensor,
    templates: Sequence[Sequence[str]],
    phrases: Sequence[Sequence[tuple[str, str]]],
    *,
    learning_rate: float = 2e-2,
    ema_decay: float = 0.99,
) -> Tensor:
    """Pseudo-words of B images by optimisation-based textual inversion (SEARLE section 3.1).

    Args:
        model: the CLIP.
        start: [B, d_tok], the first pseudo-words.
        images: [B, d], CLIP's embeddings of the images.
        templates: for each step B templates, such as "a photo of {}".
        phrases: for each step B pairs of a concept and a phrase that names the concept.
        learning_rate: of AdamW.
        ema_decay: of the moving average.

    Returns:
        [B, d_tok], the exponential moving averages of the pseudo-words.
    """
    words = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([words], lr=learning_rate, weight_decay=0.01)
    average = words.detach().clone()
    for of_step, pairs in zip(templates, phrases, strict=True):
        text = encode_with_word(model, [template.format(" $ ") for template in of_step], words)
        spliced = encode_with_word(model, [phrase.replace(concept, " $ ", 1) for concept, phrase in pairs], words)
        whole = encode_text(model, [phrase for _, phrase in pairs])
        cos = 1 - F.cosine_similarity(text, images, dim=-1)  # [B]
        gpt = 1 - F.cosine_similarity(spliced, whole, dim=-1)  # [B]
        ((cos + 0.5 * gpt) / 1.5).sum().backward()  # a sum, so that each image learns as in a batch of its own
        optimizer.step()
        optimizer.zero_grad()
        model.zero_grad()  # a CLIP that is not frozen has gradients too
        average = ema_decay * average + (1 - ema_decay) * words.detach()
    return average


def contrastive_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss of B pairs of unit vectors a and b [B, d] (SEARLE section 3.2; FTI4CIR uses it too).

    Each vector's partner is its positive. All other vectors are in the denominator, those of its own side too.
    """
    both = torch.cat([a, b])  # [2B, d]
    similar = torch.exp(both @ both.T / temperature)
    total = similar.sum(dim=1) - similar.diagonal()
    positive = torch.exp((a * b).sum(dim=1) / temperature)
    return -torch.log(torch.cat([positive, positive]) / total).mean()


def select_attributes(slots: Tensor, embedding: Tensor) -> tuple[list[int], int]:
    """FTI4CIR's choice among the 24 attribute slots [24, d] of one image with this embedding [d].

    Returns:
        The 12 slots that are kept, and how many of them become words: the first ones, which are in slot order.
    """
    scores = (slots @ embedding).softmax(dim=0).tolist()
    count = min(max(sum(score > 0.05 for score in scores), 1), 12)
    best = sorted(range(24), key=lambda slot: (-scores[slot], slot))[:12]
    return sorted(best[:count]) + best[count:], count
