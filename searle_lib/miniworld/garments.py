"""Images of garments laid flat on a plain ground: twelve cuts, each with any sleeves, neckline and length.

`draw_garment` takes a Garment and a random generator, and returns a 64 x 64 RGB image. A cut is a table of widths, in
unit coordinates with the shoulders at y = -0.9, and its trimmings. The garment is centred on the image at the end.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from searle_lib.miniworld.paint import (
    PIXELS,
    SCALE,
    Drawing,
    Parts,
    box,
    finished,
    flipped,
    mirrored,
    oval,
    paints,
    ribbon,
    rotation,
    stamp,
)
from searle_lib.miniworld.specimens import Garment, kinds_of
from searle_lib.miniworld.trimmings import TRIMMINGS

# Half widths at shoulder, chest, waist and long hem; heights of waist, short hem and long hem; sleeve width;
# half width of the neck.
CUTS = {
    "gown": (0.38, 0.36, 0.25, 1.00, -0.08, 0.46, 0.98, 0.2, 0.2),
    "sundress": (0.38, 0.37, 0.29, 0.70, -0.12, 0.46, 0.98, 0.22, 0.26),
    "shirtdress": (0.45, 0.43, 0.37, 0.56, -0.05, 0.46, 0.98, 0.28, 0.19),
    "robe": (0.52, 0.54, 0.54, 0.62, -0.05, 0.46, 0.98, 0.4, 0.2),
    "polo": (0.48, 0.46, 0.45, 0.46, -0.12, 0.16, 0.56, 0.32, 0.18),
    "flannel": (0.52, 0.51, 0.50, 0.51, -0.12, 0.16, 0.56, 0.3, 0.18),
    "jersey": (0.58, 0.61, 0.61, 0.61, 0.0, 0.16, 0.56, 0.38, 0.21),
    "sweater": (0.50, 0.54, 0.58, 0.54, -0.12, 0.16, 0.56, 0.36, 0.2),
    "blouse": (0.42, 0.43, 0.31, 0.62, -0.14, 0.16, 0.56, 0.34, 0.18),
    "camisole": (0.36, 0.38, 0.34, 0.42, -0.14, 0.16, 0.56, 0.2, 0.25),
    "tunic": (0.45, 0.43, 0.43, 0.80, -0.14, 0.16, 0.56, 0.3, 0.2),
    "tee": (0.50, 0.48, 0.48, 0.48, -0.12, 0.16, 0.56, 0.34, 0.2),
}
DRESSES = kinds_of("dress")
THIN = ("sundress", "camisole")
GROUNDS = ((240, 232, 222), (228, 236, 242), (232, 240, 230), (244, 230, 228), (236, 232, 244))
NECK_DEPTHS = {"round": 0.26, "v-neck": 0.5, "collar": 0.26}
TOP, ARMPIT = -0.9, -0.42


def draw_garment(garment: Garment, random: np.random.Generator) -> Image.Image:
    """Draw the garment as a 64 x 64 RGB image; the same generator state gives the same image."""
    picture = _ground(int(random.integers(len(GROUNDS)))).copy()
    drawing, middle = _drawing(garment.kind, garment.sleeves, garment.neckline, garment.length, garment.belt)
    # Shirts are shorter than dresses and may come closer.
    unit = SCALE * (29 if garment.kind in DRESSES else 31.5) * random.uniform(0.95, 1.0)
    matrix = rotation(random.uniform(-3, 3)) * unit
    x, y = PIXELS * SCALE / 2 + random.uniform(-5, 5, 2)
    centre = np.array([x, y]) - (0, middle) @ matrix
    period = {"striped": 22, "dotted": 24, "checked": 28, "floral": 40}.get(garment.pattern, 24)
    colours = paints(garment.colour, int(random.integers(-8, 7)))
    frame, phase = (matrix, centre), random.integers(0, 64, 2)
    stamp(picture, drawing, colours, garment.pattern, frame, period, phase, cast=8)
    return finished(picture, random)


@lru_cache(8)
def _ground(tint: int) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : PIXELS * SCALE * 1j, -1 : 1 : PIXELS * SCALE * 1j]
    light = 1.03 - 0.05 * np.hypot(x + 0.4, y + 0.5)
    return Image.fromarray(np.uint8(np.clip(light[..., None] * GROUNDS[tint], 0, 255)))


@lru_cache(512)
def _drawing(kind: str, sleeves: str, neckline: str, length: str, belt: bool) -> tuple[Drawing, float]:
    """Return the whole garment and the height of its middle."""
    shoulder, chest, waist, hem, waist_y, short_y, long_y, _, neck = CUTS[kind]
    hem_y = short_y if length == "short" else long_y
    wide = waist + (hem - waist) * (hem_y - waist_y) / (long_y - waist_y)
    if kind not in ("gown", "sundress", "blouse", "tunic"):
        wide = hem
    depth = NECK_DEPTHS[neckline] + (0.1 if kind in THIN else 0)
    shape = {
        "neck_y": TOP - 0.06 + depth,
        "chest": chest,
        "waist": waist,
        "hem": wide,
        "waist_y": waist_y,
        "hem_y": hem_y,
        "neck": neck,
    }
    torso = _torso(kind, shoulder, shape)
    arms, seams = _sleeves(kind, sleeves)
    inside, hole, trim = _neck(neckline, neck, depth)
    bodies = [("body", part) for part in arms + [torso]] + [("hole", hole)]
    details = seams + TRIMMINGS[kind](shape) + trim
    if belt:
        for paint, tall in (("edge", 0.1), ("belt", 0.07)):
            details += [(paint, box(-waist - 0.02, waist_y - tall, waist + 0.02, waist_y + tall))]
        details += [("gold", box(-0.1, waist_y - 0.1, 0.1, waist_y + 0.1))]
        details += [("belt", box(-0.045, waist_y - 0.045, 0.045, waist_y + 0.045))]
    return (inside, bodies, details), (TOP + hem_y) / 2


def _torso(kind: str, shoulder: float, shape: dict) -> np.ndarray:
    names = ("chest", "waist", "hem", "waist_y", "hem_y")
    chest, waist, hem, waist_y, hem_y = (shape[name] for name in names)
    drop, nick = (0, 0) if kind in THIN else (0.07, 0.06)
    half = [(0, TOP - 0.04), (shape["neck"], TOP - 0.04)]
    half += [(shoulder, TOP + drop), (shoulder - nick, -0.62)]
    half += [(chest, ARMPIT), (waist, waist_y)]
    if kind in ("gown", "tunic", "blouse"):
        half += [(waist + 0.4 * (hem - waist), waist_y + 0.22 * (hem_y - waist_y))]
    if kind in ("shirtdress", "flannel"):
        half += [(hem, hem_y - 0.16), (0.6 * hem, hem_y), (0, hem_y)]
    elif kind == "tunic":
        slit = [(0.62 * hem, hem_y), (0.5 * hem, hem_y - 0.26), (0.38 * hem, hem_y)]
        half += [(hem, hem_y - 0.02), *slit, (0, hem_y)]
    elif kind in ("gown", "blouse", "camisole"):
        scallop = np.linspace(1, 0, 21)
        depth = 0.05 * np.abs(np.sin(scallop * np.pi * (3.5 if kind != "camisole" else 2.5)))
        half += list(zip(hem * scallop, hem_y - 0.06 * scallop**2 + depth, strict=True))
    else:
        half += [(hem, hem_y), (0, hem_y + (0.04 if kind == "sundress" else 0))]
    return mirrored(half)


def _sleeves(kind: str, sleeves: str) -> tuple[list, Parts]:
    if sleeves == "sleeveless":
        return [], []
    shoulder, chest, width = CUTS[kind][0], CUTS[kind][1], CUTS[kind][7]
    along = np.array([0.44, 0.9]) if sleeves == "long" else np.array([0.66, 0.75])
    across = np.array([-along[1], along[0]])
    start = np.array([shoulder, TOP + 0.07])
    reach = 1.02 if sleeves == "long" else 0.42
    flare = {"robe": 1.05, "blouse": 0.65, "sweater": 0.75}.get(kind, 0.75 if sleeves == "long" else 1.0)
    outer, inner = start + along * reach, start + along * reach + across * width * flare
    arm = [start - (0.1, 0.06), start, outer, inner, (chest, ARMPIT + 0.04), (chest - 0.1, ARMPIT)]
    if kind == "blouse":
        puff = start + along * reach * 0.55 - across * 0.16
        arm = [arm[0], start, start + along * 0.1 - across * 0.08, puff, outer, inner, *arm[4:]]
    seam = ribbon([start - (0.01, 0), (shoulder - 0.07, -0.62), (chest, ARMPIT + 0.02)], 0.035)
    band = 0.14 if kind in ("sweater", "blouse") else 0.05
    cuff = np.array([outer, inner, inner - along * band, outer - along * band])
    # The inner edge shows where a hanging sleeve crosses the torso.
    edge = ribbon([(chest, ARMPIT + 0.03), inner], 0.035)
    lines = [("deep", part) for part in (seam, flipped(seam), cuff, flipped(cuff))]
    lines += [("edge", edge), ("edge", flipped(edge))]
    if kind == "sweater":
        for share in (0.25, 0.5, 0.75):
            low = outer + (inner - outer) * share
            rib = ribbon([low, low - along * band], 0.035)
            lines += [("pale", rib), ("pale", flipped(rib))]
    return [np.array(arm), flipped(arm)], lines


def _neck(neckline: str, neck: float, depth: float) -> tuple[Parts, np.ndarray, Parts]:
    """Return what shows inside the neck, the opening, and its trim."""
    y = TOP - 0.06
    rim = oval(0, y, neck, depth, 0, 180)
    if neckline != "round":
        rim = np.array([(neck, y), (0, y + depth), (-neck, y)])
    back = [("edge", np.concatenate([oval(0, TOP - 0.02, neck, 0.07, 180, 0), rim]))]
    hole = np.concatenate([rim, [(-neck, y - 0.1), (neck, y - 0.1)]])
    if neckline == "round":
        return back, hole, [("deep", ribbon(rim, 0.08))]
    low = y + depth
    if neckline == "v-neck":
        edge = np.array([(neck + 0.05, y + 0.02), (0, low + 0.08), (0, low - 0.03), (neck - 0.03, y)])
        return back, hole, [("deep", edge), ("deep", flipped(edge))]
    outer = [(neck - 0.04, y - 0.05), (neck + 0.13, y + 0.08), (neck + 0.06, y + 0.34)]
    flap = np.array([*outer, (0, low - 0.02)])
    lining = flap.mean(0) + (flap - flap.mean(0)) * 1.28
    halves = (("edge", lining), ("pale", flap))
    return back, hole, [(paint, part) for paint, half in halves for part in (half, flipped(half))]
