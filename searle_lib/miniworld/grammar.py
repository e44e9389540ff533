"""The sentences of the miniature world: captions of one image, and edits that lead from one image to another.

A caption describes one specimen and leaves out attributes at random. It mentions an attribute more often if it differs
from the kind's default, sometimes as a clause ("a star that is blue instead of yellow"). A relative caption compares
two specimens ("has longer sleeves and a belt"); no training set holds one.
"""

from collections.abc import Sequence

import numpy as np

from searle_lib.miniworld.specimens import KINDS, Scene, Specimen, differences

FRAMES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "this is {}",
    "this is a photo of {}",
    "this photo contains {}",
    "we see {}",
    "we see {} in this photo",
    "we see {} in this image",
    "an illustration of {}",
    "this illustration contains {}",
    "a sketch of {}",
    "this sketch contains {}",
    "a diagram of {}",
    "this diagram contains {}",
    "{} photo",
    "{} image",
    "{} illustration",
)
NUMBERS = {1: "one", 2: "two", 3: "three"}
PLACES = {
    "beach": ("on the beach", "at the beach", "on a sandy beach"),
    "snow": ("in the snow", "on a snowy ground", "in a snowy place"),
    "night": ("at night", "under a dark sky", "in the dark night"),
    "forest": ("in the forest", "in a dark forest", "among the trees of a forest"),
    "city": ("in the city", "in front of tall buildings", "in a big city"),
    "desert": ("in the desert", "on dry desert ground", "in a sandy desert"),
    "meadow": ("in a meadow", "on green grass", "on the grass of a meadow"),
    "room": ("in a room", "inside a room", "inside on the floor"),
}
PLURALS = {"cactus": "cactuses", "butterfly": "butterflies", "fish": "fishes", "city": "cities"}
PATTERN_CLAUSES = {
    "plain": ("is plain", "has no pattern", "has a plain look"),
    "striped": ("is striped", "has stripes", "has a striped pattern"),
    "dotted": ("is dotted", "has dots", "has a dotted pattern"),
    "checked": ("is checked", "has checks", "has a checked pattern"),
    "floral": ("is floral", "has flowers on it", "has a floral pattern"),
}
SIZE_CLAUSES = {
    "small": ("is small", "is tiny", "has a small size"),
    "medium": ("is of medium size", "is neither small nor large"),
    "large": ("is large", "is big", "has a large size"),
}
SLEEVE_CLAUSES = {
    "sleeveless": ("is sleeveless", "has no sleeves"),
    "short": ("has short sleeves", "is short sleeved"),
    "long": ("has long sleeves", "is long sleeved"),
}
NECK_CLAUSES = {
    "round": ("has a round neck", "has a round neckline"),
    "v-neck": ("has a v neck", "has a v neckline"),
    "collar": ("has a collar", "is collared"),
}
LENGTH_CLAUSES = {"short": ("is short", "has a short cut"), "long": ("is long", "has a long cut")}
ORDERED = {  # attribute: its values from less to more, the words for less and for more
    "size": (("small", "medium", "large"), ("is smaller",), ("is larger", "is bigger")),
    "sleeves": (("sleeveless", "short", "long"), ("has shorter sleeves",), ("has longer sleeves",)),
    "length": (("short", "long"), ("is shorter",), ("is longer",)),
}


def caption(specimen: Specimen, random: np.random.Generator) -> str:
    """Return a true sentence about a specimen that leaves out some of its attributes."""
    noun = KINDS[specimen.kind].hypernym if random.random() < 0.15 else specimen.kind
    if isinstance(specimen, Scene) and random.random() < 0.06:
        return _frame(a(specimen.setting) if random.random() < 0.5 else specimen.setting, random)
    mentioned = _mentioned(specimen, random)
    spoken = {name for name in mentioned if random.random() < 0.5}  # as adjectives; the rest are clauses
    phrase = _noun_phrase(specimen, noun, spoken, random)
    clauses = [_clause(specimen, name, random) for name in mentioned if name not in spoken]
    clauses = [clause for clause in clauses if clause]
    if clauses:
        phrase = f"{phrase} that {_joined(clauses, random)}"
    return _frame(phrase, random)


def statement(concept: str, specimen: Specimen, random: np.random.Generator) -> str:
    """Return a sentence in the form of the language model's prompt: "a photo of {concept} that ..."."""
    names = [name for name in _mentioned(specimen, random) if _clause(specimen, name, random)]
    names = names[:3] or ["colour"]
    return f"a photo of {concept} that {_joined([_clause(specimen, n, random) for n in names], random)}"


def description(specimen: Specimen, random: np.random.Generator) -> tuple[str, str]:
    """Return a caption split after its first noun, for FTI4CIR's training: subject and attribute, neither empty."""
    spoken = set(_mentioned(specimen, random))
    adjectives, tail = _adjectives(specimen, spoken), _tail(specimen, spoken, random)
    if not tail:
        tail = [_pick(random, PLACES[specimen.setting])] if isinstance(specimen, Scene) else ["on a plain ground"]
    count = specimen.count if isinstance(specimen, Scene) and "count" in spoken else 1
    noun = specimen.kind if count == 1 else plural(specimen.kind)
    words = " ".join([*adjectives, noun])
    return a(words) if count == 1 else f"{NUMBERS[count]} {words}", " ".join(tail)


def relative_caption(
    reference: Specimen, target: Specimen, random: np.random.Generator, most: int, names: Sequence[str] = ()
) -> str:
    """Return an edit that leads from the reference to the target.

    Args:
        reference: the specimen of the reference image.
        target: the specimen of the target image.
        random: chooses the differences and the words.
        most: how many differences the edit states at most.
        names: the differences to state, drawn at random if empty.

    Raises:
        ValueError: if reference and target do not differ.
    """
    names = list(names) or list(random.permutation(differences(reference, target)))
    if not names:
        raise ValueError("a relative caption needs a reference and a target that differ")
    return _joined([_edit(reference, target, name, random) for name in names[:most]], random)


def shared_concept(specimen: Specimen, names: Sequence[str]) -> str:
    """Return what a reference and its ground truths have in common, as CIRCO does ("a blue star on the beach")."""
    place = f" {PLACES[specimen.setting][0]}" if "setting" in names else ""
    return a(f"{specimen.colour} {specimen.kind}" if "colour" in names else specimen.kind) + place


def _mentioned(specimen: Specimen, random: np.random.Generator) -> list[str]:
    """Return attributes to mention, shuffled: those that differ from the default four times as often as the rest."""
    defaults = KINDS[specimen.kind].defaults
    scene_only = {"setting": 0.5, "companion": 0.6 if getattr(specimen, "companion", None) else 0.05}
    chances = {n: 0.72 if getattr(specimen, n) != value else 0.18 for n, value in defaults.items()}
    chances |= scene_only if isinstance(specimen, Scene) else {}
    return [str(n) for n in random.permutation(list(chances)) if random.random() < chances[n]]


def _noun_phrase(specimen: Specimen, noun: str, spoken: set[str], random: np.random.Generator) -> str:
    adjectives, tail = _adjectives(specimen, spoken), _tail(specimen, spoken, random)
    count = specimen.count if "count" in spoken else 1
    words = " ".join([*adjectives, noun if count == 1 else plural(noun)])
    if count > 1:
        words = f"{NUMBERS[count]} {words}"
    elif random.random() < 0.7:
        words = a(words)
    return " ".join((words, *tail))


def _adjectives(specimen: Specimen, spoken: set[str]) -> list[str]:
    adjectives = [str(getattr(specimen, n)) for n in ("size", "length", "colour", "texture", "pattern") if n in spoken]
    bare = "sleeves" in spoken and specimen.sleeves == "sleeveless"
    return ["sleeveless", *adjectives] if bare else adjectives


def _tail(specimen: Specimen, spoken: set[str], random: np.random.Generator) -> list[str]:
    """Return the text after the noun: sleeves, neck, belt, a second thing, the place."""
    tail = []
    if "sleeves" in spoken and specimen.sleeves != "sleeveless":
        tail.append(f"with {specimen.sleeves} sleeves")
    if "neckline" in spoken:
        necks = {"round": "with a round neck", "v-neck": "with a v neck", "collar": "with a collar"}
        tail.append(necks[specimen.neckline])
    if "belt" in spoken:
        tail.append("with a belt" if specimen.belt else "without a belt")
    if "companion" in spoken and specimen.companion:
        tail.append(_pick(random, ("next to", "beside", "with")) + f" {a(specimen.companion)}")
    elif "companion" in spoken:
        tail.append("on its own")
    if "setting" in spoken:
        tail.append(_pick(random, PLACES[specimen.setting]))
    return tail


def _clause(specimen: Specimen, name: str, random: np.random.Generator) -> str:
    """Return a verb phrase for one attribute of one specimen, sometimes compared with the kind's default."""
    value, default = getattr(specimen, name), KINDS[specimen.kind].defaults.get(name)
    if default not in (None, value) and random.random() < 0.4:
        return _change(name, default, value, random)
    return _state(name, value, random)


def _edit(reference: Specimen, target: Specimen, name: str, random: np.random.Generator) -> str:
    """Return a verb phrase for one difference between reference and target."""
    old, new = getattr(reference, name), getattr(target, name)
    if name == "size" and reference.count != target.count:  # things are drawn smaller the more there are
        return _state(name, new, random)
    if random.random() < 0.6:
        return _change(name, old, new, random)
    return _state(name, new, random)


def _change(name: str, old, new, random: np.random.Generator) -> str:
    """Return the new value compared with the old: "is blue instead of red", "has longer sleeves"."""
    if name in ORDERED:
        values, less, more = ORDERED[name]
        return _pick(random, more if values.index(new) > values.index(old) else less)
    if name in ("colour", "texture", "pattern"):
        return f"is {new} {_pick(random, ('instead of', 'rather than', 'and not'))} {old}"
    if name == "kind":
        return f"is {a(new)} instead of {a(old)}"
    return _state(name, new, random)


def _state(name: str, value, random: np.random.Generator) -> str:
    if name == "colour":
        return _pick(random, ("is {}", "is {} in color", "has a {} color")).format(value)
    if name in ("texture", "pattern"):
        return _pick(random, PATTERN_CLAUSES[value])
    if name == "count":
        one = ("is the only one", "shows only one of them")
        return _pick(random, one if value == 1 else ("shows {} of them", "comes with {} of them")).format(
            NUMBERS[value]
        )
    if name == "setting":
        return f"is {_pick(random, PLACES[value])}"
    if name == "companion":
        beside = ("is next to {}", "is beside {}", "comes with {}")
        return _pick(random, beside).format(a(value)) if value else "is on its own"
    if name == "belt":
        return "has a belt" if value else _pick(random, ("has no belt", "is without a belt"))
    if name == "kind":
        return f"is {a(value)}"
    clauses = {"size": SIZE_CLAUSES, "sleeves": SLEEVE_CLAUSES, "neckline": NECK_CLAUSES, "length": LENGTH_CLAUSES}
    return _pick(random, clauses[name][value])


def a(words: str) -> str:
    """Return the words with their indefinite article in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(noun: str) -> str:
    """Return the plural of a noun of this world."""
    return PLURALS.get(noun, noun + "s" if not noun.endswith("s") else noun + "es")


def _joined(clauses: Sequence[str], random: np.random.Generator) -> str:
    if len(clauses) == 3 and random.random() < 0.5:
        return f"{clauses[0]}, {clauses[1]} and {clauses[2]}"
    return " and ".join(clauses)


def _frame(phrase: str, random: np.random.Generator) -> str:
    return _pick(random, FRAMES).format(phrase)


def _pick(random: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(random.integers(len(values)))]
