"""Images of scenes: up to three things of one kind on one of eight stages, perhaps beside a second kind of thing.

`draw_scene` takes a Scene and a random generator, and returns a 64 x 64 RGB image. The generator moves, turns and tints
things a little and chooses among similar backdrops; every attribute stays visible.
"""

import numpy as np
from PIL import Image

from searle_lib.miniworld.backdrops import SLACK, VARIANTS, backdrop
from searle_lib.miniworld.paint import PIXELS, SCALE, finished, paints, rotation, shadow, stamp
from searle_lib.miniworld.silhouettes import DRAWINGS
from searle_lib.miniworld.specimens import SCENE_KINDS, Scene

# Heights in final pixels by count, then size: more things are smaller, but a large one stays a large one.
HEIGHTS = {
    1: {"small": 18, "medium": 29, "large": 44},
    2: {"small": 15.5, "medium": 21, "large": 27.5},
    3: {"small": 14, "medium": 19, "large": 26},
}
# Where feet stand, in final pixels, by count and whether the last of the feet is a companion's.
FEET = {
    (1, False): [[(32, 55)]],
    (2, False): [[(16, 50), (48, 55)]],
    (3, False): [[(32, 31), (17, 60), (47, 60)], [(17, 31), (47, 31), (32, 60)]],
    (1, True): [[(21.5, 55), (54.5, 60)]],
    (2, True): [[(16, 39), (48, 39), (32, 60)]],
    (3, True): [[(16.5, 31), (47.5, 31), (17, 60.5), (48, 60)]],
}


def draw_scene(scene: Scene, random: np.random.Generator) -> Image.Image:
    """Draw the scene as a 64 x 64 RGB image; the same generator state gives the same image."""
    stage = backdrop(scene.setting, int(random.integers(VARIANTS)))
    left = int(random.integers(SLACK))
    picture = stage.crop((left, 0, left + PIXELS * SCALE, PIXELS * SCALE))
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for height, (x, foot), kind, look in sorted(_cast(scene, random), key=lambda thing: thing[1][1]):
        _place(picture, kind, look, height, x, foot, random)
    return finished(picture, random)


def _cast(scene: Scene, random: np.random.Generator) -> list:
    """Return height, foot, kind and look of everything in the scene, the companion last."""
    layouts = FEET[scene.count, scene.companion is not None]
    feet = layouts[int(random.integers(len(layouts)))]
    if random.random() < 0.5:
        feet = [(PIXELS - x, foot) for x, foot in feet]
    height = HEIGHTS[scene.count][scene.size] * random.uniform(0.97, 1.03)
    if scene.companion:
        height = min(height, 41)
    # Things smaller than their place stand a little further back in it.
    feet = [(x, foot - 0.15 * max(0, 44 - height) if 45 < foot < 58 else foot) for x, foot in feet]
    cast = [(height, foot, scene.kind, (scene.colour, scene.texture)) for foot in feet[: scene.count]]
    if scene.companion:
        defaults = SCENE_KINDS[scene.companion].defaults
        small = float(np.clip(0.6 * height, 13, 16))
        cast.append((small, feet[-1], scene.companion, (defaults["colour"], defaults["texture"])))
    return cast


def _place(picture, kind: str, look: tuple[str, str], height: float, x: float, foot: float, random) -> None:
    # Small things have room to wander; large ones hardly move, and nothing leaves the picture.
    roam = max(0.4, (26 - height) / 5)
    x, foot = (x, foot) + random.uniform(-roam, roam, 2)
    x = float(np.clip(x, height / 2 + 1.5, PIXELS - 1.5 - height / 2))
    foot = float(np.clip(foot, height + 2.5, PIXELS - 2.5))
    size = height * SCALE
    pool = shadow(4 * round(0.31 * size), max(8, round(0.2 * size)))
    corner = (round(x * SCALE - pool.width / 2), round(foot * SCALE - pool.height / 2))
    picture.paste((30, 24, 50), corner, pool)
    matrix = rotation(random.uniform(-5, 5)) * size / 2
    if random.random() < 0.5:
        matrix = matrix * ((-1, -1), (1, 1))
    frame = (matrix, (x * SCALE, (foot - height / 2) * SCALE))
    # An even number of pixels keeps few periods in the cache of marks.
    period = 2 * round(SCALE * (1.7 + 0.04 * height))
    colours = paints(look[0], int(random.integers(-8, 7)))
    stamp(picture, DRAWINGS[kind], colours, look[1], frame, period, random.integers(0, 64, 2))
