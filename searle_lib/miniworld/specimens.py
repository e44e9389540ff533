"""What exists in the miniature world: scenes and garments, each with a few named attributes.

A specimen is the truth about one image. The drawing modules turn it into pixels and the grammar into sentences; the
writers choose sets of specimens that make a benchmark. No model sees a specimen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 138, 36),
    "yellow": (248, 212, 56),
    "green": (56, 160, 80),
    "blue": (48, 104, 212),
    "purple": (136, 72, 184),
    "pink": (244, 140, 184),
    "brown": (134, 86, 50),
    "black": (38, 38, 44),
    "white": (248, 248, 246),
    "gray": (140, 144, 152),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
COUNTS = (1, 2, 3)
SETTINGS = ("beach", "snow", "night", "forest", "city", "desert", "meadow", "room")
SLEEVES = ("sleeveless", "short", "long")
NECKLINES = ("round", "v-neck", "collar")
LENGTHS = ("short", "long")
PATTERNS = ("plain", "striped", "dotted", "checked", "floral")


@dataclass(frozen=True)
class Kind:
    """A noun of the world, its hypernym, and the attributes it has unless a sentence says otherwise."""

    name: str
    hypernym: str
    defaults: dict[str, object]


@dataclass(frozen=True)
class Scene:
    """Up to three things of one kind at a place, perhaps beside a second kind of thing."""

    kind: str
    colour: str
    texture: str
    size: str
    count: int
    setting: str
    companion: str | None = None


@dataclass(frozen=True)
class Garment:
    """One piece of clothing on a plain ground."""

    kind: str
    colour: str
    pattern: str
    sleeves: str
    neckline: str
    length: str
    belt: bool


Specimen = Scene | Garment


def _thing(name: str, hypernym: str, colour: str, texture: str = "plain", size: str = "medium") -> Kind:
    return Kind(name, hypernym, {"colour": colour, "texture": texture, "size": size, "count": 1})


def _wear(
    name: str,
    hypernym: str,
    colour: str,
    sleeves: str,
    neckline: str,
    length: str,
    pattern: str = "plain",
    belt: bool = False,
) -> Kind:
    look = {"colour": colour, "pattern": pattern, "sleeves": sleeves, "neckline": neckline}
    return Kind(name, hypernym, look | {"length": length, "belt": belt})


SCENE_KINDS = {
    kind.name: kind
    for kind in (
        _thing("star", "shape", "yellow", size="small"),
        _thing("moon", "shape", "white"),
        _thing("heart", "shape", "red", size="small"),
        _thing("house", "building", "orange", size="large"),
        _thing("tent", "building", "green", "striped"),
        _thing("tower", "building", "gray", "checked", "large"),
        _thing("boat", "vehicle", "brown"),
        _thing("car", "vehicle", "blue"),
        _thing("rocket", "vehicle", "white", "striped", "large"),
        _thing("tree", "plant", "green", size="large"),
        _thing("flower", "plant", "pink", size="small"),
        _thing("cactus", "plant", "green", "dotted"),
        _thing("mushroom", "plant", "red", "dotted", "small"),
        _thing("apple", "fruit", "red", size="small"),
        _thing("pear", "fruit", "yellow", size="small"),
        _thing("fish", "animal", "orange", "striped"),
        _thing("bird", "animal", "blue", size="small"),
        _thing("cat", "animal", "black"),
        _thing("butterfly", "animal", "purple", "dotted"),
        _thing("cup", "object", "white", size="small"),
        _thing("umbrella", "object", "purple", "striped"),
        _thing("balloon", "object", "red"),
        _thing("key", "object", "gray", size="small"),
        _thing("bell", "object", "yellow"),
    )
}
GARMENT_KINDS = {
    kind.name: kind
    for kind in (
        _wear("gown", "dress", "purple", "sleeveless", "v-neck", "long", belt=True),
        _wear("sundress", "dress", "yellow", "sleeveless", "round", "short", "floral"),
        _wear("shirtdress", "dress", "blue", "short", "collar", "short", "striped", True),
        _wear("robe", "dress", "white", "long", "v-neck", "long", belt=True),
        _wear("polo", "shirt", "green", "short", "collar", "short"),
        _wear("flannel", "shirt", "red", "long", "collar", "long", "checked"),
        _wear("jersey", "shirt", "black", "short", "round", "long", "striped"),
        _wear("sweater", "shirt", "brown", "long", "round", "short"),
        _wear("blouse", "top", "pink", "long", "collar", "short", "dotted"),
        _wear("camisole", "top", "white", "sleeveless", "v-neck", "short"),
        _wear("tunic", "top", "orange", "short", "v-neck", "long", belt=True),
        _wear("tee", "top", "gray", "short", "round", "short"),
    )
}
KINDS = SCENE_KINDS | GARMENT_KINDS
DOMAINS: dict[type, dict[str, Sequence]] = {
    Scene: {
        "kind": tuple(SCENE_KINDS),
        "colour": tuple(COLOURS),
        "texture": TEXTURES,
        "size": SIZES,
        "count": COUNTS,
        "setting": SETTINGS,
        "companion": (None, *SCENE_KINDS),
    },
    Garment: {
        "kind": tuple(GARMENT_KINDS),
        "colour": tuple(COLOURS),
        "pattern": PATTERNS,
        "sleeves": SLEEVES,
        "neckline": NECKLINES,
        "length": LENGTHS,
        "belt": (False, True),
    },
}


def concepts() -> list[str]:
    """Return the names of the world's concepts, written as in Open Images: kinds, their hypernyms, and places."""
    names = [*KINDS, *(kind.hypernym for kind in KINDS.values()), *SETTINGS]
    return sorted(name.capitalize() for name in set(names))


def kinds_of(category: str) -> tuple[str, ...]:
    """Return the garment kinds of a FashionIQ category (dress, shirt or toptee)."""
    hypernym = category.removesuffix("tee")
    return tuple(kind.name for kind in GARMENT_KINDS.values() if kind.hypernym == hypernym)


def random_scene(random: np.random.Generator, kind: str | None = None) -> Scene:
    """Return a random scene; each attribute keeps its kind's default with probability one half."""
    kind = kind or _pick(random, tuple(SCENE_KINDS))
    drawn = {name: _pick(random, DOMAINS[Scene][name]) for name in ("colour", "texture", "size", "count")}
    defaults = {name: KINDS[kind].defaults[name] for name in drawn if random.random() < 0.5}
    companion = _pick(random, [k for k in SCENE_KINDS if k != kind]) if random.random() < 0.3 else None
    return Scene(kind, **(drawn | defaults), setting=_pick(random, SETTINGS), companion=companion)


def random_garment(random: np.random.Generator, kinds: Sequence[str] = tuple(GARMENT_KINDS)) -> Garment:
    """Return a random garment; each attribute keeps its kind's default with probability one half."""
    kind = _pick(random, kinds)
    drawn = {name: _pick(random, values) for name, values in DOMAINS[Garment].items() if name != "kind"}
    defaults = {name: KINDS[kind].defaults[name] for name in drawn if random.random() < 0.5}
    return Garment(kind, **(drawn | defaults))


def varied(specimen: Specimen, changes: int, random: np.random.Generator, fixed: Sequence[str] = ()) -> Specimen:
    """Return the specimen with other values for `changes` random attributes, none of them in `fixed`."""
    domain = DOMAINS[type(specimen)]
    for name in random.permutation([n for n in domain if n not in fixed])[:changes]:
        taken = (getattr(specimen, name), specimen.kind if name == "companion" else None)
        others = [value for value in domain[name] if value not in taken or (value is None and taken[0] is not None)]
        specimen = replace(specimen, **{name: _pick(random, others)})
    if isinstance(specimen, Scene) and specimen.companion == specimen.kind:
        specimen = replace(specimen, companion=None)
    return specimen


def differences(a: Specimen, b: Specimen) -> list[str]:
    """Return the names of the attributes in which two scenes, or two garments, differ."""
    return [field.name for field in fields(a) if getattr(a, field.name) != getattr(b, field.name)]


def _pick(random: np.random.Generator, values: Sequence):
    return values[int(random.integers(len(values)))]
