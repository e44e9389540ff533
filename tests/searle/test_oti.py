"""OTI held to a plain rendering of the published loop, and to its promise that images are independent."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from problems import FAST, NAMES, plain_loop, problem
from torch.testing import assert_close

from searle_lib.backbone import embeddings
from searle_lib.backbone.model import load_clip, tokenize
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import benchmarks
from searle_lib.searle import concepts, oti, phrase_bank, phrases
from searle_lib.searle.concepts import Concepts, Vocabulary
from searle_lib.store.artefacts import DamagedArtefact, Store


def test_pseudo_words_equal_those_of_a_plain_loop(tiny, tmp_path):
    images, concepts, written = problem(tiny)
    made = oti.invert(Store(tmp_path), tiny, images, concepts, written, FAST, oti.Batches(3))
    expected = plain_loop(tiny, images, concepts, written, FAST)
    assert_close(made.tokens.vectors, expected, atol=1e-4, rtol=1e-3)
    assert made.history["step"].tolist() == list(range(6))


@pytest.mark.parametrize(("batch_size", "save_every"), [(1, 1), (2, 1), (5, 3)])
def test_results_do_not_depend_on_batches_or_savings(tiny, tmp_path, batch_size, save_every):
    images, concepts, written = problem(tiny)
    one = oti.invert(Store(tmp_path / "a"), tiny, images, concepts, written, FAST, oti.Batches(5, 10))
    other = oti.invert(
        Store(tmp_path / "b"), tiny, images, concepts, written, FAST, oti.Batches(batch_size, save_every)
    )
    assert_close(one.tokens.vectors, other.tokens.vectors, atol=1e-5, rtol=1e-4)
    assert one.tokens.key == other.tokens.key


def test_the_loss_falls_and_the_word_comes_to_mean_the_picture(tiny, tmp_path):
    images, concepts, written = problem(tiny)
    targets = encode_texts(tiny, ["a blue star", "two boats", "a red gown", "a tree", "a cat"])
    images = dataclasses.replace(images, vectors=targets)
    long = dataclasses.replace(FAST, steps=80)
    history = oti.invert(Store(tmp_path), tiny, images, concepts, written, long).history
    assert history["cos"].iloc[-1] < history["cos"].iloc[0] / 2


def pools_one_by_one(concepts, written, row, top_k):
    """Phrase rows of an image's usable concepts, a list a concept, as the published loop gathers them."""
    names = list(dict.fromkeys(concepts.names[i].strip() for i in concepts.rows[row].tolist()))[:top_k]
    usable = [written.row_of[n] for n in names if n not in written.unusable_concepts]
    return [list(range(written.starts[i], written.starts[i + 1])) for i in usable]


@pytest.mark.parametrize("top_k", [1, 2, 4, 6])
def test_phrases_are_drawn_as_the_published_loop_gathers_and_draws_them(tiny, tmp_path, top_k):
    random = np.random.default_rng(7)
    names = ("Star", "Tree", "Star ", "Gown", "Boat", "Cat")  # one twice, but for a blank
    table = [(n, f"a photo of {n} that is {i}") for n, many in (("Star", 3), ("Tree", 1), ("Boat", 5), ("Cat", 2))
             for i in range(many)] + [("Gown", "a photo of a dress")]  # fmt: skip
    written = phrases.from_table(pd.DataFrame(table, columns=["concept", "phrase"]))
    rows = torch.from_numpy(np.stack([random.permutation(6) for _ in range(40)]))
    rows = rows[(rows[:, 0] != 3)]  # an image with Gown alone has no usable concept
    concepts = Concepts(tuple(f"image-{i}" for i in range(len(rows))), rows, names, "key")
    bank = phrase_bank.prepare(Store(tmp_path), tiny, written)
    pools = [pools_one_by_one(concepts, written, row, top_k) for row in range(len(rows))]
    draws = random.uniform(size=(len(rows), 30))
    choices = bank.usable_concepts(concepts, range(len(rows)), top_k)
    joined = [[row for of_concept in pool for row in of_concept] for pool in pools]
    expected = [[pool[int(draw * len(pool))] for draw in of_one] for pool, of_one in zip(joined, draws, strict=True)]
    assert choices.draw_phrase(draws).tolist() == expected
    concept, phrase = draws[:, 0], draws[:, 1]
    one = [p[int(c * len(p))] for p, c in zip(pools, concept, strict=True)]
    assert choices.draw_concept_then_phrase(concept, phrase).tolist() == [
        p[int(d * len(p))] for p, d in zip(one, phrase, strict=True)
    ]
    part = bank.usable_concepts(concepts, range(5, 9), top_k)
    assert part.draw_phrase(draws[5:9]).tolist() == expected[5:9]


def test_the_first_mention_or_every_mention_is_replaced(tiny, tmp_path):
    _, _, written = problem(tiny)
    bank = phrase_bank.prepare(Store(tmp_path), tiny, written)
    twice = 1  # "a photo of Star that is next to a Star"
    for tokens, text in (
        (bank.first_replaced, "a photo of $ that is next to a Star"),
        (bank.all_replaced, "a photo of $ that is next to a $"),
    ):
        assert tokens[torch.tensor([twice])].ids.tolist() == tokenize([text]).ids.tolist()


def test_an_image_without_a_usable_concept_is_named(tiny, tmp_path):
    images, concepts, written = problem(tiny)
    concepts = dataclasses.replace(concepts, rows=torch.full((5, 3), 2))
    with pytest.raises(
        ValueError, match=r"image image-0: each of its 1 concepts \(Gown, ...\) has a phrase that does not"
    ):
        oti.invert(Store(tmp_path), tiny, images, concepts, written, FAST)


def test_a_concept_that_was_never_written_about_is_named(tiny, tmp_path):
    images, concepts, written = problem(tiny)
    concepts = dataclasses.replace(concepts, names=("Star", "Moon", "Gown", "Tree"))
    with pytest.raises(LookupError, match="concept 'Moon' has no phrases; run 01_phrases"):
        oti.invert(Store(tmp_path), tiny, images, concepts, written, FAST)


def test_a_pseudo_word_that_is_not_finite_is_named_with_its_image(tiny, tmp_path):
    images, concepts, written = problem(tiny)
    images.vectors[3, 0] = float("nan")
    with pytest.raises(ValueError, match="the pseudo-word of image image-3 of test/images is not finite; lower"):
        oti.invert(Store(tmp_path), tiny, images, concepts, written, FAST)


def long_inversion(clip_file, folder, watch=lambda rows: None):
    clip = load_clip(clip_file)
    optimise = oti.optimise

    @functools.wraps(optimise)  # so that its code is that of `optimise`
    def watched(*arguments):
        watch(arguments[4])
        return optimise(*arguments)

    oti.optimise = watched
    images, concepts, written = problem(clip, images=40)
    settings = dataclasses.replace(FAST, steps=40)
    try:
        return oti.invert(Store(folder), clip, images, concepts, written, settings, oti.Batches(4, 1)).tokens.vectors
    finally:
        oti.optimise = optimise


@pytest.mark.slow
def test_a_killed_inversion_goes_on_and_ends_with_the_same_words(world, tmp_path):
    clip_file = str(world / "models" / "tiny-clip.pt")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=long_inversion, args=(clip_file, tmp_path / "cut"))
    process.start()
    while len(list((tmp_path / "cut").glob("oti/test/*.partial/shards/rows-*.safetensors"))) < 2:
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list((tmp_path / "cut" / "oti").rglob("oti.safetensors"))
    shards = sorted((tmp_path / "cut").glob("oti/test/*.partial/shards/rows-*.safetensors"))
    computed = []
    resumed = long_inversion(clip_file, tmp_path / "cut", lambda rows: computed.extend(rows))
    assert sorted(computed) == list(range(4 * len(shards), 40))  # what was finished is not computed again
    assert torch.equal(resumed, long_inversion(clip_file, tmp_path / "whole"))


def test_in_float16_one_broken_image_does_not_keep_the_others_from_learning(world, tmp_path):
    """A gradient scaler would skip the whole batch's step; here each image stands alone."""
    clip = load_clip(str(world / "models" / "tiny-clip.pt"), precision="float16")
    images, concepts, written = problem(clip)
    whole = oti.invert(Store(tmp_path / "whole"), clip, images, concepts, written, FAST).tokens.vectors
    full = oti.invert(
        Store(tmp_path / "full"), load_clip(str(world / "models" / "tiny-clip.pt")), images, concepts, written, FAST
    ).tokens.vectors
    assert torch.cosine_similarity(whole, full).min() > 0.98
    images.vectors[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the pseudo-word of image image-3 .* is not finite"):
        oti.invert(Store(tmp_path / "broken"), clip, images, concepts, written, FAST)


def test_precision_is_part_of_what_determines_words_and_bank(world, tiny, tmp_path):
    half = load_clip(str(world / "models" / "tiny-clip.pt"), precision="bfloat16")
    images, concepts, written = problem(tiny)
    keys = {oti.invert(Store(tmp_path), clip, images, concepts, written, FAST).tokens.key for clip in (half, tiny)}
    assert len(keys) == 2 and len(list(tmp_path.glob("phrase-bank-*"))) == 2


def test_more_concepts_than_were_kept_are_asked_for_in_one_sentence(tiny, tmp_path):
    images, concepts, written = problem(tiny)
    concepts = dataclasses.replace(concepts, rows=concepts.rows[:, :2])
    with pytest.raises(ValueError, match="3 concepts per image are used, but 02_concepts kept 2; raise concept_depth"):
        oti.invert(Store(tmp_path), tiny, images, concepts, written, FAST)


def test_pseudo_words_are_found_again_when_the_gallery_around_their_pictures_is_another(world, tiny, tmp_path):
    store, (_, _, written) = Store(tmp_path), problem(tiny)
    fast, made = dataclasses.replace(FAST, steps=2), []
    for gallery in benchmarks.FASHIONIQ_GALLERIES:
        loaded = benchmarks.load("fashioniq", world, "val", gallery)
        galleries = embeddings.encode_lists(store, tiny, benchmarks.galleries_of(loaded))
        images = embeddings.keep_references(store, tiny, loaded, galleries)
        near = concepts.associate(store, tiny, images, Vocabulary(NAMES, "four"), 4)
        made.append(oti.invert(store, tiny, images, near, written, fast).tokens)
    assert made[0].key == made[1].key
    assert len(list((tmp_path / "oti" / "fashioniq" / "val").glob("references-*"))) == 1
    assert len(list((tmp_path / "embeddings" / "fashioniq" / "val").glob("dress-*"))) == 2  # the galleries do differ


def test_another_picture_among_the_references_makes_other_pseudo_words(world, tiny, tmp_path):
    store, keys = Store(tmp_path), set()
    loaded = benchmarks.load("circo", world, "val")
    for queries in (loaded[0].queries, loaded[0].queries.iloc[1:].reset_index(drop=True)):
        some = [dataclasses.replace(loaded[0], queries=queries)]
        galleries = embeddings.encode_lists(store, tiny, benchmarks.galleries_of(some))
        keys.add(embeddings.keep_references(store, tiny, some, galleries).key)
    assert len(keys) == 2


def test_another_setting_makes_other_pseudo_words(tiny, tmp_path):
    changes = ({}, {"steps": 3}, {"top_k": 2}, {"lambda_gpt": 0.4}, {"ema_decay": 0.7}, {"seed": 1})
    settings = [dataclasses.replace(FAST, **change) for change in changes]
    keys = [oti.invert(Store(tmp_path), tiny, *problem(tiny), one).tokens.key for one in settings]
    assert len(set(keys)) == len(changes), keys


def test_pseudo_words_of_other_images_concepts_or_phrases_are_others(tiny, tmp_path):
    parts = problem(tiny)
    changed = [
        [dataclasses.replace(part, key="other") if i == n else part for i, part in enumerate(parts)] for n in range(4)
    ]
    keys = [oti.invert(Store(tmp_path), tiny, *one, FAST).tokens.key for one in changed]  # the last is unchanged
    assert len(set(keys)) == 4, keys


def test_kept_pseudo_words_are_read_back_with_their_images_and_losses(tiny, tmp_path):
    images, near, written = problem(tiny)
    made, again = (oti.invert(Store(tmp_path), tiny, images, near, written, FAST) for _ in range(2))
    assert torch.equal(made.tokens.vectors, again.tokens.vectors) and made.tokens.ids == again.tokens.ids == images.ids
    assert made.tokens.name == "test/images" and made.history.equals(again.history)
    assert list(made.history) == ["step", "cos", "gpt"]


def test_damaged_pseudo_words_and_a_damaged_phrase_bank_are_named_by_their_folders(tiny, tmp_path):
    images, near, written = problem(tiny)
    oti.invert(Store(tmp_path, "03_oti"), tiny, images, near, written, FAST)
    for pattern, find in (
        (
            "oti/test/images-*/oti.safetensors",
            lambda: oti.invert(Store(tmp_path), tiny, images, near, written, FAST),
        ),
        ("phrase-bank-*/rows-*.safetensors", lambda: phrase_bank.prepare(Store(tmp_path), tiny, written)),
    ):
        (file,) = tmp_path.glob(pattern)
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(
            DamagedArtefact, match=rf"artefact {file.parent} is damaged \(.*\); delete that folder and run 03_oti"
        ):
            find()
