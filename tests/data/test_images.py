import numpy as np
import pytest
import torch
from conftest import leave_record, study_of
from PIL import Image

from searle_lib.data import images


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        ((100, 100), (100, 100)),
        ((124, 100), (124, 100)),  # below the ratio: as it is
        ((125, 100), (125, 100)),  # at the ratio: padded by nothing
        ((200, 100), (200, 160)),
        ((100, 300), (240, 300)),
        ((101, 333), (265, 333)),  # 333 / 1.25 = 266.4: both ends int(82.7)
    ],
)
def test_target_pad_pads_the_short_side_until_the_ratio_is_met(size, padded):
    assert images.target_pad(Image.new("RGB", size)).size == padded


def test_target_pad_is_black_and_symmetric():
    pixels = np.asarray(images.target_pad(Image.new("RGB", (200, 100), "white")))
    assert (pixels[:30] == 0).all() and (pixels[-30:] == 0).all() and (pixels[30:-30] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("preprocess", images.PREPROCESSINGS)
def test_pictures_of_every_mode_become_pixels(mode, preprocess):
    pixels = images.to_pixels(Image.new(mode, (90, 40)), 32, preprocess)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32 and torch.isfinite(pixels).all()


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(ValueError, match="preprocess is squash; it must be targetpad or clip"):
        images.to_pixels(Image.new("RGB", (8, 8)), 8, "squash")


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image .*/gone.jpg does not exist; download it"):
        images.read(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named_with_its_size(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.effect_noise((90, 90), 80).convert("RGB").save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:1500])
    with pytest.raises(
        ValueError, match=rf"image .*/cut.{suffix} cannot be decoded \(1,500 bytes on disk.*download it again"
    ):
        images.read(cut)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page.jpg cannot be decoded \(16 bytes"):
        images.read(tmp_path / "page.jpg")


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (100, 4)])
def test_batches_keep_order_whatever_the_threads_do(tmp_path, batch_size, workers):
    paths = []
    for shade in range(10):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (16, 16), (20 * shade,) * 3).save(paths[-1])
    got = torch.cat(list(images.Reader(batch_size, workers).batches(paths, 8, "clip")))
    expected = torch.stack([images.to_pixels(images.read(path), 8, "clip") for path in paths])
    assert torch.equal(got, expected)


def test_no_paths_give_no_batches():
    assert list(images.Reader(4, 2).batches([], 8, "clip")) == []


def test_a_picture_whose_header_claims_too_many_pixels_is_named_as_broken(tmp_path, monkeypatch):
    Image.new("L", (60, 60)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ValueError, match=r"image .*huge.png cannot be decoded .*decompression bomb.*; download it again"
    ):
        images.read(tmp_path / "huge.png")


def test_a_study_reads_pictures_as_02_decided(tmp_path):
    leave_record(study_of(tmp_path, "02_concepts"), image_batch_size=16, workers=3)
    assert images.reader(study_of(tmp_path, "05_fti4cir")) == images.Reader(batch_size=16, workers=3)
