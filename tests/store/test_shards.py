import pytest
import torch
from safetensors.torch import save_file

from searle_lib.store import bars, shards, tensors


def squares(first, end):
    return {"square": torch.arange(first, end) ** 2, "row": torch.arange(first, end).float()[:, None]}


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_results_do_not_depend_on_the_shard_size(tmp_path, size):
    found = shards.run(tmp_path, 10, size, squares)
    assert found["square"].tolist() == [i**2 for i in range(10)]
    assert found["row"].shape == (10, 1)


def test_a_cut_off_run_goes_on_with_another_shard_size_and_computes_nothing_twice(tmp_path):
    rows = []

    def work(first, end):
        rows.extend(range(first, end))
        if len(rows) == 6:
            raise KeyboardInterrupt
        return squares(first, end)

    with pytest.raises(KeyboardInterrupt):
        shards.run(tmp_path, 10, 3, work)
    assert [path.name for path in tmp_path.iterdir()] == ["rows-000000000-000000003.safetensors"]
    rows.clear()
    found = shards.run(tmp_path, 10, 4, work)
    assert rows == list(range(3, 10))
    assert found["square"].tolist() == [i**2 for i in range(10)]


def test_each_shard_has_a_line_in_the_log(tmp_path, monkeypatch):
    sentences = []
    monkeypatch.setattr(bars, "log", sentences.append)
    shards.run(tmp_path, 10, 6, squares, "squares")
    assert sentences == ["squares: saved rows 0 to 5 of 10", "squares: saved rows 6 to 9 of 10"]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_shards_that_stay_on_disk_give_any_rows_in_any_order(tmp_path, size):
    shards.write(tmp_path, 10, size, squares)
    mapped = shards.memory_map(tmp_path)
    rows = torch.tensor([7, 0, 9, 7, 3])
    assert mapped["square"][rows].tolist() == [49, 0, 81, 49, 9]
    assert mapped["row"][rows].tolist() == [[7], [0], [9], [7], [3]]
    assert len(mapped["row"]) == 10 and len(mapped["row"][rows[:0]]) == 0


@pytest.mark.parametrize("size", [1, 3, 10])
def test_consecutive_rows_are_read_across_shards(tmp_path, size):
    shards.write(tmp_path, 10, size, squares)
    rows = shards.memory_map(tmp_path)["row"]
    for part in (slice(2, 7), slice(3, 6), slice(4, 4), slice(8, 99), slice(None)):
        assert torch.equal(rows[part], squares(0, 10)["row"][part])
    assert torch.equal(rows.to("cpu"), squares(0, 10)["row"])


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "without hash": lambda path: save_file(squares(3, 6), path),
    "of other rows": lambda path: tensors.save(squares(3, 5), path),
    "overlapping": lambda path: tensors.save(
        squares(2, 6), path.rename(path.with_name(path.name.replace("3", "2", 1)))
    ),
    "beyond the end": lambda path: tensors.save(squares(3, 12), path.with_name("rows-000000003-000000012.safetensors")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_discarded_and_computed_again(tmp_path, damage):
    shards.write(tmp_path, 10, 3, squares)
    DAMAGES[damage](tmp_path / "rows-000000003-000000006.safetensors")
    rows = []
    found = shards.run(tmp_path, 10, 3, lambda *range_: rows.append(range_) or squares(*range_))
    assert found["square"].tolist() == [i**2 for i in range(10)]
    assert rows == ([] if damage == "beyond the end" else [(3, 6)])
