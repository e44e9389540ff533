import shutil

import pytest
import torch
from conftest import leave_record, study_of
from torch.testing import assert_close

from searle_lib.backbone.model import (
    clip_facts,
    encode_patches,
    find_device,
    keep_clip,
    load_clip,
    read_clip,
    tokenize,
)
from searle_lib.backbone.texts import encode_packed, encode_texts, pack, split
from searle_lib.plain import encode_with_word

TEXTS = ["$", "a photo of $ that is blue", "a $ and a $ together", "a photo of $ " + "and another one " * 40]


def test_cut_texts_give_the_features_of_all_77_positions(tiny):
    words = torch.randn(len(TEXTS), tiny.width, generator=torch.Generator().manual_seed(0))
    assert tokenize(TEXTS).ids[3, 76] == 49407  # cut off, its end-of-text forced to the last place
    expected = encode_with_word(tiny.model, TEXTS, words)
    assert_close(encode_texts(tiny, TEXTS, words=words), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_features_come_in_the_order_of_the_texts(tiny, batch_size):
    expected = torch.cat([encode_texts(tiny, [text]) for text in TEXTS])
    assert_close(encode_texts(tiny, TEXTS, batch_size), expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_pseudo_words_and_nothing_of_clip(tiny):
    words = torch.zeros(2, tiny.width, requires_grad=True)
    encode_packed(tiny, pack(tiny, [split(tokenize(TEXTS[:2]))]), words).sum().backward()
    assert words.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in tiny.model.parameters())


def test_gradients_equal_those_of_all_77_positions(tiny):
    start = torch.randn(len(TEXTS), tiny.width, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    encode_packed(tiny, pack(tiny, [split(tokenize(TEXTS))]), ours).square().sum().backward()
    encode_with_word(tiny.model, TEXTS, theirs).square().sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_a_dollar_in_a_caption_is_not_taken_for_the_pseudo_word(tiny):
    """The prompt's own $ comes first and takes the word; the caption's stays a literal dollar."""
    text = "a photo of $ that costs $ 5"
    assert tokenize([text]).placeholders.tolist() == [4]
    words = torch.randn(1, tiny.width, generator=torch.Generator().manual_seed(0))
    spliced = encode_texts(tiny, [text], words=words)
    assert_close(spliced, encode_with_word(tiny.model, [text], words))


def test_a_text_without_a_place_for_the_pseudo_word_is_named(tiny):
    with pytest.raises(ValueError, match=r"text 1 of 2 has no \$ among the tokens that CLIP reads; put ' \$ ' where"):
        encode_texts(tiny, ["a photo of $", "a photo"], words=torch.zeros(2, tiny.width))


def test_no_texts_give_no_features(tiny):
    assert encode_texts(tiny, []).shape == (0, tiny.dimension)


def test_bfloat16_stays_near_float32(tiny, world):
    half = load_clip(str(world / "models" / "tiny-clip.pt"), precision="bfloat16")
    cosine = torch.cosine_similarity(encode_texts(half, TEXTS), encode_texts(tiny, TEXTS), dim=-1)
    assert encode_texts(half, TEXTS).dtype == torch.float32
    assert cosine.min() > 0.995


def test_exact_is_the_same_clip_in_float64_and_leaves_half_precision_alone(tiny, world):
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(encode_patches(tiny.exact, pixels), encode_patches(tiny, pixels), strict=True))
    for exact, plain in [*pairs, (encode_texts(tiny.exact, TEXTS), encode_texts(tiny, TEXTS))]:
        assert (exact.dtype, plain.dtype) == (torch.float64, torch.float32)
        assert_close(exact.float(), plain, atol=1e-4, rtol=1e-4)
    assert tiny.exact.exact is tiny.exact
    half = load_clip(str(world / "models" / "tiny-clip.pt"), precision="bfloat16")
    assert half.exact is half


def test_a_name_that_is_neither_a_file_nor_a_clip_is_refused():
    with pytest.raises(ValueError, match=r"clip_model ViT-B/33 is neither a file nor one of CLIP's names \(RN50, "):
        load_clip("ViT-B/33")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half an archive"])
def test_a_file_without_weights_is_refused(tmp_path, content):
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip_model .*weights.pt does not hold CLIP weights .*; download it again"):
        load_clip(str(file))


def test_a_file_with_other_weights_is_refused(tmp_path):
    file = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"other.pt does not hold CLIP weights \(KeyError"):
        load_clip(str(file))


def test_an_unknown_precision_is_refused(world):
    with pytest.raises(ValueError, match="precision is fp16; it must be float32 or bfloat16 or float16"):
        load_clip(str(world / "models" / "tiny-clip.pt"), precision="fp16")


def test_auto_finds_a_device():
    assert find_device("auto").type in ("cpu", "cuda", "mps")


def test_a_device_that_is_not_there_is_refused(world):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="device cuda is not available on this machine; set device to cpu or auto"):
        load_clip(str(world / "models" / "tiny-clip.pt"), device="cuda")


def test_a_later_notebook_loads_the_clip_that_02_read(tiny, world, tmp_path):
    kept_by_02(tmp_path, tiny, world / "models" / "tiny-clip.pt", "bfloat16")
    found = read_clip(study_of(tmp_path, "03_oti"), "cpu")
    assert (found.sha256, found.name, found.precision) == (tiny.sha256, "tiny-clip", "bfloat16")
    assert clip_facts(study_of(tmp_path, "07_results")) == {"name": "tiny-clip", "sha256": tiny.sha256}


def test_a_clip_whose_file_is_another_by_now_is_refused(tiny, world, tmp_path):
    file = shutil.copy(world / "models" / "tiny-clip.pt", tmp_path / "clip.pt")
    kept_by_02(tmp_path, tiny, file, "float32")
    weights = torch.load(file, weights_only=True)
    torch.save(weights | {"logit_scale": weights["logit_scale"] + 1}, file)
    with pytest.raises(ValueError, match=r"clip_model .*clip.pt have changed since 02_concepts ran; run it again"):
        read_clip(study_of(tmp_path, "03_oti"), "cpu")


def kept_by_02(folder, clip, file, precision):
    """What 02_concepts leaves of a CLIP."""
    second = study_of(folder, "02_concepts", clip_model=str(file), precision=precision, preprocess="targetpad")
    keep_clip(second, clip)
    leave_record(second)
