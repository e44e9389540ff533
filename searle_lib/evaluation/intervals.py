"""From the scores of single queries to the study's table: means, 95 % bootstrap intervals, published numbers.

Values are percentages, as in the papers.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.store import randomness
from searle_lib.store.artefacts import written_aside

COLUMNS = ["study", "dataset", "split", "category", "method", "backbone", "metric", "value", "ci_low", "ci_high"]
AVERAGE = "average"
MAIN = (  # dataset, split, category, metric of the numbers that papers lead with
    ("FashionIQ", "val", AVERAGE, "R@10"),
    ("FashionIQ", "val", AVERAGE, "R@50"),
    ("CIRR", "val", "all", "R@1"),
    ("CIRR", "val", "all", "R@5"),
    ("CIRR", "val", "subset", "Rsubset@1"),
    ("CIRCO", "val", "all", "mAP@5"),
    ("CIRCO", "val", "all", "mAP@10"),
)
TITLES = {protocol.title: name for name, protocol in PROTOCOLS.items()}


def summarise(scores: pd.DataFrame, study: str, made_with: dict, resamples: int = 2000, seed: int = 42) -> pd.DataFrame:
    """Means over queries with percentile intervals, in percent: COLUMNS, queries and evaluated_on, one row a number.

    `made_with` is what `evaluation.made_with` gives.

    `scores` is long form: dataset, split, category, method, query, metric, value. Where a benchmark has several
    categories their plain mean is added as the category "average", resampled within each category. All methods
    see the same resamples.
    """
    rows = []
    for where, means, draws, queries in resampled_means(scores, resamples, seed):
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        table = pd.DataFrame({"value": means, "ci_low": low, "ci_high": high}) * 100
        on = evaluated_on(where["dataset"], where["split"], made_with["sizes"], where["category"])
        rows.append(table.reset_index().assign(**where, queries=queries, evaluated_on=on))
    if not rows:
        raise ValueError("there are no scores to summarise; run 06_retrieval with validation in evaluate.")
    everything = pd.concat(rows, ignore_index=True).assign(study=study, backbone=made_with["backbone"])
    return everything[[*COLUMNS, "queries", "evaluated_on"]].round({"value": 4, "ci_low": 4, "ci_high": 4})


def evaluated_on(dataset: str, split: str, sizes: dict[str, dict], category: str = "") -> str:
    """How much of a benchmark's split was there, "n of N" queries and images, and which gallery FashionIQ has; of one
    category alone where it has its own gallery."""
    said = {}
    for name, size in sizes.items():
        of, at, *own = name.split("/")
        if (of, at) == (TITLES[dataset], split):
            (queries, images), (all_queries, all_images) = size["there"], size["whole"]
            counts = f"{queries:,} of {all_queries:,} queries over {images:,} of {all_images:,} images"
            kind = " (union gallery)" if size["gallery"].endswith("-union") else " (split gallery)"
            said["".join(own)] = counts + (kind if own else "")
    chosen = {name: text for name, text in said.items() if name in (category, "")} or said
    return "; ".join(f"{name}: {text}" if name and len(chosen) > 1 else text for name, text in chosen.items())


def main_of(results: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return those of MAIN that a study has numbers of."""
    return [panel for panel in MAIN if panel[0] in set(results["dataset"])]


def of_query(scores: pd.DataFrame, dataset: str, category: str, query: str) -> pd.DataFrame:
    """Return the scores of one query, in percent: a row a method, a column a metric."""
    chosen = scores[(scores["dataset"] == dataset) & (scores["query"] == query)]
    chosen = chosen[chosen["category"].isin([category, "subset"])]
    table = chosen.pivot(index="method", columns="metric", values="value") * 100
    return table.loc[chosen["method"].unique(), chosen["metric"].unique()].rename_axis(index=None, columns=None)


def write_csv(results: pd.DataFrame, path: Path) -> Path:
    """Write the long table, four decimals, the same bytes for the same numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        results.to_csv(aside, index=False, float_format="%.4f", lineterminator="\n")
    return path


def published() -> pd.DataFrame:
    """Numbers printed in papers, in percent, each with where it was seen (column source)."""
    with resources.files("searle_lib.evaluation").joinpath("published_results.csv").open() as file:
        return pd.read_csv(file)


def wide(results: pd.DataFrame, dataset: str, split: str) -> pd.DataFrame:
    """A benchmark's table as papers print it: a row a method, columns (category, metric), values in percent."""
    chosen = results[(results["dataset"] == dataset) & (results["split"] == split)]
    return _pivot(chosen, dataset)


def resampled_means(
    scores: pd.DataFrame, resamples: int, seed: int
) -> Iterator[tuple[dict[str, str], pd.Series, np.ndarray, int]]:
    """For every dataset, split and category: means by (method, metric), their draws, and the number of queries."""
    for (dataset, split), of_split in scores.groupby(["dataset", "split"], sort=False):
        sampled = {
            category: _resampled(of_category, f"{dataset}/{split}/{category}", resamples, seed)
            for category, of_category in of_split.groupby("category", sort=False)
        }
        categories = PROTOCOLS[TITLES[dataset]].categories
        if len(categories) > 1:
            sampled[AVERAGE] = _averaged([sampled[category] for category in categories])
        for category, (means, draws, queries) in sampled.items():
            yield {"dataset": dataset, "split": split, "category": category}, means, draws, queries


def _resampled(scores: pd.DataFrame, name: str, resamples: int, seed: int) -> tuple[pd.Series, np.ndarray, int]:
    """Means by (method, metric), their bootstrap draws [resamples, columns], and the number of queries."""
    table = scores.pivot(index="query", columns=["method", "metric"], values="value")
    if table.isna().any(axis=None):
        method, metric = table.columns[table.isna().any()][0]
        raise ValueError(f"{name} has queries without {metric} of {method}; run 06_retrieval again.")
    queries = len(table)
    random = np.random.default_rng(randomness.keys(seed, "bootstrap", [name])[0])
    weights = random.multinomial(queries, np.full(queries, 1 / queries), size=resamples)  # [resamples, queries]
    return table.mean(), weights @ table.to_numpy() / queries, queries


def _averaged(parts: list[tuple[pd.Series, np.ndarray, int]]) -> tuple[pd.Series, np.ndarray, int]:
    means, draws, queries = zip(*parts, strict=True)
    aligned = [draw[:, mean.index.get_indexer(means[0].index)] for mean, draw in zip(means, draws, strict=True)]
    return sum(m[means[0].index] for m in means) / len(means), np.mean(aligned, axis=0), sum(queries)


def _pivot(long: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Long to wide with methods in order of appearance and columns in the order that papers use."""
    protocol = PROTOCOLS[TITLES[dataset]]
    table = long.pivot(index="method", columns=["category", "metric"], values="value")
    pairs = [(category, name) for category in protocol.categories for name, under in protocol.metrics if not under]
    pairs += [(under, name) for name, under in protocol.metrics if under]
    pairs += [(AVERAGE, name) for name, _ in protocol.metrics] if len(protocol.categories) > 1 else []
    rest = sorted(pair for pair in table.columns if pair not in pairs)
    table = table[[pair for pair in [*pairs, *rest] if pair in table.columns]]
    return table.loc[list(dict.fromkeys(long["method"]))]
