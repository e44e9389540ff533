"""The outlines of the twenty-four kinds of things in the miniature world.

`DRAWINGS` maps the name of a kind to a drawing for `paint.stamp`: the parts behind the body, the body, which takes the
colour and the texture, and the details. Coordinates are in units, with the thing's foot at y = 1.
"""

import numpy as np

from searle_lib.miniworld.paint import Drawing, box, flipped, mirrored, oval, ribbon, smooth, turned


def _star() -> Drawing:
    angle = np.radians(np.arange(10) * 36 - 90)
    far = np.where(np.arange(10) % 2, 0.48, 1.18)
    points = np.stack([far * np.cos(angle), 0.1 + far * np.sin(angle)], 1)
    return [], [("body", smooth(points, 2))], []


def _moon() -> Drawing:
    outer = oval(0.15, 0, 1, 1, 44.5, 315.5)
    return [], [("body", np.concatenate([outer, oval(0.7, 0, 0.72, 0.72, 283, 77)]))], []


def _heart() -> Drawing:
    t = np.linspace(0, 2 * np.pi, 40)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [], [("body", np.stack([x / 16, -y / 16 + 0.02], 1))], [("pale", _shine(-0.52, -0.42))]


def _house() -> Drawing:
    windows = [("cream", box(x - 0.2, 0.14, x + 0.2, 0.52)) for x in (-0.45, 0.45)]
    panes = [("glass", box(x - 0.13, 0.2, x + 0.13, 0.46)) for x in (-0.45, 0.45)]
    door = [("cream", box(-0.17, 0.5, 0.17, 1)), ("wood", box(-0.11, 0.56, 0.11, 1))]
    roof = [("deep", smooth([(-1.08, 0.02), (-0.1, -0.95), (0.1, -0.95), (1.08, 0.02)], 1))]
    return (
        [("deep", box(0.4, -0.92, 0.64, -0.2))],
        [("body", box(-0.84, -0.1, 0.84, 1))],
        roof + windows + panes + door,
    )


def _tent() -> Drawing:
    cloth = [(-1.08, 1), (-0.1, -0.72), (0.1, -0.72), (1.08, 1)]
    poles = [
        ("wood", ribbon([(0.3, -0.3), (-0.16, -1)], 0.11)),
        ("wood", ribbon([(-0.3, -0.3), (0.16, -1)], 0.11)),
    ]
    flap = [("pale", np.array([(0, -0.2), (0.3, 1), (0.56, 1)]))]
    return poles, [("body", smooth(cloth, 1))], [("ink", np.array([(-0.34, 1), (0, -0.2), (0.34, 1)]))] + flap


def _tower() -> Drawing:
    merlons = [("body", box(x - 0.16, -1, x + 0.16, -0.6)) for x in (-0.5, 0, 0.5)]
    walls = [("body", box(-0.5, -0.5, 0.5, 1)), ("body", box(-0.66, -0.74, 0.66, -0.36))]
    openings = [("pale", _arch(-0.08, 0.2, 0.24)), ("ink", _arch(-0.08, 0.12, 0.18))]
    openings += [("pale", _arch(0.66, 0.3, 0.34)), ("ink", _arch(0.66, 0.21, 0.34))]
    return [], walls + merlons, [("deep", box(-0.66, -0.42, 0.66, -0.3)), *openings]


def _boat() -> Drawing:
    hull = smooth([(-1.08, 0.36), (1.08, 0.36), (1.0, 0.6), (0.62, 1), (-0.6, 1), (-0.9, 0.7)], 1)
    sail = np.array([(0.08, -1), (0.5, -0.45), (0.88, 0.22), (0.08, 0.22)])
    jib = np.array([(-0.1, -0.8), (-0.1, 0.22), (-0.78, 0.22)])
    mast = [("wood", box(-0.07, -1.05, 0.05, 0.4))]
    return mast, [("body", hull), ("body", sail)], [("cream", jib), ("deep", box(-0.98, 0.36, 0.98, 0.48))]


def _car() -> Drawing:
    cabin = smooth([(-0.8, 0.4), (-0.5, -0.42), (0.38, -0.42), (0.8, 0.4)], 1)
    hood = smooth([(-1.06, 0.15), (0.86, 0.1), (1.08, 0.3), (1.08, 0.84), (-1.06, 0.84)], 2)
    glass = [("glass", np.array([(-0.5, 0.12), (-0.34, -0.28), (-0.06, -0.28), (-0.06, 0.12)]))]
    glass += [("glass", np.array([(0.06, 0.12), (0.06, -0.28), (0.28, -0.28), (0.52, 0.12)]))]
    wheels = [(p, oval(x, 0.74, r)) for x in (-0.58, 0.58) for p, r in (("ink", 0.28), ("steel", 0.13))]
    return [], [("body", cabin), ("body", hood)], glass + wheels + [("gold", oval(0.98, 0.4, 0.1, 0.11))]


def _rocket() -> Drawing:
    fin = np.array([(0.25, 0), (0.8, 0.5), (0.76, 0.88), (0.2, 0.6)])
    flame = [
        ("flame", smooth([(-0.26, 0.55), (0.26, 0.55), (0, 1.25)], 2)),
        ("gold", oval(0, 0.68, 0.11, 0.18)),
    ]
    hull = mirrored([(0, -1.1), (0.22, -0.86), (0.44, -0.35), (0.46, 0.2), (0.34, 0.66)])
    window = [("cream", oval(0, -0.26, 0.23)), ("glass", oval(0, -0.26, 0.15))]
    nose = [("deep", mirrored([(0, -1.06), (0.12, -0.96), (0.3, -0.68), (0.15, -0.63)]))]
    return flame + [("deep", fin), ("deep", flipped(fin))], [("body", smooth(hull, 2))], nose + window


def _tree() -> Drawing:
    clumps = [(0, -0.56, 0.5), (-0.48, -0.12, 0.46), (0.48, -0.12, 0.46), (0, 0.08, 0.44), (0, -0.2, 0.5)]
    trunk = smooth([(-0.26, 1.04), (-0.13, 0.7), (-0.12, 0.2), (0.12, 0.2), (0.13, 0.7), (0.26, 1.04)], 1)
    return [("wood", trunk)], [("body", oval(*clump)) for clump in clumps], []


def _flower() -> Drawing:
    stem = [("leaf", ribbon([(0, -0.2), (0.03, 0.4), (0, 1)], 0.13))]
    stem += [("leaf", turned(oval(0, 0, 0.32, 0.14), angle, x, 0.64)) for angle, x in ((-32, 0.3), (32, -0.3))]
    petals = [turned(oval(0.44, 0, 0.32, 0.27), 60 * k + 30, 0, -0.3) for k in range(6)]
    heart = [("deep", oval(0, -0.3, 0.27)), ("gold", oval(0, -0.3, 0.19))]
    return stem, [("body", petal) for petal in petals], heart


def _cactus() -> Drawing:
    trunk = [oval(0, -0.66, 0.32), box(-0.32, -0.66, 0.32, 1)]
    right = [ribbon([(0, 0.42), (0.72, 0.42)], 0.32), box(0.56, -0.2, 0.88, 0.42), oval(0.72, -0.2, 0.16)]
    left = [
        ribbon([(0, 0.15), (-0.72, 0.15)], 0.32),
        box(-0.88, -0.45, -0.56, 0.15),
        oval(-0.72, -0.45, 0.16),
    ]
    elbows = [oval(0.72, 0.42, 0.16), oval(-0.72, 0.15, 0.16)]
    bloom = [("flame", turned(oval(0, 0, 0.2, 0.1), angle, 0, -0.98)) for angle in (-40, 40, 90)]
    return [], [("body", part) for part in trunk + right + left + elbows], bloom


def _mushroom() -> Drawing:
    stem = smooth([(-0.28, 0), (0.28, 0), (0.3, 0.6), (0.46, 1.06), (-0.46, 1.06), (-0.3, 0.6)], 2)
    cap = np.concatenate([oval(0, 0.12, 1.05, 1.12, 180, 360), oval(0, 0.12, 1.05, 0.2, 0, 180)])
    return [("cream", stem)], [("body", cap)], [("pale", _shine(-0.55, -0.42))]


def _apple() -> Drawing:
    half = [
        (0, -0.44),
        (0.2, -0.66),
        (0.62, -0.7),
        (1.02, -0.3),
        (0.94, 0.4),
        (0.5, 1.06),
        (0.16, 1.04),
        (0, 0.92),
    ]
    leaf = turned(oval(0, 0, 0.3, 0.14), -28, 0.34, -0.82)
    return (
        [("wood", ribbon([(0, -0.4), (0.02, -0.7), (-0.08, -1.02)], 0.13))],
        [("body", smooth(mirrored(half), 2))],
        [
            ("leaf", leaf),
            ("pale", _shine(-0.52, -0.2)),
        ],
    )


def _pear() -> Drawing:
    half = [
        (0, -0.78),
        (0.26, -0.76),
        (0.38, -0.4),
        (0.44, -0.02),
        (0.86, 0.36),
        (0.84, 0.86),
        (0.4, 1.06),
        (0, 1.02),
    ]
    leaf = turned(oval(0, 0, 0.26, 0.12), -24, 0.28, -0.9)
    stem = ribbon([(0, -0.6), (0, -0.85), (-0.1, -1.08)], 0.13)
    return (
        [("wood", stem)],
        [("body", smooth(mirrored(half), 2))],
        [("leaf", leaf), ("pale", _shine(-0.4, 0.3))],
    )


def _fish() -> Drawing:
    tail = smooth([(-0.4, 0.15), (-1.12, -0.5), (-0.92, 0.15), (-1.12, 0.8)], 1)
    fins = [("deep", smooth([(-0.35, -0.3), (-0.15, -0.88), (0.45, -0.4)], 2))]
    fins += [("deep", smooth([(-0.25, 0.6), (-0.2, 1.1), (0.3, 0.65)], 2))]
    eye = [("white", oval(0.56, 0.0, 0.17)), ("ink", oval(0.6, 0.0, 0.1))]
    gill = [("deep", ribbon(oval(0.12, 0.15, 0.2, 0.42, -60, 60), 0.07))]
    return fins, [("body", tail), ("body", oval(0.2, 0.15, 0.86, 0.64))], gill + eye


def _bird() -> Drawing:
    beak = [("flame", np.array([(0.7, -0.58), (1.14, -0.36), (0.7, -0.22)]))]
    legs = [("flame", ribbon([(x, 0.6), (x, 1), (x + 0.18, 1.02)], 0.09)) for x in (-0.05, 0.25)]
    tail = smooth([(-0.2, -0.1), (-1.1, -0.3), (-1.0, 0.12), (-0.3, 0.5)], 1)
    wing = smooth([(-0.8, 0.2), (-0.1, -0.1), (0.28, 0.1), (0.05, 0.52), (-0.35, 0.5)], 2)
    eye = [("white", oval(0.5, -0.46, 0.15)), ("ink", oval(0.53, -0.46, 0.09))]
    body = [("body", tail), ("body", oval(0.05, 0.2, 0.66, 0.56)), ("body", oval(0.42, -0.4, 0.44))]
    return beak + legs, body, [("deep", wing)] + eye


def _cat() -> Drawing:
    ear = np.array([(0.1, -0.76), (0.5, -1.1), (0.58, -0.4)])
    bodies = [
        smooth(mirrored([(0, -0.3), (0.4, -0.1), (0.66, 0.6), (0.66, 1.04), (0, 1.04)]), 2),
        oval(0, -0.42, 0.6, 0.46),
    ]
    tail = [ribbon([(0.3, 0.86), (0.78, 0.88), (0.94, 0.6), (0.86, 0.22)], 0.22), oval(0.855, 0.22, 0.11)]
    inner = np.array([(0.26, -0.76), (0.46, -0.94), (0.48, -0.6)])
    face = [("blush", inner), ("blush", flipped(inner))]
    for x in (-0.24, 0.24):
        face += [("gold", oval(x, -0.46, 0.16)), ("ink", oval(x, -0.46, 0.07, 0.14))]
    face += [("blush", np.array([(-0.09, -0.28), (0.09, -0.28), (0, -0.18)]))]
    paws = [("deep", ribbon([(x, 0.55), (x, 1.04)], 0.07)) for x in (-0.2, 0.2)]
    return [], [("body", part) for part in [ear, flipped(ear)] + tail + bodies], face + paws


def _butterfly() -> Drawing:
    upper = smooth([(0, 0.1), (0.1, -0.3), (0.5, -0.95), (1.08, -1.0), (1.1, -0.3), (0.8, 0.12)], 2)
    lower = smooth([(0, 0), (0.8, 0.05), (0.98, 0.5), (0.6, 1.08), (0.2, 0.75)], 2)
    feelers = [ribbon([(0.03, -0.4), (0.12, -0.8), (0.32, -1)], 0.07), oval(0.33, -1, 0.07)]
    wings = [("body", part) for half in (upper, lower) for part in (half, flipped(half))]
    body = [("ink", oval(0, 0.15, 0.11, 0.58)), ("ink", oval(0, -0.4, 0.14))]
    return [], wings, body + [("ink", part) for half in feelers for part in (half, flipped(half))]


def _cup() -> Drawing:
    y = np.linspace(-0.5, -1.06, 9)
    steam = [("white", ribbon(np.stack([x + 0.07 * np.sin(9 * y), y], 1), 0.1)) for x in (-0.34, 0.04)]
    mug = smooth([(-0.84, -0.36), (0.54, -0.36), (0.5, 0.7), (0.3, 1.04), (-0.6, 1.04), (-0.8, 0.7)], 1)
    body = [("body", oval(0.58, 0.24, 0.48, 0.44)), ("hole", oval(0.56, 0.24, 0.24, 0.22)), ("body", mug)]
    return steam, body, [("deep", oval(-0.15, -0.36, 0.67, 0.18)), ("wood", oval(-0.15, -0.33, 0.54, 0.11))]


def _umbrella() -> Drawing:
    edge = [oval(x, 0.1, 0.275, 0.14, 360, 180) for x in (0.825, 0.275, -0.275, -0.825)]
    dome = np.concatenate([oval(0, 0.1, 1.1, 1.02, 180, 360), *edge])
    stick = [
        ("wood", box(-0.06, -1.08, 0.06, 0.85)),
        ("wood", ribbon(oval(0.17, 0.82, 0.17, 0.2, 180, 0), 0.12)),
    ]
    bow = np.linspace(0, 1, 9) * np.pi / 2
    ribs = [("deep", ribbon(np.stack([x * np.sin(bow), 0.08 - 0.98 * np.cos(bow)], 1), 0.06)) for x in (-0.55, 0.55)]
    return stick, [("body", dome)], ribs + [("deep", box(-0.03, -0.9, 0.03, 0.1))]


def _balloon() -> Drawing:
    y = np.linspace(0.4, 1.06, 9)
    string = [("steel", ribbon(np.stack([0.07 * np.sin(8 * (y - 0.4)), y], 1), 0.07))]
    knot = ("body", np.array([(0, 0.32), (0.15, 0.56), (-0.15, 0.56)]))
    skin = smooth(mirrored([(0, -1.1), (0.5, -1.08), (0.84, -0.66), (0.8, -0.1), (0.4, 0.34), (0, 0.46)]), 2)
    return string, [("body", skin), knot], [("pale", _shine(-0.36, -0.6))]


def _key() -> Drawing:
    ring = [("body", oval(0, -0.5, 0.58)), ("hole", oval(0, -0.52, 0.24))]
    teeth = [box(0, 0.4, 0.62, 0.62), box(0, 0.8, 0.5, 1.04)]
    return [], ring + [("body", part) for part in [box(-0.17, -0.1, 0.17, 1.04)] + teeth], []


def _bell() -> Drawing:
    half = [(0, -0.86), (0.34, -0.84), (0.58, -0.4), (0.6, 0.2), (0.94, 0.62), (0.94, 0.8)]
    loop = [("deep", oval(0, -0.88, 0.2)), ("wood", oval(0, 0.84, 0.24))]
    rim = [("deep", smooth([(-1.06, 0.56), (1.06, 0.56), (1.06, 0.84), (-1.06, 0.84)], 2))]
    return loop, [("body", smooth(mirrored(half), 2))], rim + [("pale", _shine(-0.3, -0.3))]


def _arch(y: float, wide: float, down: float) -> np.ndarray:
    return np.concatenate([oval(0, y, wide, wide, 180, 360), [(wide, y + down), (-wide, y + down)]])


def _shine(x: float, y: float) -> np.ndarray:
    return turned(oval(0, 0, 0.2, 0.1), -58, x, y)


DRAWINGS: dict[str, Drawing] = {
    "star": _star(),
    "moon": _moon(),
    "heart": _heart(),
    "house": _house(),
    "tent": _tent(),
    "tower": _tower(),
    "boat": _boat(),
    "car": _car(),
    "rocket": _rocket(),
    "tree": _tree(),
    "flower": _flower(),
    "cactus": _cactus(),
    "mushroom": _mushroom(),
    "apple": _apple(),
    "pear": _pear(),
    "fish": _fish(),
    "bird": _bird(),
    "cat": _cat(),
    "butterfly": _butterfly(),
    "cup": _cup(),
    "umbrella": _umbrella(),
    "balloon": _balloon(),
    "key": _key(),
    "bell": _bell(),
}
