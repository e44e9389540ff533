"""Images from disk to CLIP's input pixels: reading, both preprocessings, and batches.

Takes paths and returns pixels [N, 3, size, size]. An image that is missing or broken raises an error with its path;
nothing is skipped. Source: docs/method.md, "Images".
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from searle_lib.store.records import Study

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSINGS = ("targetpad", "clip")
TARGET_RATIO = 1.25


def read(path: Path) -> Image.Image:
    """Read and decode an image, in the mode of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(
            f"image {path} does not exist; download it, correct data_root, or set missing_images: report."
        ) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as problem:
        size = path.stat().st_size if path.is_file() else 0
        raise ValueError(
            f"image {path} cannot be decoded ({size:,} bytes on disk: {problem}); download it again, or set "
            "missing_images: report."
        ) from problem


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


def to_pixels(image: Image.Image, size: int, preprocess: str) -> Tensor:
    """Turn an image into CLIP's input [3, size, size] float32.

    Pad (targetpad only), resize the short side, crop the centre, convert to RGB, normalise.

    Raises:
        ValueError: if preprocess is neither targetpad nor clip.
    """
    if preprocess not in PREPROCESSINGS:
        raise ValueError(f"preprocess is {preprocess}; it must be targetpad or clip.")
    image = target_pad(image) if preprocess == "targetpad" else image
    image = T.resize(image, [size], interpolation=T.InterpolationMode.BICUBIC)
    image = T.center_crop(image, [size, size]).convert("RGB")
    return T.normalize(T.to_dtype(T.pil_to_tensor(image), torch.float32, scale=True), MEAN, STD)


@dataclass(frozen=True)
class Reader:
    """Read images in batches of `batch_size`, decoded by `workers` threads; neither changes a result."""

    batch_size: int = 256
    workers: int = 2

    def batches(self, paths: Sequence[Path], size: int, preprocess: str) -> Iterator[Tensor]:
        """Yield the pixels [B, 3, size, size] of images in order, decoded one batch ahead. Raises as `read` does."""
        parts = [paths[start : start + self.batch_size] for start in range(0, len(paths), self.batch_size)]
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            submitted = deque()
            for part in parts:
                submitted.append([pool.submit(lambda path: to_pixels(read(path), size, preprocess), p) for p in part])
                if len(submitted) > 1:
                    yield torch.stack([future.result() for future in submitted.popleft()])
            for last in submitted:
                yield torch.stack([future.result() for future in last])


DEFAULT_READER = Reader()


def reader(study: Study) -> Reader:
    """Return a reader with the batch size and the threads of 02_concepts."""
    values = study.settings("02_concepts")
    return Reader(values["image_batch_size"], values["workers"])
