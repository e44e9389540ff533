"""Sentences with FTI4CIR's pseudo-words, encoded by CLIP's text tower (FTI4CIR section 3).

All functions take `Words` of N images and return text features [N, d]. "a photo of * with * * *" has a subject word and
as many attribute words as the image keeps. Only the device knows this number, so the sentences of the training are
built on the device, and no step waits for the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from searle_lib.backbone.model import Backbone, Tokens
from searle_lib.backbone.texts import encode_embedded
from searle_lib.fti4cir.network import MAX_ATTRIBUTES, Words

STAR = 265  # CLIP's token id of "*" as a word of its own
END = 49407  # CLIP's token id of the end-of-text
SUBJECT_POSITION = 4  # after start-of-text and "a photo of"
ATTRIBUTES_POSITION = 6  # after the subject word and "with"
BEGINNINGS = {"both": "a photo of * with", "subject": "a photo of *", "attributes": "a photo of"}  # by words in use


@dataclass(frozen=True)
class Prefixes:
    """N texts without their end-of-text.

    Args:
        ids: [N, L] int64.
        lengths: [N] int64, the number of tokens of each text, start-of-text included.
    """

    ids: Tensor
    lengths: Tensor

    def __getitem__(self, rows) -> "Prefixes":
        lengths = self.lengths[rows]
        return Prefixes(self.ids[rows][:, : int(lengths.max())], lengths)


def tokenize_prefixes(backbone: Backbone, texts: Sequence[str]) -> Prefixes:
    """Tokenize texts that attribute words will follow. Raises ValueError for a text without room for all of them."""
    tokens = backbone.tokenize(texts)
    room = backbone.context - MAX_ATTRIBUTES - 1
    if int(tokens.ends.max()) > room:
        row = int(tokens.ends.argmax())
        raise ValueError(
            f"text {texts[row][:60]!r}... has {int(tokens.ends[row])} tokens, which leaves no room for "
            f"{MAX_ATTRIBUTES} attribute words; shorten its subject to {room - 6} tokens."
        )
    return Prefixes(tokens.ids, tokens.ends)


def whole_sentence(backbone: Backbone, words: Words, parts: str = "both") -> Tensor:
    """Encode "a photo of * with * * *" into features [N, d]; an ablation uses the subject or the attributes alone."""
    count = len(words.subject)
    start = tokenize_prefixes(backbone, [BEGINNINGS[parts]])
    starts = Prefixes(start.ids.expand(count, -1), start.lengths.expand(count))
    return _encode_with_attributes(backbone, starts, _used(words, parts), with_subject=parts != "attributes")


def attribute_sentence(backbone: Backbone, subjects: Prefixes, words: Words) -> Tensor:
    """Encode "a photo of {subject} with * * *", attribute words after a real subject, into features [N, d]."""
    return _encode_with_attributes(backbone, subjects, words, with_subject=False)


def subject_sentence(backbone: Backbone, attributes: Tokens, words: Words) -> Tensor:
    """Encode "a photo of * with {attribute}", the subject word before real attributes, into features [N, d]."""
    ids, ends = attributes.ids.to(backbone.device), attributes.ends.to(backbone.device)
    embedded = _with_subject(backbone.model.token_embedding(ids), words.subject)
    return encode_embedded(backbone, embedded, ends, SUBJECT_POSITION)


def query(backbone: Backbone, words: Words, captions: Sequence[str], parts: str = "both") -> Tensor:
    """Encode "a photo of * with * * * but {caption}" into features [N, d], not normalised.

    Args:
        backbone: the frozen CLIP.
        words: the pseudo-words of N references.
        captions: their relative captions.
        parts: the words to use: both, subject or attributes.
    """
    words = _used(words, parts)
    texts = [
        f"{BEGINNINGS[parts]} {'* ' * count}but {caption}"
        for count, caption in zip(words.counts.tolist(), captions, strict=True)
    ]
    tokens = backbone.tokenize(texts)
    ids, ends = tokens.ids.to(backbone.device), tokens.ends.to(backbone.device)
    embedded = backbone.model.token_embedding(ids)
    embedded = embedded if parts == "attributes" else _with_subject(embedded, words.subject)
    starts = torch.full_like(ends, SUBJECT_POSITION if parts == "attributes" else ATTRIBUTES_POSITION)
    return encode_embedded(backbone, _with_attributes(embedded, words, starts), ends, SUBJECT_POSITION)


def _used(words: Words, parts: str) -> Words:
    """Return the words, without attributes if an ablation uses the subject alone."""
    return replace(words, counts=torch.zeros_like(words.counts)) if parts == "subject" else words


def _encode_with_attributes(backbone: Backbone, start: Prefixes, words: Words, with_subject: bool) -> Tensor:
    """Encode texts of a prefix and as many attribute words as each image keeps into features [N, d]."""
    length = start.ids.shape[1] + MAX_ATTRIBUTES + 1
    ids, lengths = start.ids.to(backbone.device), start.lengths.to(backbone.device).unsqueeze(1)
    position = torch.arange(length, device=backbone.device)  # [L]
    ends = lengths + words.counts.unsqueeze(1)
    padded = torch.nn.functional.pad(ids, (0, length - ids.shape[1]))
    stars = torch.where(position < ends, STAR, torch.where(position == ends, END, 0))
    embedded = backbone.model.token_embedding(torch.where(position < lengths, padded, stars))  # [N, L, d_tok]
    embedded = _with_subject(embedded, words.subject) if with_subject else embedded
    embedded = _with_attributes(embedded, words, lengths.squeeze(1))
    return encode_embedded(backbone, embedded, ends.squeeze(1), SUBJECT_POSITION)


def _with_subject(embedded: Tensor, subject: Tensor) -> Tensor:
    is_subject = torch.arange(embedded.shape[1], device=embedded.device) == SUBJECT_POSITION
    return torch.where(is_subject[:, None], subject.unsqueeze(1).to(embedded.dtype), embedded)


def _with_attributes(embedded: Tensor, words: Words, starts: Tensor) -> Tensor:
    """Put the first counts[i] attribute words of image i into token embeddings [N, L, d_tok], from starts[i] on."""
    offset = torch.arange(embedded.shape[1], device=embedded.device) - starts.unsqueeze(1)  # [N, L]
    attribute = offset.clamp(0, MAX_ATTRIBUTES - 1).unsqueeze(-1).expand(-1, -1, embedded.shape[-1])
    inside = (offset >= 0) & (offset < words.counts.unsqueeze(1))
    return torch.where(inside.unsqueeze(-1), words.attributes.gather(1, attribute).to(embedded.dtype), embedded)
