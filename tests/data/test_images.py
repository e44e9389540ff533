import os

import numpy as np
import pytest
import torch
from conftest import leave_record, study_of
from PIL import ExifTags, Image, ImageOps

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


def noise(mode="RGB", size=(50, 30)):
    return Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)]).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png")]
)
def test_a_picture_has_the_pixels_and_the_mode_of_its_file(tmp_path, mode, suffix):
    file = tmp_path / f"x.{suffix}"
    noise(mode).save(file)
    picture = images.read(file)
    expected = Image.open(file)
    assert picture.mode == expected.mode == mode and picture.tobytes() == expected.tobytes()


def test_sixteen_bits_of_grey_are_read_as_the_same_picture_in_eight(tmp_path):
    grey = np.asarray(noise("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = (images.to_pixels(images.read(tmp_path / f"{bits}.png"), 16, "clip") for bits in (8, 16))
    assert Image.open(tmp_path / "16.png").mode == "I;16" and torch.equal(eight, sixteen)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_is_read_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    noise().save(tmp_path / f"x.{suffix}", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / f"x.{suffix}"))
    assert images.read(tmp_path / f"x.{suffix}").tobytes() == expected.tobytes()


def test_a_picture_whose_exif_cannot_be_parsed_is_read_as_it_is(tmp_path):
    noise().save(tmp_path / "x.jpg", exif=b"Exif\0\0" + b"\xff" * 40)
    assert images.read(tmp_path / "x.jpg").tobytes() == Image.open(tmp_path / "x.jpg").tobytes()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_stands_for_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert images.read(tmp_path / f"x.{suffix}").convert("RGB").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("missing", range(1, 13))
def test_a_png_that_is_cut_off_in_its_last_bytes_is_refused(tmp_path, missing):
    noise().save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-missing])
    with pytest.raises(ValueError, match=r"x.png cannot be decoded .*cut off before its end\); download it again"):
        images.read(tmp_path / "x.png")


def test_a_postscript_text_starts_no_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "x.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=r"x.jpg cannot be decoded"):
        images.read(tmp_path / "x.jpg")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 41), (10_001, 900), (9_500, 9_500)])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_size(tmp_path, size):
    Image.new("L", size).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=rf"x.png cannot be decoded .*it has {size[0]:,} x {size[1]:,} pixels"):
        images.read(tmp_path / "x.png")


def test_a_pipe_in_the_place_of_a_picture_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"x.jpg cannot be decoded .*it is not a plain file"):
        images.read(tmp_path / "x.jpg")


def test_a_link_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    noise().save(tmp_path / "secret.png")
    noise().save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "good-link.png").symlink_to("good.png")
    (tmp_path / "in" / "bad-link.png").symlink_to(tmp_path / "secret.png")
    images.read(tmp_path / "in" / "good-link.png")
    with pytest.raises(ValueError, match=r"bad-link.png cannot be decoded .*it is a link to .*secret.png, out of its"):
        images.read(tmp_path / "in" / "bad-link.png")
