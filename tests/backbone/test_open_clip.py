"""CLIPs of open_clip, held to open_clip's own forward pass on small random models; and what is refused."""

import pickle
import sys
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import study_of
from open_clips import CONFIGS, PIXELS, config_with, place, write_clip
from PIL import Image
from problems import FAST, plain_loop, problem
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from searle_lib import plain, pseudo_words
from searle_lib.backbone import texts
from searle_lib.backbone.model import PLACEHOLDER, encode_images, encode_patches, load_clip
from searle_lib.data import images
from searle_lib.fti4cir import network, prompts
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.searle import oti
from searle_lib.searle.phi import Phi
from searle_lib.store.artefacts import Store

SENTENCES = [
    "",
    "a boat",
    "a <start_of_text> sign",
    "two red boats on a lake, & a ☃",
    "a photo of a star " + "and another one " * 30,
]
WITH_WORD = ["$", "a photo of $ that is blue", "a $ and a $ together", "a photo of $ " + "and another one " * 30]


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("open-clip") / request.param, CONFIGS[request.param])


@pytest.fixture(scope="module")
def theirs(folder):
    """The model as open_clip loads and runs it, and its tokenizer."""
    name = f"local-dir:{folder}"
    return open_clip.create_model(name).eval().requires_grad_(False), open_clip.get_tokenizer(name)


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(place(folder), preprocess="clip")


@pytest.fixture(scope="module")
def gelu(tmp_path_factory):
    return load_clip(place(write_clip(tmp_path_factory.mktemp("open-clip") / "gelu", CONFIGS["GELU"])))


def spliced(theirs, sentences, words):
    """open_clip's own text features, with words [N, d_tok] put into the token embeddings at the first $."""
    model, tokenizer = theirs
    ids = tokenizer(sentences)
    places = (ids == PLACEHOLDER).int().argmax(1)

    def splice(module, inputs, embedded):
        return embedded.index_put((torch.arange(len(ids)), places), words)

    hook = getattr(model, "text", model).token_embedding.register_forward_hook(splice)
    features = model.encode_text(ids)
    hook.remove()
    return features


def random_words(clip, count):
    return torch.randn(count, clip.width, generator=torch.Generator().manual_seed(0))


def test_tokens_are_those_of_its_own_tokenizer(clip, theirs):
    for sentence in SENTENCES + WITH_WORD:
        tokens, expected = clip.tokenize([sentence]), theirs[1]([sentence])
        assert expected.shape[1] == clip.context and expected[0, tokens.ends].item() == prompts.END
        assert torch.equal(F.pad(tokens.ids, (0, clip.context - tokens.ids.shape[1])), expected)


@pytest.mark.parametrize("batch_size", [1, 512])
def test_text_features_are_those_of_open_clip(clip, theirs, batch_size):
    expected = theirs[0].encode_text(theirs[1](SENTENCES))
    assert_close(texts.encode_texts(clip, SENTENCES, batch_size), expected, atol=1e-5, rtol=1e-5)


def test_features_and_gradients_with_pseudo_words_are_those_of_open_clip(clip, theirs):
    mine, other = (random_words(clip, len(WITH_WORD)).requires_grad_() for _ in range(2))
    features = texts.encode_packed(clip, texts.pack(clip, [texts.split(clip.tokenize(WITH_WORD))]), mine)
    expected = spliced(theirs, WITH_WORD, other)
    assert_close(features, expected, atol=1e-5, rtol=1e-5)
    features.square().sum().backward()
    expected.square().sum().backward()
    assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_the_words_of_phi_are_read_as_open_clip_reads_them(clip, theirs):
    torch.manual_seed(0)
    phi = Phi(clip.dimension, clip.width).eval()
    words = phi(theirs[0].encode_image(torch.randn(2, 3, 32, 32)))
    features = pseudo_words.encode_with_pseudo_words(clip, WITH_WORD[:2], words)
    assert_close(features, F.normalize(spliced(theirs, WITH_WORD[:2], words), dim=-1), atol=1e-5, rtol=1e-5)


def test_oti_takes_the_steps_of_a_plain_loop_over_open_clip(clip, theirs, tmp_path, monkeypatch):
    vectors, concepts, written = problem(clip, images=2)
    result = oti.invert(Store(tmp_path), clip, vectors, concepts, written, FAST)
    monkeypatch.setattr(plain, "encode_text", lambda model, sentences: theirs[0].encode_text(theirs[1](sentences)))
    monkeypatch.setattr(plain, "encode_with_word", lambda model, *parts: spliced(theirs, *parts))
    assert_close(result.tokens.vectors, plain_loop(clip, vectors, concepts, written, FAST), atol=1e-4, rtol=1e-3)


def test_an_image_becomes_what_open_clip_makes_of_it(clip, theirs, tmp_path):
    pixels = torch.randint(0, 255, (50, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    picture.save(tmp_path / "picture.png")
    form = open_clip.transform.PreprocessCfg(**theirs[0].visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(form, is_train=False)
    assert_close(images.to_pixels(picture, *clip.pixel_form), transform(picture), atol=1e-6, rtol=1e-6)
    expected = theirs[0].encode_image(transform(picture)[None])
    assert_close(pseudo_words.embed(clip, tmp_path / "picture.png"), expected, atol=1e-5, rtol=1e-5)
    (read,) = images.Reader(4, 1).batches([tmp_path / "picture.png"], *clip.pixel_form)
    assert_close(encode_images(clip, read), expected, atol=1e-5, rtol=1e-5)


def test_patch_tokens_are_what_its_last_block_returns(clip, theirs):
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    hook = theirs[0].visual.transformer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    expected = theirs[0].encode_image(pixels), outputs[0]
    hook.remove()
    assert outputs[0].shape == (3, clip.patch_count, clip.patch_width) == (3, 5, 64)
    for ours, other in zip(encode_patches(clip, pixels), expected, strict=True):
        assert_close(ours, other, atol=1e-5, rtol=1e-5)
    for ours, other in zip(encode_patches(clip.exact, pixels), expected, strict=True):
        assert ours.dtype == torch.float64
        assert_close(ours.float(), other, atol=1e-5, rtol=1e-5)


def test_the_sentences_of_fti4cir_are_read_as_open_clip_reads_them(gelu, tmp_path):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    module = network.build_network(gelu, Fti4Cir(gelu.dimension, gelu.patch_width).state_dict())
    words = module(*encode_patches(gelu.exact, pixels))
    features = prompts.query(gelu, words, ["is blue", "has a lid"])
    tower = gelu.model
    for row, caption in enumerate(["is blue", "has a lid"]):
        count = int(words.counts[row])
        ids = gelu.tokenize([f"a photo of * with {'* ' * count}but {caption}"]).ids
        x = tower.token_embedding(ids)
        x[0, 4], x[0, 6 : 6 + count] = words.subject[row], words.attributes[row, :count]
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        x = tower.ln_final(tower.transformer(x + tower.positional_embedding[: x.shape[1]], attn_mask=mask))
        assert_close(features[row], x[0, -1] @ tower.text_projection, atol=1e-5, rtol=1e-5)


def test_a_subject_that_leaves_no_room_for_attribute_words_is_refused(clip):
    words = clip.context - 17  # after the start-of-text, before "with" and twelve attribute words
    assert len(prompts.tokenize_prefixes(clip, [f"a photo of {'big ' * words}"]).ids) == 1
    with pytest.raises(ValueError, match=f"has {clip.context - 12} tokens, which leaves no room for 12"):
        prompts.tokenize_prefixes(clip, [f"a photo of {'big ' * (words + 1)}"])


def test_a_half_precision_stays_near(gelu, folder):
    half = load_clip(place(folder), precision="bfloat16")
    exact = load_clip(place(folder))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = [(texts.encode_texts(clip, SENTENCES), encode_images(clip, pixels)) for clip in (half, exact)]
    for near, expected in zip(*pairs, strict=True):
        assert near.dtype == torch.float32 and torch.cosine_similarity(near, expected, dim=-1).min() > 0.99


# Names, hashes, places


@pytest.fixture
def published_file(monkeypatch, tmp_path):
    """An architecture `tiny` of open_clip without QuickGELU, and published weights for it that were trained with it."""
    config = CONFIGS["GELU"]
    file = write_clip(tmp_path / "published", config) / "open_clip_model.safetensors"
    published = {"quick": {"file": str(file), "quick_gelu": True, **PIXELS}, "plain": {"file": str(file), **PIXELS}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", published)
    return file


def test_published_weights_decide_the_activation_and_the_scaling(published_file):
    quick, gelu = load_clip("open_clip:tiny/quick"), load_clip("open_clip:tiny/plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model("tiny", "quick", force_quick_gelu=True).eval()
    ids = open_clip.get_tokenizer("tiny")(SENTENCES)
    assert_close(texts.encode_texts(quick, SENTENCES), model.encode_text(ids).detach(), atol=1e-5, rtol=1e-5)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_close(encode_images(quick, pixels), model.encode_image(pixels).detach(), atol=1e-5, rtol=1e-5)
    assert (encode_images(gelu, pixels) - encode_images(quick, pixels)).abs().max() > 1e-3
    assert quick.scaling == gelu.scaling == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
    assert (quick.name, gelu.name) == ("open_clip:tiny/quick", "open_clip:tiny/plain")


def test_the_hash_covers_weights_activation_and_scaling(published_file, tmp_path):
    of_file = load_clip(f"open_clip:tiny/{published_file}")
    assert of_file.name == "open_clip:open_clip_model.safetensors" and of_file.scaling.interpolation == "bicubic"
    clips = [of_file, *(load_clip(f"open_clip:tiny/{tag}") for tag in ("plain", "quick"))]
    weights = load_file(published_file)
    save_file(weights | {"logit_scale": weights["logit_scale"] + 1}, tmp_path / "other.safetensors")
    clips.append(load_clip(f"open_clip:tiny/{tmp_path}/other.safetensors"))
    assert len({clip.sha256 for clip in clips}) == 4 and all(len(clip.sha256) == 64 for clip in clips)
    assert load_clip("open_clip:tiny/quick").sha256 == clips[2].sha256


def test_a_worker_loads_the_same_clip_from_its_source(gelu):
    copy = pickle.loads(pickle.dumps(gelu))
    assert copy.sha256 == gelu.sha256 and copy.pixel_form == gelu.pixel_form
    assert torch.equal(texts.encode_texts(copy, SENTENCES), texts.encode_texts(gelu, SENTENCES))


def test_a_relative_path_starts_at_the_projects_folder(tmp_path):
    study = study_of(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine.pt").touch()
    assert study.path("open_clip:local-dir:models/mine") == f"open_clip:local-dir:{tmp_path}/models/mine"
    assert study.path("open_clip:ViT-B-32/models/mine.pt") == f"open_clip:ViT-B-32/{tmp_path}/models/mine.pt"
    for name in ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:local-dir:models/other", "open_clip:ViT-B-32/"):
        assert study.path(name) == name


# What is refused


REFUSED = {
    "the last token": (
        config_with({"pool_type": "last"}),
        "with pool_type last, which",
    ),
    "no causal mask": (
        config_with({"no_causal_mask": True}),
        "with no_causal_mask True, which cannot read pseudo-words",
    ),
    "a scale of each layer": (config_with({"ls_init_value": 0.1}), "with ls_init_value 0.1, which"),
    "another block": (config_with({"qk_norm": True}), "with qk_norm True, which"),
    "a projection with bias": (config_with({"proj_bias": True}), "with proj_bias True, which"),
    "another epsilon": (config_with({"norm_kwargs": {"eps": 1e-6}}), "with norm_kwargs {'eps': 1e-06}, which"),
    "another tokenizer": (config_with({"hf_tokenizer_name": "t5-base"}), "with hf_tokenizer_name t5-base, which"),
    "a text tower of another library": (config_with({"hf_model_name": "roberta"}), "with hf_model_name roberta, which"),
    "CoCa": (config_with(multimodal_cfg={}), "with a multimodal decoder, which"),
    "images that are not square": (
        config_with(vision_cfg={"image_size": [32, 64]}),
        "takes images that are not square",
    ),
    "an unknown setting": (
        config_with({"depth": 3}),
        "has no configuration that open_clip can read .*; correct clip_model",
    ),
    "no text tower": ({"embed_dim": 64}, "has no configuration that open_clip can read"),
    "weights of another shape": (config_with({"layers": 4}), "does not hold weights that fit .*; correct clip_model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_clip_that_pseudo_words_cannot_be_computed_for_is_refused(tmp_path, gelu, case):
    config, sentence = REFUSED[case]
    folder = write_clip(tmp_path / "clip", config, weights=False)
    if "weights" in case:
        (folder / "model.safetensors").symlink_to(gelu.source[0].rpartition(":")[2] + "/open_clip_model.safetensors")
    elif "square" in case:
        model = open_clip.CLIP(**config)
        save_file(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"^clip_model open_clip:local-dir:.*/clip .*{sentence}") as error:
        load_clip(place(folder))
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = write_clip(tmp_path / "clip", CONFIGS["GELU"], weights=False)
    with pytest.raises(ValueError, match=r"/clip does not hold weights that fit \(Required pretrained weights .*;"):
        load_clip(place(folder))


def test_what_open_clip_does_not_know_is_refused_with_what_is_near():
    with pytest.raises(ValueError, match=r"^clip_model open_clip:ViT-B-33/x: ViT-B-33 is not .*; write ViT-B-32 or "):
        load_clip("open_clip:ViT-B-33/x")
    with pytest.raises(ValueError, match=r"'opena' is neither a file nor .* of ViT-B-32; write openai or "):
        load_clip("open_clip:ViT-B-32/opena")
    with pytest.raises(ValueError, match=r": '' is neither a file nor published weights of ViT-B-32; write "):
        load_clip("open_clip:ViT-B-32")
    with pytest.raises(ValueError, match=r"^clip_model open_clip:local-dir:/absent has no configuration"):
        load_clip("open_clip:local-dir:/absent")


def test_published_weights_that_cannot_be_fetched_are_named(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    sentence = r"^clip_model open_clip:ViT-H-14/laion2b_s32b_b79k cannot be fetched \(.*\); run again with network, or "
    with pytest.raises(ConnectionError, match=sentence + r"write the path of .*: open_clip:ViT-H-14/FILE\.$"):
        load_clip("open_clip:ViT-H-14/laion2b_s32b_b79k")


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"^clip_model open_clip:RN50/openai needs open_clip; run: pip install open_"):
        load_clip("open_clip:RN50/openai")


NO_PATCHES = "patch tokens of a vision transformer, and open_clip:clip has none;"
UNFIT = {
    "ResNet": (config_with(vision_cfg={"layers": [1, 1, 1, 1]}), NO_PATCHES),
    "timm": (config_with(vision_cfg={"timm_model_name": "test_resnet"}), NO_PATCHES),
    "mean": (config_with(vision_cfg={"pool_type": "avg"}), NO_PATCHES),
    "width": (config_with(embed_dim=32), "embeddings as wide as tokens, and open_clip:clip has 32 and 64 numbers; use"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_clip_that_fti4cir_cannot_use_serves_all_other_methods(tmp_path, case):
    config, sentence = UNFIT[case]
    clip = load_clip(place(write_clip(tmp_path / "clip", config)))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = open_clip.create_model(f"local-dir:{tmp_path}/clip").eval()
    assert_close(encode_images(clip, pixels), model.encode_image(pixels).detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=f"^FTI4CIR's network .*{sentence}"):
        network.require_fit(clip)


def test_a_clip_with_patch_tokens_of_the_right_width_suits_fti4cir(gelu, tiny):
    assert network.require_fit(gelu) is gelu and network.require_fit(tiny) is tiny
