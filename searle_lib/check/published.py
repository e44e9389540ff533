"""What is known of published data and models before they are on this machine: addresses, sizes and terms.

Sources: the data sets' own pages, as docs/published-study.md lists them.
"""

from collections.abc import Mapping

import torch
from clip.model import CLIP

from searle_lib.backbone import open_clip_models
from searle_lib.backbone.model import OPENAI, Backbone, find_device, of_loaded
from searle_lib.backbone.open_clip_models import LoadedClip
from searle_lib.data.benchmarks import PROTOCOLS, name_of

SIZES = {  # queries and gallery images of the published data sets (docs/method.md, "Evaluation")
    "fashioniq/val/dress": (2017, 3817),
    "fashioniq/val/shirt": (2038, 6346),
    "fashioniq/val/toptee": (1961, 5373),
    "fashioniq/val/dress-union": (2017, 2628),
    "fashioniq/val/shirt-union": (2038, 3089),
    "fashioniq/val/toptee-union": (1961, 2902),
    "cirr/val": (4181, 2297),
    "cirr/test1": (4148, 2315),
    "circo/val": (220, 123_403),
    "circo/test": (800, 123_403),
}
IMAGENET_SIZE = 100_000
SOURCES = {  # by data set: what to fetch, where, how much, under which terms
    "fashioniq": "captions and splits at github.com/XiaoxiaoGuo/fashion-iq, 3 MB, CDLA; images by the links there",
    "cirr": "captions and splits at github.com/Cuberick-Orion/CIRR, 3 MB, MIT; images as its README says",
    "circo": "annotations at github.com/miccunifi/CIRCO, 0.3 MB, CC BY-NC 4.0; images at cocodataset.org, 19 GB",
    "imagenet": "ImageNet-1K test at image-net.org, 100,000 images, with an account, for non-commercial research",
    "vocabulary": "storage.googleapis.com/openimages/web/download_v7.html, 0.5 MB, CC BY 4.0",
}
SHAPES = {  # of clip.model.CLIP
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
}


def split_sizes(dataset: str, split: str, fashioniq_gallery: str) -> tuple[int, dict[str, int]]:
    """Return the number of queries of a published split, and the number of images of each gallery by name."""
    union = "-union" if (dataset, fashioniq_gallery) == ("fashioniq", "union") else ""
    names = [name_of(dataset, split, category) + union for category in PROTOCOLS[dataset].categories]
    galleries = {"circo/unlabeled" if dataset == "circo" else name: SIZES[name][1] for name in names}
    return sum(SIZES[name][0] for name in names), galleries


def stand_in(values: Mapping) -> Backbone | None:
    """Return a CLIP with random weights in the shape of the study's; None if the shape is not known.

    It is on the study's device, or on the CPU if this machine lacks that device.
    """
    loaded = _random_clip(values["clip_model"])
    if loaded is None:
        return None
    try:
        device, precision = find_device(values["device"]), values["precision"]
    except ValueError:
        device, precision = torch.device("cpu"), "float32"
    return of_loaded(loaded, device, precision, values["preprocess"])


def _random_clip(name: str) -> LoadedClip | None:
    if name in SHAPES:
        return LoadedClip(name, "", CLIP(*SHAPES[name]), OPENAI)
    try:
        return open_clip_models.load(name, with_weights=False) if name.startswith(open_clip_models.PREFIX) else None
    except ValueError:
        return None
