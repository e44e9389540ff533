import dataclasses
import multiprocessing
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_inversion import problem
from torch.testing import assert_close

from searle_lib import backbone, distillation
from searle_lib.artefacts import Store
from searle_lib.distillation import Phi, Settings, Validation

FAST = Settings(epochs=4, batch_size=2, top_k=4, save_every=2, learning_rate=1e-3)


def trained(clip, folder, settings=FAST, images=5, **options):
    embeddings, concepts, written = problem(clip, images)
    random = torch.Generator().manual_seed(9)
    tokens = dataclasses.replace(embeddings, vectors=torch.randn(images, clip.width, generator=random), key="tokens")
    return distillation.distil(Store(folder), clip, embeddings, tokens, concepts, written, settings, **options)


def test_contrastive_loss_equals_the_published_formula_by_exponentials():
    random = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(5, 8, generator=random), dim=-1) for _ in range(2))
    both = torch.cat([a, b])
    total = 0.0
    for n in range(10):
        similar = torch.exp(both @ both[n] / 0.25)
        total -= torch.log(similar[(n + 5) % 10] / (similar.sum() - similar[n]))
    assert_close(distillation.contrastive_loss(a, b, 0.25), total / 10)


def test_contrastive_loss_does_not_overflow_at_a_low_temperature():
    a = F.normalize(torch.ones(3, 4), dim=-1)
    assert torch.isfinite(distillation.contrastive_loss(a, a, 1e-3))


def test_a_kept_phi_is_read_back_and_every_epoch_is_validated(tiny, tmp_path):
    seen, rows = [], []

    def validate(phi):
        assert not phi.training
        seen.append(phi)
        return {"R@1": float(len(seen))}

    validation = Validation(validate, "counting")
    made = trained(tiny, tmp_path, validation=validation, on_epoch=rows.append)
    assert made.log["epoch"].tolist() == [1, 2, 3, 4] and made.log["R@1"].tolist() == [1, 2, 3, 4]
    assert [row["R@1"] for row in rows] == [1, 2, 3, 4]
    folder = next((tmp_path).glob("phi-*"))
    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["phi-002.safetensors", "phi-004.safetensors"]
    again = trained(tiny, tmp_path, validation=validation, checkpoint="2")
    assert again.key != made.key and len(seen) == 4
    weights = load_file(folder / "phi-002.safetensors")
    assert all(torch.equal(again.phi.state_dict()[name], value) for name, value in weights.items())


def test_a_checkpoint_that_was_not_kept_is_refused(tiny, tmp_path):
    for checkpoint in ("3", "best"):
        with pytest.raises(
            ValueError, match=f"phi_checkpoint is {checkpoint}; .* kept are 2, 4, the last of them also"
        ):
            trained(tiny, tmp_path, checkpoint=checkpoint)
    assert not list(tmp_path.iterdir())  # said before anything was trained


def test_fewer_images_than_a_batch_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="phi_batch_size is 9 but test/images has 5 images; lower it"):
        trained(tiny, tmp_path, dataclasses.replace(FAST, batch_size=9))


def test_training_draws_phi_towards_the_tokens(tiny, tmp_path):
    long = dataclasses.replace(FAST, epochs=40, batch_size=5, dropout=0.0)
    log = trained(tiny, tmp_path, long).log
    assert log["distil"].iloc[-1] < log["distil"].iloc[0] - 0.3
    assert log["gpt"].iloc[-1] < log["gpt"].iloc[0]


def test_training_is_the_same_twice(tiny, tmp_path):
    one, two = (trained(tiny, tmp_path / name) for name in "ab")
    assert one.log.equals(two.log)


def test_an_interrupted_training_goes_on_to_the_same_phi(tiny, tmp_path):
    whole = trained(tiny, tmp_path / "whole")

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tiny, tmp_path / "cut", on_epoch=stop)
    epochs = []
    resumed = trained(tiny, tmp_path / "cut", on_epoch=lambda row: epochs.append(row["epoch"]))
    assert epochs == [4]
    for name, value in whole.phi.state_dict().items():
        assert torch.equal(resumed.phi.state_dict()[name], value), name
    assert resumed.log.round(6).equals(whole.log.round(6))


def long_training(clip_file, folder, **options):
    return trained(backbone.load(clip_file), folder, dataclasses.replace(FAST, epochs=60, save_every=20), **options)


def test_a_killed_training_goes_on_from_its_last_epoch(world, tmp_path):
    clip_file = str(world / "models" / "tiny-clip.pt")
    process = multiprocessing.get_context("spawn").Process(target=long_training, args=(clip_file, tmp_path / "cut"))
    process.start()
    while not list((tmp_path / "cut").glob("phi-*.partial/training.safetensors")):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    state = next((tmp_path / "cut").glob("phi-*.partial/training.safetensors"))
    done = int(load_file(state)["epoch"])
    epochs = []
    resumed = long_training(clip_file, tmp_path / "cut", on_epoch=lambda row: epochs.append(row["epoch"]))
    assert epochs == list(range(done + 1, 61))
    whole = long_training(clip_file, tmp_path / "whole")
    assert resumed.log["epoch"].tolist() == list(range(1, 61))
    for name, value in whole.phi.state_dict().items():
        assert torch.equal(resumed.phi.state_dict()[name], value), name


def test_phi_has_the_published_layers():
    shapes = {name: tuple(value.shape) for name, value in Phi(512, 512).state_dict().items()}
    assert shapes == {
        "layers.0.weight": (2048, 512), "layers.0.bias": (2048,),
        "layers.3.weight": (2048, 2048), "layers.3.bias": (2048,),
        "layers.6.weight": (512, 2048), "layers.6.bias": (512,),
    }  # fmt: skip
