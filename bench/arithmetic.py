"""The arithmetic of a study from the shapes of its networks, in FLOP: a product and a sum count as two.

`clip` is a shape of `searle_lib.check.published.SHAPES`. The tests compare every formula with a count by PyTorch.
"""

from collections.abc import Sequence

from searle_lib.backbone import texts
from searle_lib.backbone.model import tokenize
from searle_lib.fti4cir.network import LAYERS, MAX_ATTRIBUTES, SLOTS
from searle_lib.searle.concepts import TEMPLATES
from searle_lib.searle.phrase_bank import SLOT

PHRASE, PROMPT, CAPTION = 33, 4, 12  # tokens: of a phrase, of "<start> a photo of", of FTI4CIR's sentences behind it
NAME = 3  # tokens of a name of the vocabulary
BLIP = (256, 384, 12, 768, 16)  # the vision tower of BLIP base, as the first numbers of a shape
BLIP_DECODER, BLIP_TOKENS = 161e6, 3 * 25  # parameters, and tokens of three beams


def vision_tokens(clip: Sequence[int]) -> int:
    """Return the number of the vision tower's tokens, class token included."""
    return (clip[1] // clip[4]) ** 2 + 1


def image(clip: Sequence[int]) -> float:
    """Return the FLOP of the vision tower for one image."""
    d, _, layers, w, patch = clip[:5]
    tokens = vision_tokens(clip)
    return 2 * (tokens - 1) * 3 * patch**2 * w + layers * (24 * w**2 * tokens + 4 * w * tokens**2) + 2 * w * d


def text(clip: Sequence[int], tokens: int, before: int = 0, backward: bool = False) -> float:
    """Return the FLOP of the text tower for one text. The last block computes the last token alone.

    Args:
        clip: the shape.
        tokens: of the text, without its prefix.
        before: tokens of its prefix, which is encoded already.
        backward: add the gradient of a pseudo-word. CLIP's weights have no gradient, so a product with a weight costs
            as much again, and attention twice as much.
    """
    d, w, layers, keys = clip[0], clip[7], clip[9], tokens + before
    products = (layers - 1) * 24 * w**2 * tokens + 4 * w**2 * tokens + 20 * w**2 + 2 * w * d
    attention = (layers - 1) * 4 * w * tokens * keys + 4 * w * keys
    return products * (2 if backward else 1) + attention * (3 if backward else 1)


def template(clip: Sequence[int], name: int = 1, backward: bool = False) -> float:
    """Return the FLOP of a template, the mean over all, with a name of some tokens; a pseudo-word is one token."""
    parts = texts.split(tokenize([each.format(SLOT) for each in TEMPLATES]))
    pairs = zip((parts.ends + name).tolist(), parts.placeholder_positions.tolist(), strict=True)
    return sum(text(clip, tokens, before, backward) for tokens, before in pairs) / len(TEMPLATES)


def name_feature(clip: Sequence[int]) -> float:
    """Return the FLOP of the feature of a name of the vocabulary: all templates."""
    return len(TEMPLATES) * template(clip, NAME)


def phrase(clip: Sequence[int]) -> float:
    """Return the FLOP of a phrase with a pseudo-word, forward and backward."""
    return text(clip, PHRASE - PROMPT, PROMPT, backward=True)


def oti_step(clip: Sequence[int]) -> float:
    """Return the FLOP of a step of OTI for one image: a template and a phrase, forward and backward."""
    return template(clip, backward=True) + phrase(clip)


def phi(clip: Sequence[int]) -> float:
    """Return the FLOP of φ for one image."""
    return 48 * clip[0] ** 2


def phi_step(clip: Sequence[int]) -> float:
    """Return the FLOP of an image in an epoch of φ: a phrase, and φ forward and backward with its weights."""
    return phrase(clip) + 3 * phi(clip)


def fti(clip: Sequence[int]) -> float:
    """Return the FLOP of FTI4CIR's network for one image."""
    d, w, tokens = clip[0], clip[3], SLOTS + vision_tokens(clip)
    whole = (LAYERS - 1) * (16 * w**2 * tokens + 4 * w * tokens**2)
    last = 4 * w**2 * tokens + 12 * w**2 * SLOTS + 4 * w * SLOTS * tokens
    return whole + last + 2 * SLOTS * (w + 1) * d + (1 + MAX_ATTRIBUTES) * phi(clip)


def fti_step(clip: Sequence[int]) -> float:
    """Return the FLOP of an image in an epoch of FTI4CIR's network: the network, and three sentences."""
    return 3 * fti(clip) + 3 * text(clip, CAPTION, PROMPT, backward=True)


def caption() -> float:
    """Return the FLOP of a caption by BLIP."""
    return image(BLIP) + 2 * BLIP_DECODER * BLIP_TOKENS
