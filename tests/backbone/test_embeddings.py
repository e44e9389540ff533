"""A list of images too long for memory: its embeddings stay on disk, and every stage reads them as it reads others."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings, LargeEmbeddings
from searle_lib.data import annotations
from searle_lib.searle import concepts
from searle_lib.store import shards
from searle_lib.store.artefacts import Store, write_json


@pytest.fixture
def both(world, tiny, tmp_path, monkeypatch):
    """Embeddings of a list of eleven images in memory, and of the same list on disk."""
    table = annotations.imagenet(world).head(11)
    small = embeddings.encode(Store(tmp_path / "small"), tiny, "imagenet/test", table)
    monkeypatch.setattr(embeddings, "LARGE", 10)
    monkeypatch.setattr(embeddings, "SHARD", 4)
    return small, embeddings.encode(Store(tmp_path / "large"), tiny, "imagenet/test", table)


def test_the_vectors_of_a_large_list_stay_on_disk_and_are_the_same(both, tmp_path):
    small, large = both
    assert type(small) is Embeddings and isinstance(large, LargeEmbeddings) and large.key == small.key
    assert len(list(tmp_path.glob("large/embeddings/imagenet/*/rows-*.safetensors"))) == 3
    assert torch.allclose(large.vectors[:], small.vectors, atol=1e-5)  # batches of another size
    rows = torch.tensor([9, 0, 9])
    for part in (slice(3, 9), rows):
        assert torch.equal(large.unit[part], F.normalize(large.vectors[:], dim=-1)[part])
    assert torch.equal(large.select([large.ids[row] for row in rows]), large.vectors[:][rows])
    assert len(large.unit) == 11 and torch.equal(large.vectors.to("cpu"), large.vectors[:])


def test_a_large_list_gets_the_concepts_of_a_small_one(both, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(concepts, "LARGE", 4)
    vocabulary = concepts.Vocabulary(("Star", "Boat", "Gown"), "three")
    small, large = (concepts.associate(Store(tmp_path / of.name), tiny, of, vocabulary, 3).rows for of in both)
    assert torch.equal(small, large) and small.shape == (11, 3)


def test_embeddings_in_one_file_are_read_whatever_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "LARGE", 1)
    folder = tmp_path / "list-0123456789"
    folder.mkdir()
    save_file({"vectors": torch.eye(3)}, folder / "embeddings.safetensors")
    write_json(folder / "images.json", {"name": "list", "ids": ["a", "b", "c"], "clip": "sha"})
    read = embeddings.load(folder)
    assert torch.equal(read.vectors, torch.eye(3)) and (read.key, read.clip) == ("0123456789", "sha")


def test_half_precision_rows_are_normalised_in_single_precision(tmp_path):
    vectors = torch.randn(7, 16, generator=torch.Generator().manual_seed(1)).half()
    shards.write(tmp_path, 7, 3, lambda first, end: {"vectors": vectors[first:end]})
    unit = embeddings.UnitRows(shards.memory_map(tmp_path)["vectors"])
    assert unit[:].dtype == torch.float32 and torch.equal(unit[2:5], F.normalize(vectors.float(), dim=-1)[2:5])
