"""The state of a training on disk."""

import pytest
import torch

from searle_lib.store import checkpoints


def training():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    return module, torch.optim.AdamW(module.parameters())


def trained(folder):
    """A module and its optimizer after two steps, saved in a folder with their log."""
    module, optimizer = training()
    for _ in range(2):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    log = [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 0.1 + 0.2}]
    checkpoints.save(folder, module, optimizer, 2, log)
    return module, optimizer, log


def test_a_state_is_restored_with_its_log_to_the_last_bit(tmp_path):
    module, optimizer, log = trained(tmp_path)
    (tmp_path / checkpoints.LOG).unlink()  # the state does not need it
    other, its_optimizer = training()
    assert checkpoints.resume(tmp_path, other, its_optimizer) == (2, log)
    assert torch.equal(other.weight, module.weight)
    moments = [one.state_dict()["state"][0]["exp_avg"] for one in (optimizer, its_optimizer)]
    assert torch.equal(*moments)


@pytest.mark.parametrize("place", [0, 5, 60, -1])
def test_a_state_with_a_flipped_bit_starts_the_training_anew(tmp_path, place):
    trained(tmp_path)
    content = bytearray((tmp_path / checkpoints.STATE).read_bytes())
    content[place] ^= 1
    (tmp_path / checkpoints.STATE).write_bytes(content)
    module, optimizer = training()
    before = module.weight.clone()
    assert checkpoints.resume(tmp_path, module, optimizer) == (0, []) and torch.equal(module.weight, before)


@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_half_written_state_starts_the_training_anew(tmp_path, size):
    trained(tmp_path)
    content = (tmp_path / checkpoints.STATE).read_bytes()
    (tmp_path / checkpoints.STATE).write_bytes(content[:size])
    assert checkpoints.resume(tmp_path, *training()) == (0, [])
