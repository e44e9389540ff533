"""Images from disk to CLIP's input pixels: reading, both preprocessings, and batches.

Takes paths and returns pixels [N, 3, size, size]. An image that is missing or broken raises an error with its path;
nothing is skipped. Source: docs/method.md, "Images".
"""

import io
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from searle_lib.store.reading import reads
from searle_lib.store.records import Study

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSINGS = ("targetpad", "clip")
TARGET_RATIO = 1.25
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others start programs or are rarely decoded, so are attacked easily
MAX_BYTES = 1 << 28
MAX_PIXELS, MAX_SIDE, MAX_RATIO = 80_000_000, 10_000, 40  # so that decoding and padding take less than 1 GB
PNG_END = b"IEND\xae\x42\x60\x82"  # Pillow decodes a file that was cut off shortly before it
UPRIGHT = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ABSENT = "download it, correct data_root, or set missing_images: report"
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS refuses what it warns of


class Scaling(NamedTuple):
    """What a CLIP expects of its pixels: mean and standard deviation by channel, and how images are interpolated."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@reads("cannot be decoded", "download it again, or set missing_images: report", ABSENT, noun="image", limit=MAX_BYTES)
def read(path: Path) -> Image.Image:
    """Read and decode an image as people see it: upright by its EXIF orientation, 8 bits a channel.

    Of an animation this is the first frame. Palette, CMYK and alpha images keep their mode, as the authors' do.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileRefused: if it is a link that leads out of its folder, is of no format of FORMATS or beyond the bounds on
            size, or cannot be decoded.
    """
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise ValueError(f"it is a link to {path.resolve()}, out of its folder")
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise ValueError(
                f"it has {width:,} x {height:,} pixels, and {MAX_SIDE:,} a side and {MAX_PIXELS:,} are read"
            )
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(f"it has {width:,} x {height:,} pixels, and padding would make it too large")
        if image.format == "PNG" and PNG_END not in content:
            raise ValueError("it is cut off before its end")
        image.load()
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion clips to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF that cannot be parsed turns nothing
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def target_pad(image: Image.Image, ratio: float = TARGET_RATIO) -> Image.Image:
    """Pad the short side of an image in black, both ends alike, until long/short is at most `ratio`.

    The image is padded in its own mode, as the authors do: a palette or alpha image before its conversion to RGB.
    """
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    short = max(width, height) / ratio
    horizontal, vertical = max(int((short - width) / 2), 0), max(int((short - height) / 2), 0)
    return ImageOps.expand(image, (horizontal, vertical, horizontal, vertical), fill=0)


def to_pixels(image: Image.Image, size: int, preprocess: str, scaling: Scaling | None = None) -> Tensor:
    """Turn an image into CLIP's input [3, size, size] float32.

    Pad (targetpad only), resize the short side, crop the centre, convert to RGB, normalise. `scaling` None: that of
    OpenAI's CLIPs.

    Raises:
        ValueError: if preprocess is neither targetpad nor clip.
    """
    if preprocess not in PREPROCESSINGS:
        raise ValueError(f"preprocess is {preprocess}; it must be targetpad or clip.")
    image = target_pad(image) if preprocess == "targetpad" else image
    mean, std, interpolation = scaling or (MEAN, STD, "bicubic")
    image = T.resize(image, [size], interpolation=T.InterpolationMode(interpolation))
    image = T.center_crop(image, [size, size]).convert("RGB")
    return T.normalize(T.to_dtype(T.pil_to_tensor(image), torch.float32, scale=True), mean, std)


@dataclass(frozen=True)
class Reader:
    """Read images in batches of `batch_size`, decoded by `workers` threads; neither changes a result."""

    batch_size: int = 256
    workers: int = 2

    def batches(
        self, paths: Sequence[Path], size: int, preprocess: str, scaling: Scaling | None = None
    ) -> Iterator[Tensor]:
        """Yield the pixels [B, 3, size, size] of images in order, decoded one batch ahead. Raises as `read` does."""

        def prepare(path: Path) -> Tensor:
            return to_pixels(read(path), size, preprocess, scaling)

        parts = [paths[start : start + self.batch_size] for start in range(0, len(paths), self.batch_size)]
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            submitted = deque()
            for part in parts:
                submitted.append([pool.submit(prepare, path) for path in part])
                if len(submitted) > 1:
                    yield torch.stack([future.result() for future in submitted.popleft()])
            for last in submitted:
                yield torch.stack([future.result() for future in last])


DEFAULT_READER = Reader()


def reader(study: Study) -> Reader:
    """Return a reader with the batch size and the threads of 02_concepts."""
    values = study.settings("02_concepts")
    return Reader(values["image_batch_size"], values["workers"])
