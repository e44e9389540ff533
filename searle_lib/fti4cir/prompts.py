"""The sentences in which FTI4CIR's words stand, built on the device (fti4cir.md, sections 2.6 and 2.7).

"a photo of * with * * *" holds a subject word and as many attribute words as the image keeps, which only the device
knows; so the placeholders are laid out there, and no step waits for the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from searle_lib.backbone.model import CONTEXT, Backbone, Tokens, encode_embedded, tokenize
from searle_lib.fti4cir.network import MOST, Words

STAR = 265  # CLIP's token id of "*" as a word of its own
END = 49407
SUBJECT_AT = 4  # behind start-of-text and "a photo of", with which every sentence begins
ATTRIBUTES_AT = 6  # behind the subject's placeholder and "with"
WHOLE = {"both": "a photo of * with", "subject": "a photo of *", "attributes": "a photo of"}  # by the words in use


@dataclass(frozen=True)
class Prefixes:
    """Texts without their end-of-text: ids [N, L] int64, and how many tokens each has, lengths [N]."""

    ids: Tensor
    lengths: Tensor

    def __getitem__(self, rows) -> "Prefixes":
        lengths = self.lengths[rows]
        return Prefixes(self.ids[rows][:, : int(lengths.max())], lengths)


def prefixes(texts: Sequence[str]) -> Prefixes:
    """Texts to be continued by attribute words. Raises ValueError for one that leaves no room for all of them."""
    tokens = tokenize(texts)
    room = CONTEXT - MOST - 1
    if int(tokens.ends.max()) > room:
        row = int(tokens.ends.argmax())
        raise ValueError(
            f"text {texts[row][:60]!r}... has {int(tokens.ends[row])} tokens, which leaves no room for {MOST} "
            f"attribute words; shorten its subject to {room - 6} tokens."
        )
    return Prefixes(tokens.ids, tokens.ends)


def whole_sentence(backbone: Backbone, words: Words, parts: str = "both") -> Tensor:
    """Features [N, d] of "a photo of * with * * *": subject and attribute words, or an ablation's part of them."""
    count = len(words.subject)
    start = prefixes([WHOLE[parts]])
    every = Prefixes(start.ids.expand(count, -1), start.lengths.expand(count))
    return _continued(backbone, every, _used(words, parts), with_subject=parts != "attributes")


def attributes_of(backbone: Backbone, subjects: Prefixes, words: Words) -> Tensor:
    """Features [N, d] of "a photo of {subject} with * * *": the attribute words behind a real subject."""
    return _continued(backbone, subjects, words, with_subject=False)


def subject_with(backbone: Backbone, attributes: Tokens, words: Words) -> Tensor:
    """Features [N, d] of "a photo of * with {attribute}": the subject word before real attributes."""
    ids, ends = attributes.ids.to(backbone.device), attributes.ends.to(backbone.device)
    return encode_embedded(
        backbone, _with_subject(backbone.model.token_embedding(ids), words.subject), ends, SUBJECT_AT
    )


def query(backbone: Backbone, words: Words, modifications: Sequence[str], parts: str = "both") -> Tensor:
    """Features [N, d], not normalised, of "a photo of * with * * * but {modification}"."""
    words = _used(words, parts)
    texts = [
        f"{WHOLE[parts]} {'* ' * count}but {modification}"
        for count, modification in zip(words.counts.tolist(), modifications, strict=True)
    ]
    tokens = tokenize(texts)
    ids, ends = tokens.ids.to(backbone.device), tokens.ends.to(backbone.device)
    embedded = backbone.model.token_embedding(ids)
    embedded = embedded if parts == "attributes" else _with_subject(embedded, words.subject)
    starts = torch.full_like(ends, SUBJECT_AT if parts == "attributes" else ATTRIBUTES_AT)
    return encode_embedded(backbone, _with_attributes(embedded, words, starts), ends, SUBJECT_AT)


def _used(words: Words, parts: str) -> Words:
    """The words, with no attributes counted where an ablation uses the subject alone."""
    return replace(words, counts=torch.zeros_like(words.counts)) if parts == "subject" else words


def _continued(backbone: Backbone, start: Prefixes, words: Words, with_subject: bool) -> Tensor:
    """Texts of a prefix and as many attribute words as each image keeps."""
    length = start.ids.shape[1] + MOST + 1
    ids, lengths = start.ids.to(backbone.device), start.lengths.to(backbone.device).unsqueeze(1)
    place = torch.arange(length, device=backbone.device)  # [L]
    ends = lengths + words.counts.unsqueeze(1)
    padded = torch.nn.functional.pad(ids, (0, length - ids.shape[1]))
    laid = torch.where(place < lengths, padded, torch.where(place < ends, STAR, torch.where(place == ends, END, 0)))
    embedded = backbone.model.token_embedding(laid)  # [N, L, d_tok]
    embedded = _with_subject(embedded, words.subject) if with_subject else embedded
    return encode_embedded(backbone, _with_attributes(embedded, words, lengths.squeeze(1)), ends.squeeze(1), SUBJECT_AT)


def _with_subject(embedded: Tensor, subject: Tensor) -> Tensor:
    at = torch.arange(embedded.shape[1], device=embedded.device) == SUBJECT_AT
    return torch.where(at[:, None], subject.unsqueeze(1).to(embedded.dtype), embedded)


def _with_attributes(embedded: Tensor, words: Words, starts: Tensor) -> Tensor:
    """Embeddings [N, L, d_tok] with the first counts[i] attribute words at starts[i] and the places behind it."""
    offset = torch.arange(embedded.shape[1], device=embedded.device) - starts.unsqueeze(1)  # [N, L]
    chosen = offset.clamp(0, MOST - 1).unsqueeze(-1).expand(-1, -1, embedded.shape[-1])
    inside = (offset >= 0) & (offset < words.counts.unsqueeze(1))
    return torch.where(inside.unsqueeze(-1), words.attributes.gather(1, chosen).to(embedded.dtype), embedded)
