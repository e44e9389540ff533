"""The drawn world: true captions, fair queries, real forms, and models that fit it."""

import json
import multiprocessing
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from searle_lib.backbone.model import encode_images
from searle_lib.data import benchmarks, images
from searle_lib.miniworld import fingerprint, grammar, writers
from searle_lib.miniworld.specimens import (
    DOMAINS,
    GARMENT_KINDS,
    KINDS,
    SCENE_KINDS,
    Garment,
    Scene,
    concepts,
    differences,
    kinds_of,
    random_garment,
    random_scene,
    varied,
)
from searle_lib.searle.concepts import concept_embeddings


def specimens(count, seed=0):
    random = np.random.default_rng(seed)
    return [random_garment(random) if i % 2 else random_scene(random) for i in range(count)]


def test_there_are_two_dozen_things_and_garments_in_three_categories():
    assert len(SCENE_KINDS) == 24 and len(GARMENT_KINDS) == 12
    assert [len(kinds_of(category)) for category in ("dress", "shirt", "toptee")] == [4, 4, 4]
    assert len(concepts()) == len(set(concepts())) == 54


def test_specimens_hold_values_of_their_domains_only():
    for specimen in specimens(300):
        for name, values in DOMAINS[type(specimen)].items():
            assert getattr(specimen, name) in values
        assert getattr(specimen, "companion", None) != specimen.kind


@pytest.mark.parametrize("changes", [1, 2, 3])
def test_variations_differ_in_that_many_attributes_and_never_in_a_fixed_one(changes):
    random = np.random.default_rng(1)
    for specimen in specimens(200):
        other = varied(specimen, changes, random, fixed=("kind",))
        assert len(differences(specimen, other)) == changes and other.kind == specimen.kind


def test_pictures_are_64_pixels_and_drawn_the_same_twice():
    for specimen in specimens(20):
        one, two, other = (np.asarray(writers.draw(specimen, name)) for name in ("a", "a", "b"))
        assert one.shape == (64, 64, 3) and (one == two).all() and (one != other).any()


def test_every_attribute_shows_in_the_picture():
    random = np.random.default_rng(2)
    for domain, specimen in ((Scene, random_scene(random, "boat")), (Garment, random_garment(random))):
        for name in DOMAINS[domain]:
            other = varied(specimen, 1, random, fixed=[n for n in DOMAINS[domain] if n != name])
            a, b = (np.asarray(writers.draw(s, "same"), dtype=float) for s in (specimen, other))
            changed = (np.abs(a - b).max(-1) > 40).mean()
            assert changed > 0.004, (name, specimen, other)


COLOURS = set(DOMAINS[Scene]["colour"])


def test_captions_are_true():
    """No caption names a colour that is not there, save one that it denies."""
    random = np.random.default_rng(3)
    for specimen in specimens(500):
        caption = grammar.caption(specimen, random).replace("on green grass", "")
        denied = re.findall(r"(?:instead of|rather than|and not) (\w+)", caption)
        named = {word for word in re.findall(r"[a-z]+", caption) if word in COLOURS} - set(denied)
        assert named <= {specimen.colour}, (caption, specimen)


def test_relative_captions_state_no_more_than_asked_and_only_differences():
    random = np.random.default_rng(4)
    for reference in specimens(300):
        target = varied(reference, 3, random, fixed=("kind",))
        caption = grammar.relative_caption(reference, target, random, most=1)
        assert " and has " not in caption and " and is " not in caption
        if any(re.search(rf"\b{colour}\b", caption) for colour in COLOURS):
            assert reference.colour != target.colour, caption


def test_a_relative_caption_needs_a_difference():
    random = np.random.default_rng(0)
    scene = random_scene(random)
    with pytest.raises(ValueError, match="needs a reference and a target that differ"):
        grammar.relative_caption(scene, scene, random, 1)


def test_circos_ground_truths_are_all_scenes_that_fit_and_no_others():
    random = np.random.default_rng(5)
    reference = random_scene(random, "star")
    for changed in ("count", "size", "colour", "companion"):
        target = varied(reference, 1, random, fixed=[n for n in DOMAINS[Scene] if n != changed])
        gallery = dict(enumerate([reference, target, *(varied(target, 1, random) for _ in range(200))]))
        found = writers.ground_truths(reference, target, gallery)
        sizes = DOMAINS[Scene]["size"]
        for i, scene in gallery.items():
            alike = all(getattr(scene, n) == getattr(target, n) for n in ("kind", "colour", "setting"))
            as_said = getattr(scene, changed) == getattr(target, changed)
            if changed == "size":  # "is larger" fits whatever is larger than the reference
                bigger = sizes.index(target.size) > sizes.index(reference.size)
                now = sizes.index(scene.size) - sizes.index(reference.size)
                as_said = now > 0 if bigger else now < 0
            assert (i in found) == (alike and as_said and scene != reference)


def test_a_cirr_caption_fits_one_member_of_its_group():
    random = np.random.default_rng(6)
    taken = set()
    for _ in range(15):
        scenes, stated = writers._six_alike(random, taken)
        assert len(set(scenes)) == 6 and not taken & set(scenes)
        taken.update(scenes)
        for i, names in enumerate(stated):
            target = scenes[(i + 1) % 6]
            assert 2 <= len(differences(scenes[i], target)) <= 4 and len(names) in (2, 3)
            others = [s for s in scenes if s not in (scenes[i], target)]
            exact = [s for s in others if all(getattr(s, n) == getattr(target, n) for n in names)]
            assert not exact and not any(writers.fits(s, scenes[i], target, names) for s in others)


def test_no_garment_is_twice_in_a_gallery(tmp_path):
    for path, specimen in (drawn := dict(writers._fashioniq(tmp_path, 42, writers.Sizes(20, 60)))).items():
        assert isinstance(specimen, Garment) and path.suffix == ".jpg"
    split = json.loads((tmp_path / "image_splits" / "split.shirt.val.json").read_text())
    assert len({drawn[tmp_path / "images" / f"{name}.jpg"] for name in split}) == len(split) == 60


def test_sizes_are_compared_only_where_as_many_things_are_drawn():
    random = np.random.default_rng(7)
    for _ in range(300):
        reference = random_scene(random)
        target = varied(reference, 2, random, fixed=[n for n in DOMAINS[Scene] if n not in ("size", "count")])
        caption = grammar.relative_caption(reference, target, random, most=2)
        assert not re.search("larger|smaller|bigger", caption)


def two_writers(folder):
    from conftest import SMALL

    writers.write(folder, sizes=writers.Sizes(**SMALL))


@pytest.mark.slow
def test_two_processes_draw_one_world(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=two_writers, args=(tmp_path / "data",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "data" / writers.MARK).exists()


def test_annotations_have_the_keys_of_the_real_ones(world):
    (val,) = benchmarks.load("circo", world, "val")
    assert len(val.gallery) == 90
    circo = json.loads((world / "CIRCO/annotations/val.json").read_text())[0]
    assert set(circo) == {
        "reference_img_id", "target_img_id", "relative_caption", "shared_concept", "gt_img_ids", "id",
        "semantic_aspects",
    }  # fmt: skip
    assert circo["gt_img_ids"][0] == circo["target_img_id"] and circo["reference_img_id"] not in circo["gt_img_ids"]
    cirr = json.loads((world / "CIRR/cirr/captions/cap.rc2.val.json").read_text())[0]
    assert set(cirr) == {"pairid", "reference", "target_hard", "target_soft", "caption", "img_set"}
    assert set(cirr["img_set"]) == {"id", "members", "reference_rank", "target_rank"}
    group = cirr["img_set"]
    assert group["members"][group["reference_rank"]] == cirr["reference"]
    assert group["members"][group["target_rank"]] == cirr["target_hard"] and len(set(group["members"])) == 6


def test_secret_splits_do_not_hold_their_targets(world):
    for file, secrets in (
        ("CIRCO/annotations/test.json", {"target_img_id", "gt_img_ids"}),
        ("CIRR/cirr/captions/cap.rc2.test1.json", {"target_hard", "target_soft"}),
        ("FashionIQ/captions/cap.dress.test.json", {"target"}),
    ):
        assert not any(secrets & set(entry) for entry in json.loads((world / file).read_text())), file


def test_a_gallerys_order_says_nothing_of_which_image_is_the_target(world):
    dress = benchmarks.load("fashioniq", world, "val")[0]
    rows = {image: row for row, image in enumerate(dress.gallery["image"])}
    steps = [rows[q.target] - rows[q.reference] for q in dress.queries.itertuples()]
    assert len(set(steps)) > len(steps) / 2


def test_pictures_on_disk_open_as_what_their_names_say(world):
    forms = {"CIRR/dev/dev-0-0-img0.png": "PNG", "ImageNet1K/test/ILSVRC2012_test_00000001.JPEG": "JPEG"}
    for file, form in forms.items():
        with Image.open(world / file) as picture:
            assert picture.format == form and picture.size == (64, 64)


def test_a_world_that_is_there_is_left_alone_and_another_folder_is_not_touched(world, tmp_path):
    from conftest import SMALL

    mark = (world / writers.MARK).stat().st_mtime_ns
    assert writers.write(world, sizes=writers.Sizes(**SMALL)) == world
    assert (world / writers.MARK).stat().st_mtime_ns == mark
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not a miniature world; set world to real, or name another"):
        writers.write(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in fingerprint.WEIGHTS.iterdir()) < 5_000_000


def test_shipped_weights_fit_the_world_they_were_trained_on():
    """Fails when drawing or grammar have changed since `make world`."""
    trained_on, now = fingerprint.manifest()["world"], fingerprint.fingerprint()
    assert trained_on["sentences_sha256"] == now["sentences_sha256"]
    difference = np.abs(np.array(trained_on["thumbnails"]) - np.array(now["thumbnails"]))
    assert difference.max() <= 6, "the pictures have changed"


def test_the_backbone_names_things_in_pictures_it_has_never_seen(tiny):
    """Zero-shot among 36 kinds; chance is 3 %."""
    drawn = specimens(200, seed=77)
    pixels = torch.stack([images.to_pixels(writers.draw(s, f"unseen/{i}"), 64, "clip") for i, s in enumerate(drawn)])
    names = tuple(KINDS)
    scores = F.normalize(encode_images(tiny, pixels), dim=-1) @ concept_embeddings(tiny, names).T
    right = [names[row] == specimen.kind for row, specimen in zip(scores.argmax(1).tolist(), drawn, strict=True)]
    assert np.mean(right) > 0.75


def test_the_clip_file_has_the_full_vocabulary_and_loads_without_gradients(tiny):
    assert tiny.model.token_embedding.weight.shape == (49408, 128)
    assert (tiny.width, tiny.dimension, tiny.resolution) == (128, 128, 64)
