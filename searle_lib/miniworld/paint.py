"""Paper-cutout painting, shared by scenes and garments.

A drawing is three lists of (paint, outline) pairs in unit coordinates (x right, y down, -1 to 1): the parts behind the
body, the body itself, and the details on top. `stamp` tints and textures the body, adds an edge and lays the drawing on
an image. `finished` reduces the image to 64 pixels and lights it. The outline makers (oval, box, smooth, ribbon,
mirrored, turned) return points [N, 2].
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from searle_lib.miniworld.specimens import COLOURS

PIXELS = 64
SCALE = 4
FIXED = {
    "ink": (44, 42, 56),
    "cream": (252, 244, 224),
    "white": (255, 255, 255),
    "wood": (142, 94, 58),
    "leaf": (92, 158, 84),
    "glass": (176, 220, 240),
    "gold": (250, 200, 72),
    "flame": (248, 140, 60),
    "steel": (186, 192, 202),
    "blush": (240, 150, 160),
}
# Cream marks and plain darkening do not suit every colour: what light or muddy ones use instead.
MARKS = {"yellow": (200, 126, 24), "pink": (190, 54, 118), "white": (136, 138, 152), "gray": (50, 52, 64)}
DEEPS = {"yellow": (222, 154, 34), "orange": (198, 92, 24), "black": (92, 92, 104)}

Outline = np.ndarray
Parts = list[tuple[str, Outline]]
Drawing = tuple[Parts, Parts, Parts]
RGB = tuple[int, int, int]


def oval(x: float, y: float, across: float, down: float | None = None, start=0.0, stop=360.0) -> Outline:
    """Return an ellipse, or an arc of one, by its centre, half axes, and angles in degrees."""
    angle = np.radians(np.linspace(start, stop, 28))
    return np.stack([x + across * np.cos(angle), y + (down or across) * np.sin(angle)], 1)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """Return a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def smooth(points, rounds: int = 3) -> Outline:
    """Return a closed outline whose corners are cut off repeatedly until they are round."""
    points = np.asarray(points, float)
    for _ in range(rounds):
        after = np.roll(points, -1, 0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


def flipped(points) -> Outline:
    """Return the outline mirrored at x = 0."""
    return np.asarray(points, float) * (-1, 1)


def mirrored(half) -> Outline:
    """Return a symmetric outline from its right half, listed from top to bottom."""
    return np.concatenate([np.asarray(half, float), flipped(half)[::-1]])


def ribbon(points, width: float) -> Outline:
    """Return a line of this width through the points."""
    points = np.asarray(points, float)
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = along[:, ::-1] * (-width / 2, width / 2)
    return np.concatenate([points + side, (points - side)[::-1]])


def turned(points: Outline, degrees: float, x: float, y: float) -> Outline:
    """Return the outline turned about (0, 0) and moved to (x, y)."""
    return points @ rotation(degrees) + (x, y)


def rotation(degrees: float) -> np.ndarray:
    """Return the matrix that turns row vectors clockwise on an image."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([(cos, sin), (-sin, cos)])


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Return a mixture of two colours; `share` is the part of b."""
    return tuple(round(p + share * (q - p)) for p, q in zip(a, b, strict=True))


@lru_cache(1024)
def paints(colour: str, shift: int = 0) -> dict[str, RGB]:
    """Return the fixed paints and the tones of one body colour, made lighter or darker by `shift` steps."""
    rgb = tuple(min(255, max(0, value + shift)) for value in COLOURS[colour])
    return FIXED | {
        "body": rgb,
        "deep": DEEPS.get(colour, mix(rgb, (40, 24, 56), 0.32)),
        "pale": mix(rgb, (255, 255, 255), 0.45),
        "mark": MARKS.get(colour, mix(rgb, FIXED["cream"], 0.88)),
        "edge": mix(rgb, (24, 16, 40), 0.5 if colour == "white" else 0.62),
        "belt": FIXED["cream"] if sum(rgb) < 380 else (74, 50, 42),
    }


@lru_cache(256)
def marks(texture: str, period: int) -> list[tuple[str, Image.Image]]:
    """Return paints and masks, larger than any body, that repeat a texture's marks every `period` pixels."""
    side = PIXELS * SCALE + 2 * period
    y, x = np.mgrid[:side, :side] / period
    # Every other row of spots is shifted by half a step, so that dots and flowers do not look like checks.
    row = np.floor(y / 0.87)
    u, v = (x + row % 2 / 2) % 1 - 0.5, (y / 0.87) % 1 * 0.87 - 0.435
    far, angle = np.hypot(u, v), np.arctan2(v, u) + row
    layers = {
        "plain": {},
        "striped": {"mark": (0.86 * y + 0.5 * x) % 1 < 0.42},
        "dotted": {"mark": far < 0.29},
        "checked": {"mark": (np.floor(1.55 * x) + np.floor(1.55 * y)) % 2 == 0},
        "floral": {
            "leaf": np.hypot((u - 0.34) / 1.5, v - 0.30) < 0.1,
            "mark": far < 0.25 + 0.14 * np.cos(5 * angle),
            "flame": far < 0.11,
        },
    }[texture]
    return [(paint, Image.fromarray(np.uint8(255 * where)).convert("1")) for paint, where in layers.items()]


@lru_cache(256)
def shadow(width: int, height: int) -> Image.Image:
    """Return the mask of a soft dark pool that lies under a thing."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return Image.fromarray(np.uint8(110 * np.clip(1.5 - 1.5 * np.hypot(x, y), 0, 1)))


def stamp(picture, drawing: Drawing, colours: dict, texture: str, frame, period: int, phase=(0, 0), cast=0):
    """Lay a drawing on an image.

    Args:
        picture: the image, changed in place.
        drawing: the parts.
        colours: RGB by paint.
        texture: the body's texture.
        frame: a 2 x 2 matrix and a centre that turn units into pixels.
        period: pixels after which the texture repeats.
        phase: pixels by which the texture is shifted.
        cast: pixels by which a shadow is shifted; 0 for a light halo in place of a shadow.
    """
    matrix, (x, y) = frame
    layers = [[(paint, points @ matrix) for paint, points in parts] for parts in drawing]
    reach = np.concatenate([points for parts in layers for _, points in parts])
    low, high = np.floor(reach.min(0)) - 9, np.ceil(reach.max(0)) + 9
    size, corner = tuple(np.int64(high - low).tolist()), (round(x + low[0]), round(y + low[1]))
    layers = [[(paint, (points - low).ravel().tolist()) for paint, points in parts] for parts in layers]
    behind, bodies, details = layers
    canvas, whole, body = (Image.new(mode, size) for mode in ("RGB", "1", "1"))
    pen, cut, trim = ImageDraw.Draw(canvas), ImageDraw.Draw(whole), ImageDraw.Draw(body)
    for paint, place in behind:
        pen.polygon(place, colours[paint])
        cut.polygon(place, 1)
    for paint, place in bodies:
        trim.polygon(place, paint != "hole")
    canvas.paste(colours["body"], (0, 0), body)
    left, top = (int(p) % period for p in phase)
    for paint, mask in marks(texture, period):
        tile = mask.crop((left, top, left + size[0], top + size[1]))
        canvas.paste(colours[paint], (0, 0), ImageChops.logical_and(tile, body))
    step = -round(0.1 * abs(np.linalg.det(matrix)) ** 0.5)
    soft = body.convert("L")
    canvas.paste(colours["edge"], (0, 0), ImageChops.subtract(soft, ImageChops.offset(soft, step, step), 2.4))
    whole.paste(1, (0, 0), body)
    for paint, place in details:
        pen.polygon(place, colours[paint])
        cut.polygon(place, 1)

    near = whole.convert("L").filter(ImageFilter.BoxBlur(5))
    # A light halo outside a dark edge keeps white visible on snow and black visible at night.
    if cast:
        picture.paste((70, 58, 66), (corner[0] + cast, corner[1] + cast), ImageChops.add(near, near, 6))
    else:
        picture.paste((255, 252, 244), corner, ImageChops.add(near, near, 0.5))
    picture.paste(colours["edge"], corner, ImageChops.add(near, near, 2 / 9, -630))
    picture.paste(canvas, corner, whole)


def finished(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return the image at its final size, under slightly varied light."""
    small = picture.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS, reducing_gap=2)
    light = random.uniform(0.95, 1.04) * random.uniform(0.985, 1.015, 3)
    return Image.fromarray(np.clip(np.asarray(small) * light, 0, 255).astype(np.uint8))
