"""FTI4CIR held to per-image loops written out here: the choice of attributes, the sentences, the training."""

import dataclasses

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import leave_record, study_of
from safetensors.torch import load_file
from torch.testing import assert_close

from searle_lib import plain
from searle_lib.backbone.model import encode_images, encode_patches
from searle_lib.data import annotations
from searle_lib.data.images import DEFAULT_READER, Reader
from searle_lib.evaluation import composers
from searle_lib.fti4cir import captions, network, patches, prompts
from searle_lib.fti4cir import training as fti_training
from searle_lib.fti4cir.captions import Captions
from searle_lib.fti4cir.network import MAX_ATTRIBUTES, Fti4Cir, Words
from searle_lib.fti4cir.training import Settings, TrainingSet
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import Store
from searle_lib.store.checkpoints import Checkpoints
from searle_lib.training import TrainedNetwork

FAST = Settings(epochs=3, batch_size=4, learning_rate=1e-3, drop_epoch=2)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5, 3.0, 40.0])
def test_selection_equals_a_loop_over_images(spread):
    """From uniform scores (all tied, r = 1) over many above the threshold (r = 12) to a single one (r = 1)."""
    random = torch.Generator().manual_seed(int(spread * 100))
    slots = torch.rand(60, 24, 16, generator=random)
    slots[:, 5] = slots[:, 11]  # ties within an image
    embeddings = torch.randn(60, 16, generator=random) * spread
    kept, counts, _ = network.select_attributes(slots, embeddings)
    for row in range(60):
        expected, count = plain.select_attributes(slots[row], embeddings[row])
        assert (kept[row].tolist(), int(counts[row])) == (expected, count)


def test_selection_reaches_one_and_twelve_attributes():
    """Fourteen equal slots above the threshold are capped at twelve; one far above all others is alone."""
    slots = torch.zeros(2, 24, 1)
    slots[0, :14] = 3.0
    slots[1, 7] = 30.0
    _, counts, _ = network.select_attributes(slots, torch.ones(2, 1))
    assert counts.tolist() == [12, 1]


def random_words(clip, counts, seed=0):
    random = torch.Generator().manual_seed(seed)
    n = len(counts)
    return Words(
        torch.randn(n, clip.width, generator=random),
        torch.randn(n, MAX_ATTRIBUTES, clip.width, generator=random),
        torch.tensor(counts),
        torch.zeros(n, MAX_ATTRIBUTES, clip.dimension),
        torch.zeros(n, MAX_ATTRIBUTES, dtype=torch.int64),
        torch.zeros(n, 24),
    )


def read_one(clip, text, replacements):
    """One text through all 77 positions of CLIP's own tower, token embeddings replaced place by place."""
    return plain.encode_text(clip.model, [text], [replacements])[0]


COUNTS = [1, 12, 3, 7]
SUBJECTS = ["a man", "two small cats", "a very large blue striped house", "the"]
ATTRIBUTES = ["riding a wave", "", "on the beach next to a boat", "sky is blue"]


def test_sentences_with_words_equal_a_loop_over_images(tiny):
    words = random_words(tiny, COUNTS)
    known = Captions(tuple("abcd"), tuple(SUBJECTS), tuple(ATTRIBUTES))
    sentences = fti_training.prepare_sentences(tiny, known)
    whole = prompts.whole_sentence(tiny, words)
    subject = prompts.subject_sentence(tiny, sentences.attributes, words)
    attribute = prompts.attribute_sentence(tiny, sentences.subjects, words)
    for row, r in enumerate(COUNTS):
        stars = " ".join("*" * r)
        many = {6 + j: words.attributes[row, j] for j in range(r)}
        expected = read_one(tiny, f"a photo of * with {stars}", {4: words.subject[row]} | many)
        assert_close(whole[row], expected, atol=1e-5, rtol=1e-5)
        expected = read_one(tiny, f"a photo of * with {ATTRIBUTES[row]}", {4: words.subject[row]})
        assert_close(subject[row], expected, atol=1e-5, rtol=1e-5)
        start = 5 + len(SUBJECTS[row].split())  # start-of-text, "a photo of", the subject, "with"
        behind = {start + j: words.attributes[row, j] for j in range(r)}
        expected = read_one(tiny, f"a photo of {SUBJECTS[row]} with {stars}", behind)
        assert_close(attribute[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", ["subject", "attributes"])
def test_an_ablation_reads_its_words_alone(tiny, parts):
    words = random_words(tiny, COUNTS)
    whole = prompts.whole_sentence(tiny, words, parts)
    queries = prompts.query(tiny, words, ["is blue"] * 4, parts)
    for row, r in enumerate(COUNTS):
        text = "a photo of *" if parts == "subject" else f"a photo of {' '.join('*' * r)}"
        placed = {4: words.subject[row]} if parts == "subject" else {4 + j: words.attributes[row, j] for j in range(r)}
        assert_close(whole[row], read_one(tiny, text, placed), atol=1e-5, rtol=1e-5)
        assert_close(queries[row], read_one(tiny, f"{text} but is blue", placed), atol=1e-5, rtol=1e-5)


def test_a_star_in_a_modification_is_not_taken_for_a_pseudo_word(tiny):
    words = random_words(tiny, [2])
    text = "a photo of * with * * but is a * on it"
    replaced = {4: words.subject[0], 6: words.attributes[0, 0], 7: words.attributes[0, 1]}
    got = prompts.query(tiny, words, ["is a * on it"])[0]
    assert_close(got, read_one(tiny, text, replaced), atol=1e-5, rtol=1e-5)


def test_a_modification_of_sixty_words_is_cut_at_the_end(tiny):
    words = random_words(tiny, [12])
    got = prompts.query(tiny, words, ["blue " * 80])
    assert got.shape == (1, tiny.dimension) and torch.isfinite(got).all()


def test_a_subject_of_sixty_words_leaves_no_room_and_is_named(tiny):
    known = Captions(("a",), ("small " * 60 + "cat",), ("on a chair",))
    with pytest.raises(ValueError, match=r"text 'a photo of small .* has 66 tokens, .* no room for 12 attribute words"):
        fti_training.prepare_sentences(tiny, known)


def test_an_attribute_of_eighty_words_is_cut_as_the_authors_do(tiny):
    known = Captions(("a",), ("a cat",), ("on a chair " * 40,))
    assert fti_training.prepare_sentences(tiny, known).attributes.ids.shape == (1, 77)


@pytest.fixture(scope="module")
def captioned(world):
    """Ten pictures of the world and their captions."""
    table = annotations.imagenet(world).head(10)
    known = captions.read(world / "ImageNet1K" / "blip_pairs.json", list(annotations.imagenet(world)["image"]))
    return table, Captions(known.ids[:10], known.subjects[:10], known.attributes[:10])


@pytest.fixture(scope="module")
def trained(tiny, captioned):
    """Trains on them in a store below a folder."""
    table, known = captioned

    def train(folder, settings=FAST, reader=DEFAULT_READER, **options):
        return fti_training.train(Store(folder), tiny, TrainingSet(table, known, reader), settings, **options)

    return train


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """A training that ended; read only."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_training_lowers_the_loss_and_logs_every_term_by_step_and_epoch(trained, tmp_path):
    made = trained(tmp_path, dataclasses.replace(FAST, epochs=30, drop_epoch=25, dropout=0.0))
    log = pd.read_csv(made.folder / checkpoints.LOG)
    totals = log["contrastive"] + log["orthogonality"] + 1.4 * log[["subject", "attribute", "whole"]].sum(axis=1)
    assert totals.iloc[-1] < totals.iloc[0] - 0.3
    steps = pd.read_csv(made.folder / fti_training.STEPS)
    assert list(steps.columns) == [*fti_training.TERMS, "attributes", "epoch"] and len(steps) == 30 * 2
    assert steps[steps["epoch"] == 3]["whole"].mean() == pytest.approx(log["whole"][2])


def test_training_is_the_same_after_an_interruption(trained, whole, tmp_path):
    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", on_epoch=stop)
    seen = []
    resumed = trained(tmp_path / "cut", on_epoch=seen.append)
    assert [row["epoch"] for row in seen] == [3]
    expected, found = (load_file(made.folder / "fti-003.safetensors") for made in (whole, resumed))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for file in (checkpoints.LOG, fti_training.STEPS):
        assert (whole.folder / file).read_text() == (resumed.folder / file).read_text()


@pytest.mark.parametrize("term", fti_training.TERMS)
def test_an_ablation_leaves_its_term_out_of_the_loss(term):
    terms = {name: torch.tensor(float(2**place)) for place, name in enumerate(fti_training.TERMS)}
    full = fti_training.total(terms, Settings())
    weight = 1.0 if term in ("contrastive", "orthogonality") else 1.4
    assert_close(full - fti_training.total(terms, Settings(without=term)), weight * terms[term])


def test_the_best_epoch_on_a_split_is_found_in_the_curve(whole, tiny, tmp_path):
    curve = pd.DataFrame({"epoch": [1, 2, 3], "CIRR R@5": [10.0, 30.0, 20.0]})
    chosen = fti_training.choose(Store(tmp_path), tiny, whole, Checkpoints(1, "cirr"), curve)
    expected = load_file(whole.folder / "fti-002.safetensors")
    assert chosen.epoch == 2 and not chosen.module.training
    assert all(torch.equal(chosen.module.state_dict()[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match="fti_checkpoint is circo, but no epoch was validated on it; add"):
        fti_training.choose(Store(tmp_path), tiny, whole, Checkpoints(1, "circo"), curve)


def test_the_best_epoch_is_one_of_those_that_the_saving_interval_asks_for(whole, tiny, tmp_path):
    curve = pd.DataFrame({"epoch": [1, 2, 3], "CIRR R@5": [30.0, 10.0, 20.0]})
    assert fti_training.choose(Store(tmp_path), tiny, whole, Checkpoints(2, "cirr"), curve).epoch == 3
    curve["CIRR R@5"] = [float("nan"), 10.0, 20.0]
    with pytest.raises(ValueError, match="fti_checkpoint is cirr, but the training did not keep epoch 1; set"):
        fti_training.choose(Store(tmp_path), tiny, whole, Checkpoints(1, "cirr"), curve)


def test_the_learning_rate_is_a_tenth_from_drop_epoch_on(trained, tmp_path, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watched(optimizer, *arguments, **named):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    trained(tmp_path)  # three epochs of two steps, the drop after the second
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2)


def test_an_epoch_that_will_not_be_kept_is_refused_before_the_training(captioned, tiny, tmp_path):
    table, known = captioned
    with pytest.raises(ValueError, match="fti_checkpoint is 1, but 3 epochs with fti_save_every 2 keep 2, 3; choose"):
        fti_training.make_training(study_of(tmp_path), tiny, table, known, FAST, Checkpoints(2, "1"))
    assert not list(tmp_path.glob("**/fti4cir-training-*"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"without": "everything"}, "without\n  Input should be '', 'contrastive'"),
        ({"words": "none"}, "words\n  Input should be 'both', 'subject' or 'attributes'"),
        ({"batch_size": 11}, "fti_batch_size is 11 but only 10 images have captions; lower it"),
    ],
)
def test_bad_settings_are_refused(trained, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        trained(tmp_path, dataclasses.replace(FAST, **change))


def test_an_epoch_that_was_not_kept_is_refused_with_those_that_were(trained, tiny, tmp_path):
    made = trained(tmp_path, save_every=2)
    for checkpoint in ("1", "9", "best"):
        with pytest.raises(
            ValueError, match=f"fti_checkpoint is {checkpoint}, but this training kept the epochs 2, 3; choose"
        ):
            fti_training.choose(Store(tmp_path), tiny, made, Checkpoints(2, checkpoint), pd.DataFrame())


def test_how_often_weights_are_kept_and_how_pictures_are_read_make_no_other_training(trained, whole):
    assert trained(whole.folder.parent, save_every=2, reader=Reader(3, 1)) == whole


def test_another_setting_makes_another_training(trained, tmp_path):
    changes = ({}, {"epochs": 2}, {"learning_rate": 2e-3}, {"words": "subject"}, {"without": "whole"}, {"seed": 1})
    keys = [trained(tmp_path, dataclasses.replace(FAST, **{"epochs": 1} | change)).key for change in changes]
    assert len(set(keys)) == len(changes), keys


def test_the_network_of_an_epoch_is_kept_apart_from_its_training(whole, tiny, tmp_path):
    last, second, third = (
        fti_training.choose(Store(tmp_path), tiny, whole, Checkpoints(2, checkpoint), pd.DataFrame())
        for checkpoint in ("last", "2", "3")
    )
    assert (last.epoch, second.epoch) == (3, 2)
    assert last.key == third.key != second.key


def test_one_visual_pass_gives_clips_embedding_and_its_last_tokens(tiny):
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    caught = []
    hook = tiny.model.visual.transformer.register_forward_hook(lambda m, i, output: caught.append(output))
    expected = encode_images(tiny, pixels)
    hook.remove()
    embeddings, tokens = encode_patches(tiny, pixels)
    assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    assert_close(tokens, caught[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_attention_is_a_distribution_over_patches(tiny):
    model = Fti4Cir(16, 32).eval()
    shares = model.attention(torch.randn(2, 17, 32))
    assert shares.shape == (2, 24, 17)
    assert_close(shares.sum(-1), torch.ones(2, 24))


def test_queries_of_both_captions_are_averaged_with_the_references_own_words(tiny):
    words = random_words(tiny, COUNTS)
    found = patches.ImageWords(tuple("abcd"), words, "random")
    composer = composers.Fti4CirQueries(composers.Sources(tiny, None, image_words=found))
    queries = composer.compose(["c", "a"], [["is blue and long", "long and is blue"], ["is red"]])
    one = words[torch.tensor([2])]
    parts = [F.normalize(prompts.query(tiny, one, [text]), dim=-1) for text in ("is blue and long", "long and is blue")]
    assert_close(queries[0], F.normalize(sum(parts), dim=-1)[0], atol=1e-5, rtol=1e-5)
    assert_close(queries.norm(dim=-1), torch.ones(2))


def random_network(tiny):
    torch.manual_seed(0)
    return network.build_network(tiny, Fti4Cir(tiny.dimension, tiny.patch_width).state_dict())


def words_of(tiny, captioned, folder, network="network", preprocess="targetpad", batch_size=4, parts="both", rows=10):
    trained = TrainedNetwork(random_network(tiny), network, 0)
    clip, table = dataclasses.replace(tiny, preprocess=preprocess), captioned[0].head(rows)
    return patches.keep_words(Store(folder), clip, trained, "cirr/val", table, Reader(batch_size, 1), parts)


def test_another_network_preprocessing_or_list_of_images_makes_other_words(tiny, captioned, tmp_path):
    changes = ({}, {"network": "other"}, {"preprocess": "clip"}, {"rows": 9})
    keys = [words_of(tiny, captioned, tmp_path, **change).key for change in changes]
    assert len(set(keys)) == len(changes), keys


def test_how_many_pictures_are_read_at_once_and_which_words_queries_use_make_no_other_words(tiny, captioned, tmp_path):
    before = words_of(tiny, captioned, tmp_path)
    for change in ({"batch_size": 3}, {"parts": "subject"}):
        after = words_of(tiny, captioned, tmp_path, **change)
        assert before.key == after.key and torch.equal(before.words.attributes, after.words.attributes)


def test_kept_words_are_those_of_each_image_and_of_the_network(tiny, captioned, tmp_path):
    model = random_network(tiny)
    made = words_of(tiny, captioned, tmp_path)
    ids = list(captioned[0]["image"])
    embeddings, tokens = patches.encode_now(tiny, captioned[0], Reader(10, 1))
    with torch.no_grad():
        expected = model(embeddings, tokens)
    assert made.ids == tuple(ids)
    assert_close(made.select(ids[::-1]).subject, expected.subject.flip(0), atol=1e-5, rtol=1e-5)
    assert made.select([ids[3]]).counts.tolist() == expected.counts[[3]].tolist()


def test_a_study_that_brings_its_network_trains_none(tiny, tmp_path):
    table, known = captions.captioned_images(
        study_of(tmp_path, "05_fti4cir"), "gone.json", "none", "sane", "cpu", "model.pth"
    )
    training = fti_training.make_training(study_of(tmp_path), tiny, table, known, FAST, Checkpoints(1))
    assert table.empty and training is None
    with pytest.raises(FileNotFoundError, match=r"fti_weights model.pth does not exist; correct fti_weights"):
        fti_training.choose(Store(tmp_path), tiny, None, Checkpoints(1), pd.DataFrame(), "model.pth")


def test_a_later_notebook_reads_the_network_that_05_kept(whole, tiny, tmp_path):
    fifth = study_of(tmp_path, "05_fti4cir")
    chosen = fti_training.choose(fifth, tiny, whole, Checkpoints(1, "2"), pd.DataFrame())
    leave_record(fifth)
    found = network.read(study_of(tmp_path, "06_retrieval"), tiny)
    assert (found.key, found.epoch) == (chosen.key, 2) and not found.module.training
    for name, value in chosen.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value), name
