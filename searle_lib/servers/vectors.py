"""Rank and score the vectors of a model that somebody trained elsewhere, by the protocol of a data set.

A file has `vectors` [N, d] of any float type, and the `ids` of their rows: a .npz has two arrays, a .safetensors a
tensor of integers, or a JSON list in its metadata. One file is of queries, the other one of images.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data.protocols import PROTOCOLS, protocol_of
from searle_lib.evaluation import rankings, scores
from searle_lib.evaluation.other_models import Evaluation
from searle_lib.servers import predictions, scoring
from searle_lib.servers.predictions import Task
from searle_lib.store.reading import MAX_BYTES, FileRefused, is_name, reads, show

REMEDY = "write vectors [N, d] and their ids"
BLOCK = 1 << 16  # rows that are normalised at once; bounds memory


def evaluate(
    queries: Path, gallery: Path, dataset: str, data_root: Path, category: str | None = None, name: str = ""
) -> Evaluation:
    """Rank a gallery for each query of a split by cosine, and score the rankings if the targets are public.

    The split is that of the query ids. Images of the file that the gallery lacks are ignored, and a note counts them.

    Args:
        queries: the file with the vectors of the queries.
        gallery: the file with the vectors of the images.
        dataset: fashioniq, cirr, circo, or a CSV file.
        data_root: the folder of the data sets.
        category: a category of FashionIQ, else None.
        name: the model's name; without one a split with secret targets is refused.

    Raises:
        ValueError: if a file is not of this form, or lacks a query or an image; if it has an id that is no query.
        FileNotFoundError: if a file, or an annotation, does not exist.
    """
    scoring.check_category(dataset, category)
    query_ids, query_vectors = read(queries)
    image_ids, image_vectors = read(gallery)
    if query_vectors.shape[1] != image_vectors.shape[1]:
        raise ValueError(
            f"{queries} has vectors of {query_vectors.shape[1]} numbers and {gallery} of {image_vectors.shape[1]}; "
            "write both with the same model."
        )
    task = _task(queries, query_ids, dataset, data_root, category)
    benchmark = task.benchmark
    if not benchmark.is_scored and not name:
        raise ValueError(
            f"{queries} holds queries of {task.title}, whose targets are secret; add --name and --to, and a study with "
            "that folder in other_models writes the file for the server."
        )
    image_ids = [predictions.to_image_id(dataset, image) or image for image in image_ids]
    order, images = list(benchmark.queries["query"]), list(benchmark.gallery["image"])
    rows = _rows(queries, query_ids, order, "query", benchmark.name)
    unknown = sorted(set(query_ids) - set(order))
    if unknown:
        raise ValueError(f"{queries} has {show(unknown[0])}, which is no query of {task.title}; remove it.")
    vectors = image_vectors[_rows(gallery, image_ids, images, "image", benchmark.name)]
    ranks = rankings.compare(
        benchmark, Embeddings(benchmark.gallery_name, tuple(images), vectors, ""), query_vectors[rows], rankings.DEPTH
    )
    table = scores.score_queries(benchmark, ranks, name)
    extra = len(image_ids) - len(images)
    note = f"ignored images of {gallery}, which the gallery of {benchmark.name} lacks: {extra:,}."
    return Evaluation(
        benchmark,
        table if benchmark.is_scored else table.iloc[:0],
        rankings.ranking_table(benchmark, ranks, name),
        (note,) if extra else (),
    )


@reads("is not a file of vectors", REMEDY, absent="name a .safetensors or a .npz file")
def read(file: Path) -> tuple[list[str], Tensor]:
    """Return the ids of a file, and its vectors [N, d] float32, unit norm. Raises FileRefused for another file."""
    ids, vectors = _read_npz(file) if file.suffix == ".npz" else _read_safetensors(file)
    if vectors.ndim != 2 or not vectors.is_floating_point() or 0 in vectors.shape:
        raise FileRefused(f"{file} has vectors of shape {list(vectors.shape)} and type {vectors.dtype}; {REMEDY}.")
    if not isinstance(ids, list) or not all(type(one) is int or is_name(one) for one in ids):
        raise FileRefused(f"{file} has ids that are neither texts nor integers; {REMEDY}.")
    if len(ids) != len(vectors):
        raise FileRefused(f"{file} has {len(vectors):,} vectors and {len(ids):,} ids; write one id for each vector.")
    blocks = []
    for first in range(0, len(vectors), BLOCK):
        wide = vectors[first : first + BLOCK].double()  # squares of the smallest and the largest float32 fit
        norms = wide.norm(dim=1, keepdim=True)
        wrong = (~torch.isfinite(norms[:, 0]) | (norms[:, 0] == 0)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            fault = "is zero" if norms[row] == 0 else "is not finite"
            raise FileRefused(f"the vector of {ids[first + row]} in {file} {fault}; compute it again.")
        blocks.append((wide / norms).float())
    return list(map(str, ids)), torch.cat(blocks)


def _read_npz(file: Path) -> tuple[object, Tensor]:
    with zipfile.ZipFile(file) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_BYTES:  # compressed zeros take a thousandth
        raise ValueError(f"it holds {size:,} bytes, and may hold {MAX_BYTES:,}")
    with np.load(file, allow_pickle=False) as archive:
        return archive["ids"].tolist(), torch.from_numpy(archive["vectors"])


def _read_safetensors(file: Path) -> tuple[object, Tensor]:
    with safe_open(file, framework="pt") as tensors:
        names, metadata = tensors.keys(), tensors.metadata() or {}
        if "vectors" not in names or ("ids" not in names and "ids" not in metadata):
            raise FileRefused(f"{file} lacks {'ids' if 'vectors' in names else 'vectors'}; {REMEDY}.")
        ids = tensors.get_tensor("ids").tolist() if "ids" in names else json.loads(metadata["ids"])
        return ids, tensors.get_tensor("vectors")


def _task(file: Path, ids: Sequence[str], dataset: str, data_root: Path, category: str | None) -> Task:
    """Return the task whose queries a file has. Raises FileNotFoundError if the list of images is absent."""
    validation = protocol_of(dataset).validation
    has_server = dataset in PROTOCOLS and PROTOCOLS[dataset].submission
    split = predictions.find_split(file, dataset, set(ids), data_root) if has_server else validation
    task = predictions.load_task(dataset, data_root, split, category or "all")
    if task.gallery is None:
        raise FileNotFoundError(f"{task.gallery_file} of {task.title} does not exist; put it below {data_root}.")
    return task


def _rows(file: Path, ids: Sequence[str], order: Sequence[str], noun: str, benchmark: str) -> Tensor:
    """Return the rows [n] int64 of a file's ids in the order of a benchmark.

    Args:
        file: the file, for its name.
        ids: its ids.
        order: the ids of the benchmark.
        noun: what they are, "query" or "image".
        benchmark: the benchmark's name.

    Raises ValueError for an id that is absent or stands twice.
    """
    row_of = {one: row for row, one in enumerate(ids)}
    if len(row_of) < len(ids):
        twice = next(one for row, one in enumerate(ids) if row_of[one] != row)
        raise ValueError(f"{file} has {noun} {show(twice)} twice; write one vector for it.")
    absent = [one for one in order if one not in row_of]
    if absent:
        others = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
        raise ValueError(f"{file} lacks {noun} {absent[0]}{others} of {benchmark}; add a vector for each.")
    return torch.tensor([row_of[one] for one in order])
