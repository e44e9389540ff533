import numpy as np
import pytest

from searle_lib.store import randomness


def splitmix64(key, counter):
    """The generator in plain integers."""
    mask = (1 << 64) - 1
    x = (key + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_uniform_equals_splitmix64_in_plain_integers():
    keys = randomness.keys(7, "stage", ["a", "b"])
    drawn = randomness.uniform(keys, 5, 3)
    expected = [[(splitmix64(int(k), c) >> 11) * 2.0**-53 + 2.0**-54 for c in (5, 6, 7)] for k in keys]
    assert drawn.tolist() == expected


def test_numbers_of_an_id_do_not_depend_on_its_neighbours_or_on_the_range_asked_for():
    together = randomness.normal(randomness.keys(1, "oti", ["x", "y", "z"]), 0, 10)
    alone = randomness.normal(randomness.keys(1, "oti", ["y"]), 4, 3)
    assert np.array_equal(together[1:2, 4:7], alone)


def test_seed_stage_and_id_each_give_other_numbers():
    keys = [
        randomness.keys(*facts)[0] for facts in ((1, "a", ["i"]), (2, "a", ["i"]), (1, "b", ["i"]), (1, "a", ["j"]))
    ]
    assert len(set(keys)) == 4


def test_integers_are_uniform_below_each_bound():
    keys = randomness.keys(0, "test", range(2))
    drawn = randomness.integers(keys, 0, 30_000, np.array([3, 10]))
    for row, high in zip(drawn, (3, 10), strict=True):
        counts = np.bincount(row, minlength=high) / len(row)
        assert len(counts) == high
        assert counts == pytest.approx(np.full(high, 1 / high), abs=0.02)


def test_normal_numbers_have_mean_zero_and_deviation_one():
    drawn = randomness.normal(randomness.keys(0, "test", range(20)), 0, 5_000)
    assert np.isfinite(drawn).all()
    assert (drawn.mean(), drawn.std()) == pytest.approx((0, 1), abs=0.02)
