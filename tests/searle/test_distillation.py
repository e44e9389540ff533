import dataclasses
import multiprocessing
import os
import signal
import time

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import leave_record, study_of
from problems import problem
from safetensors.torch import load_file
from torch.testing import assert_close

from searle_lib.backbone.model import load_clip
from searle_lib.releases import searle_files
from searle_lib.searle import distillation, phi
from searle_lib.searle.distillation import Settings, TrainingSet
from searle_lib.searle.phi import Phi
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import DamagedArtefact, Store
from searle_lib.store.checkpoints import Checkpoints

FAST = Settings(epochs=4, batch_size=2, top_k=4, learning_rate=1e-3)


def trained(clip, folder, settings=FAST, images=5, save_every=2, **options):
    embeddings, concepts, written = problem(clip, images)
    random = torch.Generator().manual_seed(9)
    tokens = dataclasses.replace(embeddings, vectors=torch.randn(images, clip.width, generator=random), key="tokens")
    known = TrainingSet(embeddings, tokens, concepts, written)
    return distillation.train(Store(folder), clip, known, settings, save_every, **options)


def log_of(training):
    return pd.read_csv(training.folder / checkpoints.LOG)


def weights_of(training, epoch):
    return load_file(training.folder / f"phi-{epoch:03d}.safetensors")


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


def test_a_training_keeps_its_log_and_the_weights_of_every_second_epoch(tiny, tmp_path):
    rows = []
    training = trained(tiny, tmp_path, on_epoch=lambda row: rows.append(dict(row)))
    files = {path.name for path in training.folder.iterdir()}
    assert files == {"log.csv", "manifest.json", "phi-002.safetensors", "phi-004.safetensors"}
    assert log_of(training).round(6).to_dict("records") == pd.DataFrame(rows).round(6).to_dict("records")
    assert list(log_of(training)) == ["epoch", "distil", "gpt"] and [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_the_phi_of_an_epoch_is_read_back_in_eval_mode(tiny, tmp_path):
    training = trained(tiny, tmp_path)
    chosen = distillation.choose(Store(tmp_path), tiny, training, "2")
    assert chosen.epoch == 2 and not chosen.module.training
    found = chosen.module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights_of(training, 2).items())


def test_last_is_the_last_epoch_and_another_epoch_is_another_phi(tiny, tmp_path):
    training = trained(tiny, tmp_path)
    last, second, fourth = (distillation.choose(Store(tmp_path), tiny, training, name) for name in ("last", "2", "4"))
    assert last.epoch == 4 and last.key == fourth.key != second.key


@pytest.mark.parametrize("checkpoint", ["3", "best", "04"])
def test_a_checkpoint_that_was_not_kept_is_refused_with_those_that_were(tiny, tmp_path, checkpoint):
    training = trained(tiny, tmp_path)
    with pytest.raises(
        ValueError,
        match=f"phi_checkpoint is {checkpoint}, but this training kept the epochs 2, 4; choose one of these or last",
    ):
        distillation.choose(Store(tmp_path), tiny, training, checkpoint)


def test_an_epoch_that_will_not_be_kept_is_refused_before_anything_is_read(tiny, tmp_path):
    with pytest.raises(ValueError, match="phi_checkpoint is 3, but 4 epochs with phi_save_every 2 keep 2, 4; choose"):
        distillation.make_phi(study_of(tmp_path, "04_phi"), tiny, FAST, Checkpoints(2, "3"))


def test_a_training_whose_weights_are_cut_off_is_called_damaged_with_its_folder(tiny, tmp_path):
    training = trained(tiny, tmp_path)
    file = training.folder / "phi-004.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        DamagedArtefact, match=rf"artefact {training.folder} is damaged \(.*\); delete that folder and run"
    ):
        distillation.choose(Store(tmp_path), tiny, training, "last")


def test_how_often_weights_are_kept_makes_no_other_training(tiny, tmp_path):
    keys = {trained(tiny, tmp_path, save_every=number).key for number in (1, 2, 3)}
    assert len(keys) == 1


def test_another_setting_makes_another_training(tiny, tmp_path):
    changes = (
        {},
        {"epochs": 2},
        {"learning_rate": 2e-3},
        {"lambda_gpt": 0.5},
        {"top_k": 3},
        {"dropout": 0.4},
        {"seed": 1},
    )
    keys = [trained(tiny, tmp_path, dataclasses.replace(FAST, **{"epochs": 1} | change)).key for change in changes]
    assert len(set(keys)) == len(changes), keys


def test_fewer_images_than_a_batch_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="phi_batch_size is 9 but test/images has 5 images; lower phi_batch_size"):
        trained(tiny, tmp_path, dataclasses.replace(FAST, batch_size=9))


def test_training_draws_phi_towards_the_tokens(tiny, tmp_path):
    long = dataclasses.replace(FAST, epochs=40, batch_size=5, dropout=0.0)
    log = log_of(trained(tiny, tmp_path, long))
    assert log["distil"].iloc[-1] < log["distil"].iloc[0] - 0.3
    assert log["gpt"].iloc[-1] < log["gpt"].iloc[0]


def test_training_is_the_same_twice(tiny, tmp_path):
    one, two = (trained(tiny, tmp_path / name) for name in "ab")
    assert log_of(one).equals(log_of(two))
    assert all(torch.equal(weights_of(two, 4)[name], value) for name, value in weights_of(one, 4).items())


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
    for name, value in weights_of(whole, 4).items():
        assert torch.equal(weights_of(resumed, 4)[name], value), name
    assert log_of(resumed).round(6).equals(log_of(whole).round(6))


def long_training(clip_file, folder, **options):
    return trained(load_clip(clip_file), folder, dataclasses.replace(FAST, epochs=60), save_every=20, **options)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_epoch(world, tmp_path):
    clip_file = str(world / "models" / "tiny-clip.pt")
    process = multiprocessing.get_context("spawn").Process(target=long_training, args=(clip_file, tmp_path / "cut"))
    process.start()
    while not list((tmp_path / "cut").glob("phi-training-*.partial/training.safetensors")):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    state = next((tmp_path / "cut").glob("phi-training-*.partial/training.safetensors"))
    done = int(load_file(state)["epoch"])
    epochs = []
    resumed = long_training(clip_file, tmp_path / "cut", on_epoch=lambda row: epochs.append(row["epoch"]))
    assert epochs == list(range(done + 1, 61))
    whole = long_training(clip_file, tmp_path / "whole")
    assert log_of(resumed)["epoch"].tolist() == list(range(1, 61))
    for name, value in weights_of(whole, 60).items():
        assert torch.equal(weights_of(resumed, 60)[name], value), name


def test_phi_has_the_published_layers():
    shapes = {name: tuple(value.shape) for name, value in Phi(512, 512).state_dict().items()}
    assert shapes == {
        "layers.0.weight": (2048, 512), "layers.0.bias": (2048,),
        "layers.3.weight": (2048, 2048), "layers.3.bias": (2048,),
        "layers.6.weight": (512, 2048), "layers.6.bias": (512,),
    }  # fmt: skip


def test_a_study_may_bring_its_phi_and_a_later_notebook_reads_it(tiny, tmp_path):
    searle_files.write_phi(tmp_path / "phi.pt", 20, Phi(tiny.dimension, tiny.width).state_dict())
    fourth = study_of(tmp_path, "04_phi")
    made, training = distillation.make_phi(fourth, tiny, FAST, Checkpoints(2, str(tmp_path / "phi.pt")))
    leave_record(fourth)
    found = phi.read(study_of(tmp_path, "06_retrieval"), tiny)
    assert training is None and (found.key, found.epoch) == (made.key, 0) and not found.module.training
    for name, value in made.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value), name


@pytest.mark.parametrize("part", ["images", "words", "concepts", "phrases"])
def test_a_training_on_anything_else_is_another(tiny, tmp_path, part):
    embeddings, concepts, written = problem(tiny)
    known = TrainingSet(embeddings, embeddings, concepts, written)
    changed = dataclasses.replace(known, **{part: dataclasses.replace(getattr(known, part), key="other")})
    fast = dataclasses.replace(FAST, epochs=1)
    keys = {distillation.train(Store(tmp_path), tiny, of, fast).key for of in (known, changed)}
    assert len(keys) == 2
