import pytest
import torch

from searle_lib.store import shards


def squares(first, end):
    return {"square": torch.arange(first, end) ** 2, "row": torch.arange(first, end).float()[:, None]}


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_results_do_not_depend_on_the_shard_size(tmp_path, size):
    tensors = shards.run(tmp_path, 10, size, squares)
    assert tensors["square"].tolist() == [i**2 for i in range(10)]
    assert tensors["row"].shape == (10, 1)


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
    tensors = shards.run(tmp_path, 10, 4, work)
    assert rows == list(range(3, 10))
    assert tensors["square"].tolist() == [i**2 for i in range(10)]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_shards_that_stay_on_disk_give_any_rows_in_any_order(tmp_path, size):
    shards.write(tmp_path, 10, size, squares)
    mapped = shards.memory_map(tmp_path)
    rows = torch.tensor([7, 0, 9, 7, 3])
    assert mapped["square"][rows].tolist() == [49, 0, 81, 49, 9]
    assert mapped["row"][rows].tolist() == [[7], [0], [9], [7], [3]]
    assert len(mapped["row"]) == 10 and len(mapped["row"][rows[:0]]) == 0
