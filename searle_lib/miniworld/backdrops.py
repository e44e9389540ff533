"""The eight settings of the miniature world: empty stages on which things stand.

`backdrop` takes the name of a setting and a variant number, and returns an image at drawing scale. The image is wider
than needed, so that the caller can shift it. The horizon lies two fifths below the top. Each image is painted once and
cached.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from searle_lib.miniworld.paint import PIXELS, SCALE

VARIANTS = 4
SLACK = 24
WIDE, HIGH = PIXELS * SCALE + SLACK, PIXELS * SCALE
HORIZON = 0.42


@lru_cache(64)
def backdrop(setting: str, variant: int) -> Image.Image:
    """Return one of the VARIANTS stages of a setting."""
    random = np.random.default_rng(variant)
    top, bottom, paint = SETTINGS[setting]
    fade = np.linspace(top, bottom, int(HIGH * HORIZON) + 12)
    fade = np.concatenate([fade, np.repeat(fade[-1:], HIGH - len(fade), 0)])
    picture = Image.fromarray(np.uint8(np.repeat(fade[:, None], WIDE, 1)))
    paint(ImageDraw.Draw(picture), random)
    return picture


def _hills(pen, random, y: float, height: float, colour, waves: float = 2.0) -> None:
    x = np.linspace(0, 1, 36)
    phase = random.uniform(0, 6, 2)
    wave = 0.6 * np.sin(2 * np.pi * waves * x + phase[0]) + 0.4 * np.sin(3.4 * np.pi * waves * x + phase[1])
    crest = np.stack([x * WIDE, (y + height * wave) * HIGH], 1).ravel().tolist()
    pen.polygon([*crest, WIDE, HIGH, 0, HIGH], colour)


def _ground(pen, y: float, colour) -> None:
    pen.rectangle((0, y * HIGH, WIDE, HIGH), colour)


def _spots(pen, random, number: int, top: float, bottom: float, radius, colours, flat: float = 1.0) -> None:
    for index in range(number):
        x, y = random.uniform(0, WIDE), random.uniform(top, bottom) * HIGH
        r = random.uniform(*radius)
        pen.ellipse((x - r, y - r * flat, x + r, y + r * flat), colours[index % len(colours)])


def _sun(pen, random, colours) -> None:
    x, y = random.choice((0.2, 0.8)) * WIDE, 0.14 * HIGH
    for radius, colour in zip((34, 26), colours, strict=True):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def _clouds(pen, random, colour) -> None:
    for x in (random.uniform(0.1, 0.35), random.uniform(0.6, 0.9)):
        x, y = x * WIDE, random.uniform(0.08, 0.2) * HIGH
        for dx, dy, r in ((-20, 4, 11), (-4, -4, 16), (14, 2, 13), (28, 6, 8)):
            pen.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), colour)
        pen.rectangle((x - 20, y + 5, x + 28, y + 14), colour)


def _beach(pen, random) -> None:
    _sun(pen, random, ((252, 240, 190), (254, 226, 128)))
    _clouds(pen, random, (250, 252, 252))
    pen.rectangle((0, 0.32 * HIGH, WIDE, HIGH), (36, 158, 190))
    pen.rectangle((0, 0.38 * HIGH, WIDE, HIGH), (70, 190, 206))
    for _ in range(9):
        x, y = random.uniform(0, WIDE), random.uniform(0.34, 0.43) * HIGH
        pen.line((x, y, x + 22, y), (190, 234, 236), 3)
    _hills(pen, np.random.default_rng(7), 0.46, 0.012, (248, 252, 250), 3)
    _hills(pen, np.random.default_rng(7), 0.49, 0.012, (222, 190, 134), 3)
    _hills(pen, np.random.default_rng(7), 0.53, 0.012, (246, 222, 164), 3)
    _spots(pen, random, 60, 0.58, 1, (1.5, 3.5), ((228, 196, 134), (252, 236, 192)))


def _snow(pen, random) -> None:
    peaks = np.linspace(0, WIDE, 7) + random.uniform(-8, 8, 7)
    for x, tall in zip(peaks, random.uniform(60, 90, 7), strict=True):
        base = 0.44 * HIGH
        pen.polygon((x - 48, base, x, base - tall, x + 48, base), (126, 156, 200))
        pen.polygon(
            (x - 20, base - tall * 0.58, x, base - tall, x + 20, base - tall * 0.58, x, base - tall * 0.48),
            "white",
        )
    _hills(pen, random, 0.44, 0.02, (222, 234, 248))
    _hills(pen, random, 0.62, 0.03, (236, 244, 252), 1.3)
    _hills(pen, random, 0.85, 0.03, (248, 251, 255), 1.0)
    _spots(pen, random, 30, 0, 0.46, (2, 4), ("white",))
    _spots(pen, random, 30, 0.5, 1, (2.5, 5), ("white", (206, 222, 244)))


def _night(pen, random) -> None:
    _spots(pen, random, 30, 0, 0.36, (1.2, 3.2), ((255, 250, 214), (200, 208, 255)))
    _hills(pen, random, 0.36, 0.05, (44, 48, 98), 1.6)
    _hills(pen, random, 0.44, 0.03, (30, 36, 76))
    _hills(pen, random, 0.64, 0.03, (38, 46, 88), 1.2)
    _hills(pen, random, 0.86, 0.02, (46, 56, 100), 1.0)


def _forest(pen, random) -> None:
    for width, colour, foot in (
        (9, (136, 168, 136), 0.42),
        (15, (96, 122, 92), 0.45),
        (24, (84, 66, 50), 0.5),
    ):
        for x in np.arange(0, WIDE, width * 3.4) + random.uniform(0, width * 2):
            pen.polygon((x, 0, x + width, 0, x + width * 1.25, foot * HIGH, x - width * 0.25, foot * HIGH), colour)
    for y, colour in ((0.09, (58, 100, 64)), (0.03, (36, 76, 50))):
        for x in np.arange(-10, WIDE + 20, 26):
            r, x, level = 24, x + random.uniform(-5, 5), (y + random.uniform(-0.02, 0.02)) * HIGH
            pen.ellipse((x - r, level - r, x + r, level + r), colour)
    _hills(pen, random, 0.45, 0.012, (62, 96, 56), 3)
    _hills(pen, random, 0.54, 0.015, (84, 118, 64), 2)
    _hills(pen, random, 0.8, 0.02, (98, 134, 72), 1.2)
    _spots(pen, random, 30, 0.56, 1, (3, 6), ((128, 92, 52), (70, 104, 56), (150, 110, 58)), 0.5)


def _city(pen, random) -> None:
    for layer, (colour, pane) in enumerate((((164, 178, 204), (190, 204, 224)), ((98, 112, 146), (252, 226, 150)))):
        x = -random.uniform(0, 20)
        while x < WIDE:
            wide, tall = (
                random.uniform(24, 40),
                random.uniform(0.24, 0.40) * HIGH if layer == 0 else random.uniform(48, 80),
            )
            top = 0.46 * HIGH - tall
            pen.rectangle((x, top, x + wide - 3, 0.46 * HIGH), colour)
            for px in np.arange(x + 5, x + wide - 8, 9):
                for py in np.arange(top + 6, 0.42 * HIGH, 12):
                    if random.random() < 0.7:
                        pen.rectangle((px, py, px + 4, py + 6), pane)
            x += wide
    _ground(pen, 0.45, (206, 204, 204))
    _ground(pen, 0.56, (168, 168, 174))
    _ground(pen, 0.575, (112, 114, 124))
    for x in np.arange(-20, WIDE, 56):
        pen.rectangle((x, 0.75 * HIGH, x + 30, 0.775 * HIGH), (246, 232, 190))
    _ground(pen, 0.95, (168, 168, 174))
    _ground(pen, 0.965, (206, 204, 204))


def _desert(pen, random) -> None:
    _sun(pen, random, ((255, 240, 200), (255, 248, 226)))
    for x in (random.uniform(-0.05, 0.15), random.uniform(0.55, 0.75)):
        x, wide, top = x * WIDE, random.uniform(60, 84), random.uniform(0.2, 0.28) * HIGH
        pen.polygon((x, 0.46 * HIGH, x + 10, top, x + wide - 10, top, x + wide, 0.46 * HIGH), (206, 122, 84))
        pen.polygon((x + 6, top + 16, x + 8, top + 8, x + wide - 8, top + 8, x + wide - 6, top + 16), (226, 148, 104))
    _hills(pen, random, 0.42, 0.025, (236, 178, 110), 1.5)
    _hills(pen, random, 0.56, 0.04, (226, 160, 92), 1.1)
    _hills(pen, random, 0.76, 0.04, (238, 182, 112), 0.9)
    _hills(pen, random, 0.93, 0.03, (246, 198, 132), 0.8)


def _meadow(pen, random) -> None:
    _clouds(pen, random, "white")
    _hills(pen, random, 0.36, 0.05, (152, 208, 128), 1.1)
    _hills(pen, random, 0.44, 0.03, (128, 196, 100), 1.4)
    _hills(pen, random, 0.62, 0.03, (146, 210, 108), 1.0)
    for _ in range(36):
        x, y = random.uniform(0, WIDE), random.uniform(0.5, 1) * HIGH
        pen.polygon(
            (x - 5, y, x - 6, y - 9, x, y - 2, x + 1, y - 12, x + 3, y - 2, x + 7, y - 8, x + 5, y),
            (98, 172, 78),
        )
    _spots(pen, random, 34, 0.5, 1, (3, 4.5), ("white", (255, 226, 110), (250, 170, 200)))


def _room(pen, random) -> None:
    for x in np.arange(random.uniform(-20, 0), WIDE, 24):
        pen.rectangle((x, 0, x + 11, HIGH), (244, 224, 212))
    x = random.choice((0.1, 0.56)) * WIDE
    pen.rectangle((x, 12, x + 92, 88), (252, 250, 244))
    pen.rectangle((x + 6, 18, x + 86, 82), (174, 216, 240))
    pen.polygon((x + 6, 82, x + 6, 68, x + 40, 58, x + 86, 70, x + 86, 82), (160, 206, 150))
    pen.rectangle((x + 44, 14, x + 48, 84), (252, 250, 244))
    pen.rectangle((x + 4, 48, x + 88, 52), (252, 250, 244))
    for near, far in ((x - 8, x + 14), (x + 100, x + 78)):
        pen.polygon((near, 6, far, 6, near + (far - near) * 0.4, 94, near - (far - near) * 0.2, 94), (206, 118, 110))
    _ground(pen, 0.42, (250, 246, 238))
    _ground(pen, 0.46, (150, 100, 66))
    _ground(pen, 0.467, (204, 152, 102))
    for row, y in enumerate((0.467, 0.55, 0.66, 0.8, 0.97)):
        pen.line((0, y * HIGH, WIDE, y * HIGH), (176, 124, 80), 3)
        for x in np.arange(row % 2 * 40, WIDE, 84):
            pen.line((x, y * HIGH, x, (y + 0.16) * HIGH), (176, 124, 80), 3)


SETTINGS = {
    "beach": ((112, 196, 240), (214, 240, 250), _beach),
    "snow": ((164, 196, 232), (226, 236, 248), _snow),
    "night": ((14, 18, 52), (58, 58, 118), _night),
    "forest": ((150, 180, 140), (206, 220, 176), _forest),
    "city": ((188, 208, 236), (250, 230, 216), _city),
    "desert": ((250, 196, 130), (254, 236, 200), _desert),
    "meadow": ((116, 190, 244), (222, 242, 252), _meadow),
    "room": ((236, 212, 200), (232, 206, 192), _room),
}
