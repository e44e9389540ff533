"""Turn the scores of single queries into a study's results: means with 95 % bootstrap intervals, in percent.

Takes scores in long form and returns long tables. `results.csv` is written here, and the numbers of papers are read
here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from searle_lib.data.protocols import OWN, PROTOCOLS, Protocol, protocol_of
from searle_lib.store import randomness
from searle_lib.store.artefacts import atomic_write

COLUMNS = ["study", "dataset", "split", "category", "method", "backbone", "metric", "value", "ci_low", "ci_high"]
AVERAGE = "average"
UNSTATED = "unstated"  # the backbone of a model that others trained, here and in the numbers of papers
MAIN = (  # dataset, split, category, metric of the numbers that papers lead with
    ("FashionIQ", "val", AVERAGE, "R@10"),
    ("FashionIQ", "val", AVERAGE, "R@50"),
    ("CIRR", "val", "all", "R@1"),
    ("CIRR", "val", "all", "R@5"),
    ("CIRR", "val", "subset", "Rsubset@1"),
    ("CIRCO", "val", "all", "mAP@5"),
    ("CIRCO", "val", "all", "mAP@10"),
)
OWN_MAIN = (("all", "mAP@10"), ("all", "R@1"), ("all", "R@10"), ("subset", "Rsubset@1"))  # of own data: what it has
TITLES = {protocol.title: name for name, protocol in PROTOCOLS.items()}


@dataclass(frozen=True)
class Resampled:
    """The mean scores of one category over its queries, and the same means over bootstrap resamples of the queries.

    Args:
        dataset: the title, as in "CIRCO".
        split: as in "val".
        category: "all", one of FashionIQ's or CIRCO's categories, or AVERAGE.
        means: by method and metric, between 0 and 1.
        draws: [resamples, columns], the resampled means in the order of `means`.
        queries: the number of queries.
    """

    dataset: str
    split: str
    category: str
    means: pd.Series
    draws: np.ndarray
    queries: int

    @property
    def main_metrics(self) -> list[str]:
        """The main metrics that this category has."""
        metrics = self.means.index.get_level_values("metric").unique()
        panels = main_panels(pd.DataFrame({"dataset": self.dataset, "metric": metrics}))
        own = [metric for *panel, metric in panels if panel == [self.dataset, self.split, self.category]]
        return [metric for metric in own if metric in metrics]

    def difference(self, metric: str, first: str, second: str) -> tuple[float, float, float]:
        """Return by how many points one method is ahead of another, and the ends of the paired 95 % interval."""
        first_column, second_column = (self.means.index.get_loc((method, metric)) for method in (first, second))
        low, high = np.percentile(self.draws[:, first_column] - self.draws[:, second_column], [2.5, 97.5]) * 100
        return (self.means[first, metric] - self.means[second, metric]) * 100, low, high


def summarise(
    scores: pd.DataFrame, study: str, provenance: dict, resamples: int = 2000, seed: int = 42
) -> pd.DataFrame:
    """Return every metric's mean in percent with its interval, a row per number: COLUMNS, queries and evaluated_on.

    A data set with several categories gets their plain mean as the category "average", resampled within each category.
    All methods share the same resamples.

    Args:
        scores: long form: dataset, split, category, method, query, metric, value.
        study: the study's name.
        provenance: what `scores.provenance` returns.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: if there are no scores, or a method lacks a score of a query.
    """
    tables = []
    for sample in resample(scores, resamples, seed):
        low, high = np.percentile(sample.draws, [2.5, 97.5], axis=0)
        table = pd.DataFrame({"value": sample.means, "ci_low": low, "ci_high": high}) * 100
        panel = {"dataset": sample.dataset, "split": sample.split, "category": sample.category}
        evaluated = evaluated_on(**panel, sizes=provenance["sizes"])
        tables.append(table.reset_index().assign(**panel, queries=sample.queries, evaluated_on=evaluated))
    if not tables:
        raise ValueError("there are no scores to summarise; run 06_retrieval with validation in evaluate.")
    results = pd.concat(tables, ignore_index=True).assign(study=study, backbone=provenance["backbone"])
    results.loc[results["method"].isin(other_models(results, provenance)), "backbone"] = UNSTATED
    return results[[*COLUMNS, "queries", "evaluated_on"]].round({"value": 4, "ci_low": 4, "ci_high": 4})


def other_models(table: pd.DataFrame, provenance: dict) -> list[str]:
    """Return the names in a table of results that are no methods of the study, but models that others trained."""
    names = table["method"].unique()
    return [name for name in names if name not in provenance.get("ranked", names)]


def evaluated_on(dataset: str, split: str, sizes: dict[str, dict], category: str = "") -> str:
    """Return how many queries and images of a split were evaluated, in words.

    Args:
        dataset: the title, as in "CIRCO".
        split: as in "val".
        sizes: those of `scores.provenance`.
        category: states this category alone, if it has a gallery of its own.
    """
    texts = {}
    for name, size in sizes.items():
        benchmark_dataset, benchmark_split, *own_category = name.split("/")
        if (benchmark_dataset, benchmark_split) == (name_of_title(dataset), split):
            texts["".join(own_category)] = size["evaluated_on"]
    chosen = {name: text for name, text in texts.items() if name in (category, "")} or texts
    return "; ".join(f"{name}: {text}" if name and len(chosen) > 1 else text for name, text in chosen.items())


def name_of_title(title: str) -> str:
    """Return the name of a data set: "circo" of "CIRCO". An own data set has its name as its title."""
    return TITLES.get(title, title)


def protocol_titled(title: str) -> Protocol:
    """Return how the data set of a title is scored; an own one may have a part of the metrics."""
    return protocol_of(name_of_title(title))


def main_panels(table: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the rows of MAIN whose data set is in a study's results or scores, then those of own data sets."""
    pairs = table[["dataset", "metric"]].drop_duplicates()
    return [panel for panel in MAIN if panel[0] in set(pairs["dataset"])] + [
        (dataset, OWN.validation, *panel)
        for dataset, metrics in pairs.groupby("dataset", sort=False)["metric"]
        for panel in OWN_MAIN
        if dataset not in TITLES and panel[-1] in set(metrics)
    ]


def lead_metrics(table: pd.DataFrame) -> dict[str, str]:
    """Return the first main metric of each data set in a study's results or scores."""
    return {dataset: metric for dataset, *_, metric in reversed(main_panels(table))}


def aspects(results: pd.DataFrame, dataset: str) -> set[str]:
    """Return the categories of a benchmark's results that share its gallery, such as CIRCO's semantic aspects."""
    protocol = protocol_titled(dataset)
    others = {*protocol.categories, *(category for _, category in protocol.metrics), AVERAGE}
    return set(results.loc[results["dataset"] == dataset, "category"]) - others


def scores_of_query(scores: pd.DataFrame, dataset: str, category: str, query: str) -> pd.DataFrame:
    """Return the scores of one query in percent: one row per method, one column per metric."""
    rows = scores[(scores["dataset"] == dataset) & (scores["query"] == query)]
    rows = rows[rows["category"].isin([category, "subset"])]
    table = rows.pivot(index="method", columns="metric", values="value") * 100
    return table.loc[rows["method"].unique(), rows["metric"].unique()].rename_axis(index=None, columns=None)


def write_csv(results: pd.DataFrame, path: Path) -> Path:
    """Write the long table with four decimals; equal numbers give equal bytes."""
    with atomic_write(path) as temporary:
        results.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")
    return path


def published_numbers() -> pd.DataFrame:
    """Return the numbers of papers in percent; the column `source` names the paper and its table."""
    with resources.files("searle_lib.evaluation").joinpath("published_results.csv").open() as file:
        return pd.read_csv(file)


def paper_table(results: pd.DataFrame, dataset: str, split: str) -> pd.DataFrame:
    """Return a split's results as papers print them, in percent: one row per method, columns (category, metric)."""
    long = results[(results["dataset"] == dataset) & (results["split"] == split)]
    protocol = protocol_titled(dataset)
    table = long.pivot(index="method", columns=["category", "metric"], values="value")
    pairs = [(category, name) for category in protocol.categories for name, under in protocol.metrics if not under]
    pairs += [(under, name) for name, under in protocol.metrics if under]
    pairs += [(AVERAGE, name) for name, _ in protocol.metrics] if len(protocol.categories) > 1 else []
    rest = sorted(pair for pair in table.columns if pair not in pairs)
    table = table[[pair for pair in [*pairs, *rest] if pair in table.columns]]
    return table.loc[list(dict.fromkeys(long["method"]))]


def resample(scores: pd.DataFrame, resamples: int, seed: int) -> Iterator[Resampled]:
    """Yield the means and their draws for every data set, split and category. Raises as `summarise` does.

    The average follows if the scores have all categories of a data set with several.
    """
    for (dataset, split), of_split in scores.groupby(["dataset", "split"], sort=False):
        samples = {
            category: _resample(of_category, dataset, split, category, resamples, seed)
            for category, of_category in of_split.groupby("category", sort=False)
        }
        yield from samples.values()
        categories = protocol_titled(dataset).categories
        if len(categories) > 1 and samples.keys() >= set(categories):
            yield _average([samples[category] for category in categories])


def draw_means(table: pd.DataFrame, name: str, resamples: int, seed: int) -> np.ndarray:
    """Return the means [resamples, columns] of a table over bootstrap resamples of its rows, the queries.

    Args:
        table: a score per query (row), method and metric (columns).
        name: of the set of queries; with the seed it decides the resamples.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: if a method lacks a score of a query.
    """
    if table.isna().any(axis=None):
        method, metric = table.columns[table.isna().any()][0]
        raise ValueError(f"{name} has queries without {metric} of {method}; run 06_retrieval again.")
    queries, random = len(table), np.random.default_rng(randomness.keys(seed, "bootstrap", [name])[0])
    weights = random.multinomial(queries, np.full(queries, 1 / queries), size=resamples)  # [resamples, queries]
    return weights @ table.to_numpy() / queries


def signed(points: float) -> str:
    """Return points with their sign and one decimal; zero has no sign."""
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text


def _resample(scores: pd.DataFrame, dataset: str, split: str, category: str, resamples: int, seed: int) -> Resampled:
    table = scores.pivot(index="query", columns=["method", "metric"], values="value")
    draws = draw_means(table, f"{dataset}/{split}/{category}", resamples, seed)
    return Resampled(dataset, split, category, table.mean(), draws, len(table))


def _average(samples: list[Resampled]) -> Resampled:
    """The plain mean of several categories."""
    first = samples[0]
    order = first.means.index
    means = sum(sample.means[order] for sample in samples) / len(samples)
    draws = np.mean([sample.draws[:, sample.means.index.get_indexer(order)] for sample in samples], axis=0)
    return Resampled(first.dataset, first.split, AVERAGE, means, draws, sum(sample.queries for sample in samples))
