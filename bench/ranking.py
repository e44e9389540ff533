"""Ranking, measured as the other pieces are: CIRR scored, CIRCO ranked. Both run on the CPU everywhere."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from bench import published
from bench.pieces import Piece
from bench.problems import WIDTH
from searle_lib import ranking
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import rankings, scores


def cirr(queries: int = 4181, gallery: int = 2297) -> Piece:
    """CIRR val scored from features: ranks over the gallery and within groups."""
    random = np.random.default_rng(3)
    names = [f"dev-{i}-{i % 4}-img{i % 2}" for i in range(gallery)]
    drawn = np.stack([random.permutation(gallery)[:6] for _ in range(queries)])
    table = pd.DataFrame(
        {
            "query": [str(i) for i in range(queries)],
            "reference": [names[row[0]] for row in drawn],
            "target": [names[row[1]] for row in drawn],
            "ground_truths": [[names[row[1]]] for row in drawn],
            "group": [[names[i] for i in row[1:]] for row in drawn],
        }
    )
    vectors = torch.from_numpy(random.normal(size=(gallery, WIDTH))).float()
    units = F.normalize(torch.from_numpy(random.normal(size=(queries, WIDTH))).float(), dim=-1)
    benchmark = Benchmark("cirr", "val", "all", "cirr/val", pd.DataFrame({"image": names}), table, (queries, gallery))
    seen = Embeddings("cirr/val", tuple(names), vectors, "")

    def ours() -> dict[str, float]:
        ranks = rankings.compare(benchmark, seen, units)
        return {name: float(scores.metric(name, ranks).mean()) * 100 for name, _ in benchmark.protocol.metrics}

    columns = [table[name].tolist() for name in ("reference", "target", "group")]
    return Piece(
        "CIRR val, scored",
        f"{queries:,} queries over {gallery:,} images, from features",
        ours,
        lambda: published.cirr_recalls(units, F.normalize(vectors, dim=-1), names, *columns),
        lambda a, b: all(abs(a[name] - b[name]) < 0.05 for name in b),
        2.0 * queries * gallery * WIDTH,
        target=40.0,
    )


def circo(queries: int = 800, gallery: int = 123_403) -> Piece:
    """CIRCO test ranked to the depth of its server's files."""
    random = torch.Generator().manual_seed(4)
    vectors = F.normalize(torch.randn(gallery, WIDTH, generator=random), dim=-1)
    units = F.normalize(torch.randn(queries, WIDTH, generator=random), dim=-1)
    names = np.array([str(i) for i in range(gallery)])
    return Piece(
        "CIRCO test, ranked",
        f"{queries:,} queries over {gallery:,} images, top 50",
        lambda: ranking.search(units, vectors, k=50).top,
        lambda: published.best_names(units, vectors, names, 50),
        lambda a, b: np.mean(names[a.numpy()] == np.array(b)) > 0.999,
        2.0 * queries * gallery * WIDTH,
    )
