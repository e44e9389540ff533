"""docs/scale.md: its tables are those of the script, and the script's arithmetic is what PyTorch counts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from clip.model import CLIP
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import arithmetic, scale, stages
from searle_lib.backbone import texts
from searle_lib.backbone.model import Backbone, encode_images, tokenize
from searle_lib.fti4cir.network import Fti4Cir
from searle_lib.searle.phi import Phi

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SHAPE = (32, 32, 3, 64, 8, 77, 49408, 48, 2, 3)  # as in SHAPES
TEXTS = ["a photo of $ that is red"] * 5


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("small", "", CLIP(*SHAPE).float().eval().requires_grad_(False), torch.device("cpu"))


def counted(work):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_page_holds_the_tables_of_the_script():
    page = PAGE.read_text(encoding="utf-8")
    stale = [title for title, table in scale.tables(scale.in_units()).items() if table not in page]
    assert not stale, "copy these tables of `python -m bench.scale` into docs/scale.md"


def test_the_arithmetic_of_an_image_is_what_pytorch_counts(backbone):
    pixels = torch.randn(2, 3, 32, 32)
    assert counted(lambda: encode_images(backbone, pixels)) == 2 * arithmetic.image(SHAPE)


@pytest.mark.parametrize("backward", [False, True])
def test_the_arithmetic_of_a_text_with_a_pseudo_word_is_what_pytorch_counts(backbone, backward):
    parts = texts.split(tokenize(TEXTS))
    packed, words = texts.pack(backbone, [parts]), torch.randn(5, 48, requires_grad=True)

    def work():
        features = texts.encode_packed(backbone, packed, words)
        if backward:
            features.sum().backward()

    tokens, before = int(parts.ends[0]) + 1, int(parts.placeholder_positions[0])
    assert (tokens, before) == (5, arithmetic.PROMPT)
    assert counted(work) == 5 * arithmetic.text(SHAPE, tokens, before, backward)


def test_the_arithmetic_of_a_plain_text_is_what_pytorch_counts(backbone):
    plain = ["a photo of a cat that is red"] * 5
    tokens = int(tokenize(plain).ends[0]) + 1
    assert counted(lambda: texts.encode_texts(backbone, plain)) == 5 * arithmetic.text(SHAPE, tokens)


def test_the_arithmetic_of_both_networks_is_what_pytorch_counts():
    embeddings, patches = torch.randn(2, 32), torch.randn(2, 17, 64)
    assert counted(lambda: Fti4Cir(32, 64)(embeddings, patches)) == 2 * arithmetic.fti(SHAPE)
    assert counted(lambda: Phi(32, 32)(embeddings)) == 2 * arithmetic.phi(SHAPE)


def test_more_gpus_than_shards_save_no_time_and_one_process_gets_no_help():
    rates = scale.in_units()
    three = stages.Stage("three shards", 250, "OTI", 1e12, 0, 0, shard=100)
    whole = three._replace(shard=0)
    assert scale.hours(three, 2, rates) == pytest.approx(200 / 250 * scale.hours(three, 1, rates))
    assert (
        scale.hours(three, 256, rates)
        == scale.hours(three, 3, rates)
        == pytest.approx(100 / 250 * scale.hours(three, 1, rates))
    )
    assert scale.hours(whole, 256, rates) == scale.hours(whole, 1, rates)


def test_decoding_binds_where_it_takes_longer_than_the_arithmetic():
    rates = scale.in_units({"cores of a GPU": 4})
    stage = stages.Stage("decoded", 3600, "images", 1, 0, 0, shard=3600, seconds=8.0)
    assert scale.hours(stage, 1, rates) == pytest.approx(2.0)


def test_a_file_replaces_rates_in_their_own_units(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"hashing": 6}))
    monkeypatch.setattr(sys, "argv", ["scale", "--rates", str(file)])
    scale.main()
    printed = capsys.readouterr().out
    assert "| hashing | 6 GB/s |" in printed and "| hashes of files |  | 150 TB |  | not cut | 7.1 |" in printed


def test_an_unknown_rate_is_refused(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"hasing": 6}))
    monkeypatch.setattr(sys, "argv", ["scale", "--rates", str(file)])
    with pytest.raises(SystemExit):
        scale.main()
    assert "has a rate 'hasing', which is not known; choose from image," in capsys.readouterr().err
