import json

import pandas as pd
import pytest
import torch
from conftest import leave_record, study_of
from PIL import Image

from searle_lib.data.images import Reader
from searle_lib.fti4cir import captions
from searle_lib.fti4cir.captions import Captions, split

NOUNS = {"dog", "man", "wave", "surfboard", "tennis", "player", "court", "chair", "star", "beach"}


def tag(text):
    """Stands for spaCy: a word list says what is a noun."""
    return [(word, "NOUN" if word in NOUNS else "X") for word in text.split()]


@pytest.mark.parametrize(
    ("caption", "reference", "sane"),
    [
        ("a man riding a wave", ("a man", "riding a wave"), ("a man", "riding a wave")),
        ("a tennis player on a court", ("a tennis", "player on a court"), ("a tennis", "player on a court")),
        ("a dog on a chair chair chair", ("a dog", "on a chair"), ("a dog", "on a chair")),
        ("a small black dog", ("a small black dog", ""), None),
        ("it is very blue", ("it", " is very blue"), ("it is", "very blue")),
        ("a black dog", None, None),  # fewer than four words
        ("dog dog dog dog", None, None),
    ],
)
def test_captions_are_split_at_the_first_noun(caption, reference, sane):
    assert split(caption, tag, "reference") == reference
    assert split(caption, tag, "sane") == sane


def written(tmp_path, *entries):
    (tmp_path / "pairs.json").write_text(json.dumps(list(entries)))
    return tmp_path / "pairs.json"


IMAGES = ["ILSVRC2012_test_00000001", "ILSVRC2012_test_00000002"]


def test_the_authors_form_is_read_and_written(tmp_path):
    one = {"img_id": "00000002", "subject": "a dog", "attribute": "on a chair"}
    file = written(tmp_path, one)
    found = captions.read(file, IMAGES)
    assert found == Captions(("ILSVRC2012_test_00000002",), ("a dog",), ("on a chair",))
    captions.write(tmp_path / "again.json", found)
    assert json.loads((tmp_path / "again.json").read_text()) == [one]


def test_an_empty_attribute_is_kept_as_the_authors_do_or_left_out(tmp_path):
    both = [{"img_id": IMAGES[0], "subject": "a dog", "attribute": ""}]
    both += [{"img_id": IMAGES[1], "subject": "a cat", "attribute": "there"}]
    assert len(captions.read(written(tmp_path, *both), IMAGES, "reference").ids) == 2
    assert captions.read(written(tmp_path, *both), IMAGES, "sane").ids == (IMAGES[1],)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"img_id": "00000001", "subject": "a dog"}, "entry 0 of .*pairs.json has no key attribute; add it"),
        (
            {"img_id": "7", "subject": "a", "attribute": "b"},
            "has a caption of image 7, which is not in the data set; remove it",
        ),
        (
            {"img_id": "00000001", "subject": " ", "attribute": "b"},
            "the subject of image .*1 in .* is empty; write",
        ),
        (
            {"img_id": "00000001", "subject": "a * b", "attribute": "c"},
            r"holds \*, which marks a pseudo-word",
        ),
    ],
)
def test_bad_captions_are_named(tmp_path, entry, sentence):
    with pytest.raises(ValueError, match=sentence):
        captions.read(written(tmp_path, entry), IMAGES)


def test_a_file_that_is_not_there_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"caption file .*gone.json does not exist; make it from BLIP"):
        captions.read(tmp_path / "gone.json", IMAGES)
    with pytest.raises(ValueError, match="has no caption that can be used; make the file anew"):
        captions.read(written(tmp_path), IMAGES)


def test_a_missing_spacy_is_answered_with_the_command_that_installs_it():
    with pytest.raises(
        ValueError, match="needs spaCy and its model no_such_model; run: pip install spacy && python -m"
    ):
        captions.spacy_tagger("no_such_model")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A tiny random BLIP and its processor, saved and opened as the real one is."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "picture", "of", "dog", "on", "the", "beach"]
    (folder / "vocab.txt").write_text("\n".join(words))
    text = {
        "vocab_size": len(words), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3,
        "pad_token_id": 0, "projection_dim": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": captions.BLIP_RESOLUTION, "patch_size": 96,
    }  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(), BertTokenizerFast(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


def test_blip_captions_images_through_transformers(blip, tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.effect_noise((80, 50), 60 + 40 * i).convert("RGB").save(paths[-1])
    model, processor = captions.load_blip(str(blip))
    together = captions.run_blip(model, processor, paths, Reader(3))
    apart = [captions.run_blip(model, processor, [path], Reader(1))[0] for path in paths]
    assert together == apart
    assert all(text and not text.startswith("a picture of") for text in together)


def test_a_caption_file_is_made_once_and_goes_on_where_it_stopped(blip, tmp_path, monkeypatch):
    table = pd.DataFrame({"image": [f"ILSVRC2012_test_0000000{i}" for i in range(4)]})
    table["path"] = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(table["path"]):
        Image.effect_noise((60, 60), 50 + 30 * i).convert("RGB").save(path)
    monkeypatch.setattr(captions, "CHUNK", 2)
    described = []
    run_blip = captions.run_blip

    def watched(model, processor, paths, *more):
        described.extend(paths)
        if len(described) == 4 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt
        return run_blip(model, processor, paths, *more)

    monkeypatch.setattr(captions, "run_blip", watched)
    everything_is_a_noun = lambda text: [(word, "NOUN") for word in text.split()]  # noqa: E731
    arguments = (tmp_path / "pairs.json", table, str(blip), "reference", "cpu", Reader(2, 1), everything_is_a_noun)
    with pytest.raises(KeyboardInterrupt):
        captions.caption_images(*arguments)
    described.clear()
    captions.caption_images(*arguments)
    assert [path.name for path in described] == ["2.png", "3.png"]
    found = captions.read(tmp_path / "pairs.json", list(table["image"]))
    assert set(found.ids) <= set(table["image"]) and all(len(subject.split()) == 1 for subject in found.subjects)
    described.clear()
    captions.caption_images(*arguments)
    assert not described and not (tmp_path / "pairs.json.captions.json").exists()


def test_a_folder_without_blip_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"blip_model .* is neither a folder with BLIP nor the name of one on the hub"):
        captions.load_blip(str(tmp_path))


def test_a_caption_of_an_image_that_is_listed_but_not_at_hand_is_left_out(tmp_path):
    file = tmp_path / "pairs.json"
    rows = [{"img_id": f"0000000{i}", "subject": "a cat", "attribute": "on a mat"} for i in (1, 2)]
    file.write_text(json.dumps(rows))
    names = ["ILSVRC2012_test_00000001", "ILSVRC2012_test_00000002"]
    assert captions.read(file, names[:1], all_images=names).ids == (names[0],)
    with pytest.raises(ValueError, match="has a caption of image 00000002, which is not in the data set; remove it"):
        captions.read(file, names[:1])


def test_a_study_has_the_captions_of_those_of_its_pictures_that_have_one(world, tmp_path):
    second = study_of(tmp_path, "02_concepts", missing_images="error", preprocess="targetpad")
    leave_record(second, data_root=str(world), workers=1, image_batch_size=4)
    file = written(tmp_path, *({"img_id": f"{i:08d}", "subject": "a cat", "attribute": f"no {i}"} for i in (5, 2)))
    table, found = captions.captioned_images(study_of(tmp_path, "05_fti4cir"), str(file), "no blip", "sane", "cpu")
    assert table["image"].tolist() == list(found.ids) == [f"ILSVRC2012_test_{i:08d}" for i in (5, 2)]
    assert [path.rsplit("_", 1)[-1] for path in table["path"]] == ["00000005.JPEG", "00000002.JPEG"]
    assert found.attributes == ("no 5", "no 2")
