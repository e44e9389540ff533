"""Short memory: batches are halved, this is said once, and no result changes."""

import functools
import itertools

import pytest
import torch
from problems import FAST, problem

from searle_lib.searle import oti
from searle_lib.store.artefacts import Store
from searle_lib.store.batches import BatchSize

TOO_MUCH = 1 << 50  # bytes


def square(rows, most, shortage):
    """The squares of rows, if there are at most `most`; else what `shortage` raises."""
    if len(rows) > most:
        shortage()
    return [row * row for row in rows]


def raise_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")


SHORTAGES = {
    "a processor": lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
    "Python": lambda: bytearray(TOO_MUCH),
    "a GPU": raise_cuda,
}


@pytest.mark.parametrize("shortage", SHORTAGES.values(), ids=SHORTAGES)
def test_a_batch_is_halved_until_it_fits_and_that_is_said_once(shortage, capsys):
    size = BatchSize(32, "oti_batch_size")
    for first in (0, 50):
        parts = list(size.over(first, first + 50, lambda rows: square(rows, 9, shortage)))
        assert [*itertools.chain(*parts)] == [row * row for row in range(first, first + 50)]
        assert max(map(len, parts)) == 8
    said = "memory ran short: oti_batch_size is 8 from here on, not 32; no result changes.\n"
    assert capsys.readouterr().out == said


def test_one_row_that_does_not_fit_and_any_other_error_are_raised():
    def fail():
        raise RuntimeError("shapes do not match")

    with pytest.raises(MemoryError):
        list(BatchSize(4, "rows").over(0, 4, lambda rows: square(rows, 0, SHORTAGES["Python"])))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(BatchSize(4, "rows").over(0, 4, lambda rows: square(rows, 0, fail)))


def test_pseudo_words_are_the_same_to_the_bit_where_memory_holds_two_images(tiny, tmp_path, monkeypatch, capsys):
    images, concepts, written = problem(tiny)
    expected = oti.invert(Store(tmp_path / "a"), tiny, images, concepts, written, FAST, oti.Batches(2))
    optimise = oti.optimise

    @functools.wraps(optimise)  # so that its code is that of `optimise`
    def in_little_memory(*arguments):
        if len(arguments[4]) > 2:
            raise_cuda()
        return optimise(*arguments)

    monkeypatch.setattr(oti, "optimise", in_little_memory)
    made = oti.invert(Store(tmp_path / "b"), tiny, images, concepts, written, FAST, oti.Batches(4))
    assert torch.equal(made.tokens.vectors, expected.tokens.vectors)
    assert capsys.readouterr().out.count("memory ran short") == 1
