import dataclasses
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import leave_record, study_of

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.searle import phrases
from searle_lib.searle.concepts import Vocabulary, associate, keep_vocabulary, read_names, read_vocabulary
from searle_lib.searle.concepts import read as read_concepts
from searle_lib.searle.phrases import Settings
from searle_lib.store.artefacts import DamagedArtefact, Store

FEW = Settings(phrases_per_concept=6, max_length=20)


@pytest.fixture(scope="module")
def language(world):
    return phrases.load_language_model(str(world / "models" / "tiny-gpt-neo"))


@pytest.fixture(scope="module")
def names(world):
    return read_vocabulary(world / "oidv7-class-descriptions.csv")


def test_what_is_sampled_does_not_depend_on_the_batch(language, names):
    concepts = names.names[:7]
    together = phrases.sample(*language, concepts, FEW)
    apart = torch.cat([phrases.sample(*language, (concept,), FEW) for concept in concepts])
    assert torch.equal(together, apart)


def test_every_phrase_starts_with_its_prompt_and_keeps_the_length(language, names):
    ids = phrases.sample(*language, names.names, FEW)
    assert ids.shape == (len(names.names), 6, 20)
    texts = language[1].batch_decode(ids.flatten(0, 1), skip_special_tokens=True)
    expected = [f"a photo of {name} that" for name in names.names for _ in range(6)]
    assert all(text.startswith(prompt) for text, prompt in zip(texts, expected, strict=True))
    assert len(set(texts)) > len(texts) / 2


def test_sampling_follows_the_models_probabilities(language):
    """The share of each first word over many phrases, against the softmax at the temperature."""
    model, tokenizer = language
    prompt = tokenizer("a photo of Star that", return_tensors="pt").input_ids
    settings = Settings(3000, prompt.shape[1] + 1, 1.0, 0)
    drawn = Counter(phrases.sample(model, tokenizer, ("Star",), settings)[0, :, -1].tolist())
    probabilities = model(prompt).logits[0, -1].softmax(0).detach()
    for token in probabilities.topk(3).indices.tolist():
        assert drawn[token] / 3000 == pytest.approx(float(probabilities[token]), abs=0.03)


def test_words_are_sampled_among_the_fifty_most_probable(language):
    model, tokenizer = language
    prompt = tokenizer("a photo of Star that", return_tensors="pt").input_ids
    level = Settings(3000, prompt.shape[1] + 1, 1e6, 0)  # so hot that all candidates are equally probable
    drawn = set(phrases.sample(model, tokenizer, ("Star",), level)[0, :, -1].tolist())
    assert drawn == set(model(prompt).logits[0, -1].topk(50).indices.tolist())


def test_no_ngram_comes_twice(language, names):
    ids = phrases.sample(*language, names.names[:5], Settings(8, 35, 0.5, 2))
    for row in ids.flatten(0, 1).tolist():
        row = row[: row.index(language[1].eos_token_id)] if language[1].eos_token_id in row else row
        pairs = list(pairwise(row))
        assert len(pairs) == len(set(pairs))


def test_newlines_and_runs_of_dots_are_cleaned():
    assert phrases.clean("a\n\nb... c\nd..") == "a. b. c. d."


def test_phrases_are_kept_and_grouped_by_concept(world, names, tmp_path):
    few = Vocabulary(names.names[:3], "few")
    made = phrases.generate(Store(tmp_path), few, str(world / "models" / "tiny-gpt-neo"), FEW, batch_size=2)
    assert made.concepts == few.names and np.diff(made.starts).tolist() == [6, 6, 6]
    assert made.select(few.names[1]) == made.texts[6:12]
    again = phrases.generate(Store(tmp_path, "04_phi"), few, str(world / "models" / "tiny-gpt-neo"), FEW)
    assert again.texts == made.texts and again.key == made.key
    assert len(list(tmp_path.glob("phrases-*"))) == 1


def test_a_name_that_stands_twice_in_the_vocabulary_is_written_about_once(world, names, tmp_path):
    twice = Vocabulary((names.names[0], names.names[1], names.names[0]), "twice")
    made = phrases.generate(Store(tmp_path), twice, str(world / "models" / "tiny-gpt-neo"), FEW)
    assert made.concepts == names.names[:2] and len(made.texts) == 12


def test_another_models_weights_give_another_key(world, tmp_path):
    folder = shutil.copytree(world / "models" / "tiny-gpt-neo", tmp_path / "model")
    before = phrases._identity(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert phrases._identity(str(folder)) != before


def test_truncated_weights_are_refused(world, tmp_path):
    folder = shutil.copytree(world / "models" / "tiny-gpt-neo", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"language_model .* is neither a folder with a causal language model nor"):
        phrases.load_language_model(str(folder))


def test_a_concept_that_one_of_its_phrases_does_not_name_is_left_out_and_told():
    table = pd.DataFrame({"concept": ["Cat", "Cat", "Dog"], "phrase": ["a Cat", "a feline", "a Dog that"]})
    assert phrases.from_table(table).unusable_concepts == {"Cat"}


def test_a_concept_without_phrases_is_named():
    found = phrases.from_table(pd.DataFrame({"concept": ["Cat"], "phrase": ["a Cat"]}))
    with pytest.raises(LookupError, match="concept 'Dog' has no phrases; run 01_phrases on the vocabulary that"):
        found.select("Dog")


def test_scattered_phrases_of_one_concept_are_refused():
    table = pd.DataFrame({"concept": ["Cat", "Dog", "Cat"], "phrase": ["a Cat", "a Dog", "a Cat"]})
    with pytest.raises(ValueError, match="must stand together in the phrase table; sort it by concept"):
        phrases.from_table(table)


def test_a_prompt_longer_than_a_phrase_may_be_is_named(language):
    with pytest.raises(ValueError, match="the prompt of concept 'Star' fills phrase_max_length 3; raise it"):
        phrases.sample(*language, ("Star",), Settings(1, 3))


def test_a_folder_without_a_language_model_is_refused(tmp_path, world):
    with pytest.raises(ValueError, match=r"language_model .* is neither a folder with a causal language model nor"):
        phrases.load_language_model(str(tmp_path))
    shutil.copytree(world / "models" / "tiny-gpt-neo", tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is neither a folder with a causal language model"):
        phrases.load_language_model(str(tmp_path / "broken"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,b\n1,2\n", "has the columns a, b but no DisplayName; correct vocabulary"),
        ("LabelName,DisplayName\n/m/1, \n", "has an empty DisplayName in row 2; remove that row"),
        ("LabelName,DisplayName\n", "has no names below its header; download it again"),
        ("LabelName,DisplayName\n/m/1,a\0b\n", r"has the DisplayName 'a\\x00b', which cannot be printed"),
        ("", "names.csv is not a table .*; download oidv7"),
        ("DisplayName\na,b\n", "names.csv is not a table .*its rows have more cells than its header"),
        ("a," * 40_000, "names.csv is not a table .*its first line has more than 65,536 bytes"),
        ("DisplayName\n" + "\n" * 2_000_001, "names.csv is not a table .*2,000,001 cells, most of them empty"),
        ("DisplayName\n" + "cat\n" * 1_100_000, "names.csv is not a table .*it may have 4,194,304 bytes"),
    ],
)
def test_a_bad_vocabulary_is_refused(tmp_path, content, sentence):
    (tmp_path / "names.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_vocabulary(tmp_path / "names.csv")


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocabulary .*gone.csv does not exist; download"):
        read_vocabulary(tmp_path / "gone.csv")


def test_names_are_stripped_and_the_name_null_is_a_name(tmp_path):
    (tmp_path / "names.csv").write_text("LabelName,DisplayName\n/m/1, Cat \n/m/2,null\n")
    assert read_vocabulary(tmp_path / "names.csv").names == ("Cat", "null")


def test_another_setting_makes_other_phrases(world, names, tmp_path):
    one, model = Vocabulary(names.names[:1], "one"), str(world / "models" / "tiny-gpt-neo")
    changes = (
        {},
        {"phrases_per_concept": 3},
        {"max_length": 15},
        {"temperature": 0.6},
        {"no_repeat_ngram": 0},
        {"seed": 1},
    )
    settings = [dataclasses.replace(FEW, **change) for change in changes]
    keys = [phrases.generate(Store(tmp_path), one, model, chosen).key for chosen in settings]
    assert len(set(keys)) == len(changes), keys


def test_another_vocabulary_makes_other_phrases_and_another_folder_of_the_same_model_does_not(world, names, tmp_path):
    model, keys = str(world / "models" / "tiny-gpt-neo"), []
    copy = shutil.copytree(model, tmp_path / "copied")
    for vocabulary, folder in (("one", model), ("one", copy), ("another", model)):
        made = phrases.generate(Store(tmp_path / "store"), Vocabulary(names.names[:1], vocabulary), str(folder), FEW)
        keys.append(made.key)
    assert keys[0] == keys[1] != keys[2]


def test_a_later_notebook_reads_the_phrases_and_the_vocabulary_that_01_kept(world, names, tmp_path):
    first = study_of(tmp_path, "01_phrases")
    keep_vocabulary(first, world / "oidv7-class-descriptions.csv")
    few = Vocabulary(names.names[:2], "few")
    made = phrases.generate(first, few, str(world / "models" / "tiny-gpt-neo"), FEW)
    leave_record(first)
    later = study_of(tmp_path, "03_oti")
    assert (phrases.read(later).texts, phrases.read(later).key) == (made.texts, made.key)
    assert read_names(later) == names


def test_damaged_phrases_are_named_by_their_folder(world, names, tmp_path):
    few, model = Vocabulary(names.names[:1], "few"), str(world / "models" / "tiny-gpt-neo")
    phrases.generate(Store(tmp_path, "01_phrases"), few, model, FEW)
    (file,) = tmp_path.glob("phrases-*/phrases.parquet")
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(
        DamagedArtefact, match=rf"artefact {file.parent} is damaged \(.*\); delete that folder and run 01_phrases"
    ):
        phrases.generate(Store(tmp_path), few, model, FEW)


# Concepts


def concept_keys(tiny, folder, **changes):
    """The keys of the concepts of three images, as they are and after a change of what they are made from."""
    images = Embeddings("test/images", ("a", "b", "c"), torch.eye(3, tiny.dimension), "images")
    known = {"images": images, "vocabulary": Vocabulary(("Star", "Boat", "Tree"), "three"), "depth": 2}
    return [
        associate(Store(folder), tiny, **known).key,
        associate(Store(folder), tiny, **known | {name: change(known) for name, change in changes.items()}).key,
    ]


CHANGES = {
    "images": lambda known: dataclasses.replace(known["images"], key="other"),
    "vocabulary": lambda known: Vocabulary(("Star", "Boat", "Gown"), "others"),
    "depth": lambda known: 3,
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_images_another_vocabulary_or_another_depth_make_other_concepts(tiny, tmp_path, name):
    before, after = concept_keys(tiny, tmp_path, **{name: CHANGES[name]})
    assert before != after


def test_how_many_texts_are_read_at_once_makes_no_other_concepts(tiny, tmp_path):
    before, after = concept_keys(tiny, tmp_path, batch_size=lambda known: 7)
    assert before == after


def test_the_features_of_a_vocabulary_are_kept_once_for_all_lists_of_images(tiny, tmp_path):
    concept_keys(tiny, tmp_path, images=CHANGES["images"])
    assert len(list(tmp_path.glob("vocabulary-features-*"))) == 1


def test_a_later_notebook_reads_the_concepts_that_02_kept(tiny, tmp_path):
    second = study_of(tmp_path, "02_concepts")
    images = Embeddings("cirr/val/references", ("a", "b", "c"), torch.eye(3, tiny.dimension), "images")
    made = associate(second, tiny, images, Vocabulary(("Star", "Boat", "Tree"), "three"), 2)
    leave_record(second)
    found = read_concepts(study_of(tmp_path, "03_oti"), "cirr/val/references")
    assert torch.equal(found.rows, made.rows)
    assert (found.ids, found.names, found.key) == (images.ids, ("Star", "Boat", "Tree"), made.key)
