"""Random numbers keyed by (seed, stage, id), never by batch order.

Batch size, sharding, resuming and the number of machines therefore change nothing. Each id gets a 64-bit key, and each
key has its own stream of numbers at the counters 0, 1, 2, ...: the SplitMix64 generator, evaluated at any counter.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keys(seed: int, stage: str, ids: Iterable[object]) -> np.ndarray:
    """Return a key for each id, [N] uint64."""
    hashes = (hashlib.blake2b(f"{seed}/{stage}/{i}".encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(hashes), dtype=np.uint64).copy()


def uniform(keys: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return uniform numbers strictly between 0 and 1, [N, count] float64.

    Args:
        keys: [N] uint64.
        start: the first counter of each key's stream.
        count: numbers per key.
    """
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = keys[:, None] + counters[None, :] * _GOLDEN  # [N, count]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54


def integers(keys: np.ndarray, start: int, count: int, high: np.ndarray | int) -> np.ndarray:
    """Return integers from 0 up to `high`, without it, [N, count] int64; `high` is one number, or one per key [N]."""
    return (uniform(keys, start, count) * np.reshape(high, (-1, 1))).astype(np.int64)


def normal(keys: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return standard normal numbers, [N, count] float64."""
    return ndtri(uniform(keys, start, count))
