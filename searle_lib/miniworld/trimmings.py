"""The trimmings that make each garment kind recognisable with any sleeves, neckline, length, belt and pattern.

`TRIMMINGS` maps the name of a kind to a function. It takes the garment's measures (the half widths `waist` and `hem`,
and the heights `neck_y`, `waist_y` and `hem_y`) and returns the parts on top: plackets, pockets, folds, frills, lace.
"""

from collections.abc import Callable

import numpy as np

from searle_lib.miniworld.paint import Parts, box, flipped, mirrored, oval, ribbon

STRAPS = (("deep", box(0.26, -0.93, 0.39, -0.5)), ("gold", oval(0.325, -0.53, 0.06)))


def _placket(shape: dict, stop: float, step: float = 0.17, width: float = 0.13) -> Parts:
    """Return a strip with buttons from the neck down the front."""
    top = shape["neck_y"] - 0.02
    buttons = [("edge", oval(0, y, 0.042)) for y in np.arange(top + 0.12, stop - 0.04, step)]
    strips = [("deep", box(-width / 2 - 0.025, top, width / 2 + 0.025, stop))]
    return [*strips, ("pale", box(-width / 2, top, width / 2, stop)), *buttons]


def _gown(shape: dict) -> Parts:
    low, waist, waist_y = shape["hem_y"] - 0.02, shape["waist"], shape["waist_y"]
    parts = [("deep", box(-waist, waist_y - 0.03, waist, waist_y + 0.03))]
    for share in (-0.66, -0.24, 0.24, 0.66):
        x = share * shape["hem"]
        parts += [("deep", np.array([(share * waist, waist_y + 0.1), (x + 0.06, low), (x - 0.06, low)]))]
    return parts


def _sundress(shape: dict) -> Parts:
    y, hem = shape["hem_y"], shape["hem"]
    tier = mirrored([(hem - 0.055, y - 0.2), (hem, y), (0, y + 0.04)])
    waist = box(-shape["waist"], shape["waist_y"] - 0.035, shape["waist"], shape["waist_y"] + 0.035)
    straps = [half for paint, part in STRAPS for half in _both(paint, part)]
    return [("deep", tier), ("deep", waist), *straps]


def _shirtdress(shape: dict) -> Parts:
    pocket = ribbon(_pocket(0.28, 0.18, 0.2, 0.24), 0.04)
    return _placket(shape, shape["hem_y"]) + _both("deep", pocket)


def _robe(shape: dict) -> Parts:
    top, low = shape["neck_y"], shape["hem_y"]
    overlap = [(0, top - 0.05), (0.2, top + 0.4), (0.32, 0.1), (0.34, low)]
    lapel = [(-0.16, top - 0.03), *overlap, (0.2, low), (0.18, 0.1), (0.05, top + 0.38)]
    pockets = _both("deep", _pocket(0.37, 0.2, 0.2, 0.2))
    return [*pockets, ("pale", np.array(lapel)), ("edge", ribbon(overlap, 0.035))]


def _polo(shape: dict) -> Parts:
    y = shape["hem_y"]
    vents = _both("deep", np.array([(0.46, y - 0.2), (0.46, y), (0.38, y)]))
    badge = [("mark", oval(0.28, -0.4, 0.075))]
    return _placket(shape, shape["neck_y"] + 0.36, 0.13, 0.15) + vents + badge


def _flannel(shape: dict) -> Parts:
    yoke = [("deep", ribbon([(-0.48, -0.64), (0, -0.58), (0.48, -0.64)], 0.04))]
    pockets = _both("deep", _pocket(0.29, -0.4, 0.24, 0.26)) + _both("pale", box(0.15, -0.42, 0.43, -0.32))
    return yoke + pockets + _placket(shape, shape["hem_y"])


def _jersey(shape: dict) -> Parts:
    y = shape["hem_y"]
    sides = _both("pale", box(0.47, -0.4, 0.6, y))
    patch = [("edge", box(-0.3, -0.5, 0.3, -0.08)), ("cream", box(-0.26, -0.46, 0.26, -0.12))]
    seven = [box(-0.15, -0.43, 0.15, -0.34), ribbon([(0.1, -0.4), (0.0, -0.26), (-0.05, -0.14)], 0.12)]
    return sides + patch + [("ink", stroke) for stroke in seven]


def _sweater(shape: dict) -> Parts:
    y, hem = shape["hem_y"], shape["hem"]
    ribs = [("pale", box(x - 0.02, y - 0.14, x + 0.02, y)) for x in np.linspace(-hem + 0.08, hem - 0.08, 9)]
    return [("deep", box(-hem, y - 0.16, hem, y + 0.01))] + ribs


def _blouse(shape: dict) -> Parts:
    waist, y = shape["waist"], shape["waist_y"]
    spread = np.linspace(-0.34, 0.34, 5)
    parts = [("deep", ribbon([(0.6 * x, y + 0.03), (x, y + 0.16)], 0.035)) for x in spread]
    down = np.linspace(shape["neck_y"] + 0.02, y - 0.06, 13)
    frill = np.stack([0.13 + 0.05 * np.sin(np.arange(13) * np.pi / 2), down], 1)
    parts += [("deep", box(-waist, y - 0.03, waist, y + 0.03)), ("deep", mirrored(frill * (1.3, 1)))]
    return [*parts, ("pale", mirrored(frill)), ("deep", box(-0.02, down[0], 0.02, down[-1]))]


def _camisole(shape: dict) -> Parts:
    y, hem = shape["hem_y"], shape["hem"]
    lace = [("pale", oval(x, y - 0.05, 0.055)) for x in np.linspace(-hem + 0.06, hem - 0.06, 6)]
    cups = [("deep", ribbon(oval(x, -0.46, 0.19, 0.2, 10, 170), 0.04)) for x in (-0.19, 0.19)]
    darts = _both("deep", ribbon([(0.17, -0.22), (0.15, y - 0.14)], 0.03))
    return lace + cups + darts + [("deep", ribbon([(-hem, y - 0.13), (0, y - 0.11), (hem, y - 0.13)], 0.03))]


def _tunic(shape: dict) -> Parts:
    y, hem = shape["hem_y"], shape["hem"]
    top = shape["neck_y"]
    yoke = [("pale", mirrored([(0.16, top - 0.12), (0.16, top + 0.16), (0, top + 0.3)]))]
    stones = [("deep", oval(x, top + down, 0.045)) for x, down in ((-0.08, 0.1), (0.08, 0.1), (0, 0.2))]
    band = [(0, y - 0.14), (0.36 * hem, y - 0.14), (0.36 * hem, y - 0.07), (0, y - 0.07)]
    side = [(0.66 * hem, y - 0.14), (0.94 * hem, y - 0.14), (0.96 * hem, y - 0.07), (0.64 * hem, y - 0.07)]
    return yoke + stones + [("deep", mirrored(band))] + _both("deep", np.array(side))


def _tee(shape: dict) -> Parts:
    y = shape["hem_y"] - 0.07
    return [("deep", ribbon([(-shape["hem"], y), (0, y), (shape["hem"], y)], 0.03))]


def _pocket(x: float, y: float, wide: float, tall: float) -> np.ndarray:
    left, right, side = x - wide / 2, x + wide / 2, y + 0.8 * tall
    return np.array([(left, y), (right, y), (right, side), (x, y + tall), (left, side)])


def _both(paint: str, part: np.ndarray) -> Parts:
    return [(paint, part), (paint, flipped(part))]


TRIMMINGS: dict[str, Callable[[dict], Parts]] = {
    "gown": _gown,
    "sundress": _sundress,
    "shirtdress": _shirtdress,
    "robe": _robe,
    "polo": _polo,
    "flannel": _flannel,
    "jersey": _jersey,
    "sweater": _sweater,
    "blouse": _blouse,
    "camisole": _camisole,
    "tunic": _tunic,
    "tee": _tee,
}
