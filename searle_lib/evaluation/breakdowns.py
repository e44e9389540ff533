"""Break a study's scores down: over k, by caption length, by how near reference and target are, and by category.

Takes the rankings and the scores of single queries, benchmarks and embeddings. Returns long tables for figures, in
percent, with the data set's title. Tables by group share the columns COLUMNS.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import Benchmark
from searle_lib.data.protocols import protocol_of
from searle_lib.evaluation.intervals import (
    Resampled,
    aspects,
    draw_means,
    lead_metrics,
    name_of_title,
    protocol_titled,
)
from searle_lib.evaluation.rankings import DEPTH
from searle_lib.store.records import Study

COLUMNS = ["dataset", "group", "queries", "method", "metric", "value", "ci_low", "ci_high"]
TERCILES = (1 / 3, 2 / 3)


def scored_rankings(rankings: pd.DataFrame) -> pd.DataFrame:
    """Return the rankings of queries with public targets, with the title of the data set in place of its name."""
    public = rankings[rankings["rank"] >= 0]
    return public.assign(
        dataset=public["dataset"].map({name: protocol_of(name).title for name in public["dataset"].unique()})
    )


def recall_curves(rankings: pd.DataFrame, depth: int = DEPTH) -> pd.DataFrame:
    """Return the share of queries that have a target among the first k images, for k = 1 to `depth`.

    On FashionIQ and CIRR this is R@k; FashionIQ's categories weigh equally. On CIRCO any of a query's targets counts,
    whereas CIRCO's R@k counts one.

    Args:
        rankings: as `scores.read_scores` returns them.
        depth: the largest k.

    Returns:
        Columns dataset, method, k and value, in percent.
    """
    table = scored_rankings(rankings)
    cuts = pd.Index(np.arange(1, depth + 1), name="k")
    hits = pd.DataFrame(table["rank"].to_numpy()[:, None] < cuts.to_numpy(), columns=cuts, index=table.index)
    keys = [table["dataset"], table["method"]]
    by_category = hits.groupby([*keys, table["category"]], sort=False).mean()
    curves = by_category.groupby(["dataset", "method"], sort=False).mean() * 100
    return curves.stack().rename("value").reset_index()


def query_properties(benchmarks: Sequence[Benchmark], galleries: Mapping[str, Embeddings]) -> pd.DataFrame:
    """Return what the scores are broken down by, a row per query with a public target.

    Args:
        benchmarks: those without public targets are left out.
        galleries: the embeddings of their galleries, by name.

    Returns:
        Columns dataset (title), category, query, words and similarity. `words` counts the words of the relative
        caption, both sentences together on FashionIQ. `similarity` is the cosine between the embeddings of reference
        and target; on CIRCO the target is the one that the query was written for.
    """
    parts = [pd.DataFrame(columns=["dataset", "category", "query", "words", "similarity"])]
    for benchmark in (one for one in benchmarks if one.is_scored):
        queries, gallery = benchmark.queries, galleries[benchmark.gallery_name]
        rows = [gallery.rows(queries[column].tolist()) for column in ("reference", "target")]
        cosines = (gallery.unit[rows[0]] * gallery.unit[rows[1]]).sum(1)  # [Q]
        words = [len(sentences[0].split()) for sentences in queries["sentences"]]
        columns = {"query": queries["query"], "words": words, "similarity": cosines.numpy()}
        titles = {"dataset": benchmark.protocol.title, "category": benchmark.category}
        parts.append(pd.DataFrame(columns).assign(**titles)[parts[0].columns])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def read_properties(study: Study) -> pd.DataFrame:
    """Return `query_properties` of a study. Raises as `Study.artefact` does."""
    scored_benchmarks = [one for one in benchmarks.read(study) if one.is_scored]
    names = {one.gallery_name for one in scored_benchmarks}
    return query_properties(scored_benchmarks, {name: embeddings.read(study, name) for name in names})


def by_tercile(
    scores: pd.DataFrame, properties: pd.DataFrame, name: str, resamples: int = 2000, seed: int = 42
) -> pd.DataFrame:
    """Return each data set's first main metric for the lowest, middle and highest third of a property of the queries.

    Equal values stay in one group, so that groups may differ in size, and there may be fewer than three. `group` is the
    range of the group's values, as in "4 to 7".

    Args:
        scores: long form, as `scores.read_scores` returns them.
        properties: what `query_properties` returns.
        name: "words" or "similarity".
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        Columns COLUMNS, groups in rising order.

    Raises:
        ValueError: if a query with scores has no row in `properties`, or a method lacks a score of a query.
    """
    parts = [pd.DataFrame(columns=["dataset", "category", "query", "group"])]
    for _, of_dataset in properties.groupby("dataset", sort=False):
        values = of_dataset[name].astype(float)
        thirds = np.searchsorted(np.unique(values.quantile(TERCILES)), values)  # 0 for the lowest third
        digits = 0 if (values % 1 == 0).all() else 2
        for third in np.unique(thirds):
            of_third = values[thirds == third]
            ends = dict.fromkeys(f"{end:.{digits}f}" for end in (of_third.min(), of_third.max()))
            parts.append(of_dataset.loc[of_third.index, parts[0].columns[:3]].assign(group=" to ".join(ends)))
    lead = lead_scores(scores)
    table = pd.concat(parts[1:] or parts).merge(lead, on=["dataset", "category", "query"])
    if len(table) < len(lead):
        raise ValueError("queries with scores are in no benchmark of the study; run 06_retrieval again.")
    return group_means(resample_groups(table, resamples, seed))


def by_category(results: pd.DataFrame) -> pd.DataFrame:
    """Return FashionIQ's first main metric by category, and CIRCO's mAP@10 by aspect, in the columns COLUMNS.

    The categories of an own data set are as CIRCO's aspects.

    Args:
        results: the study's results, as `intervals.summarise` returns them.
    """
    leads, parts = lead_metrics(results), [results.iloc[:0]]
    for dataset, rows in results.groupby("dataset", sort=False):
        categories = protocol_titled(dataset).categories
        if len(categories) > 1:
            parts.append(rows[rows["category"].isin(categories) & (rows["metric"] == leads[dataset])])
        else:
            parts.append(rows[rows["category"].isin(aspects(results, dataset))])
    table = pd.concat(parts[1:] or parts, ignore_index=True)
    return table.rename(columns={"category": "group"})[COLUMNS]


def rank_pairs(rankings: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return each query's rank of its first target under two methods, from 0, for a scatter.

    Args:
        rankings: as `scores.read_scores` returns them.
        first: a method.
        second: another method.

    Returns:
        Columns dataset (title), category, query, first and second, for queries with public targets.

    Raises:
        ValueError: if a method has no rankings.
    """
    table, methods = scored_rankings(rankings), list(rankings["method"].unique())
    for method in (first, second):
        if method not in methods:
            raise ValueError(f"there are no rankings of {method}; choose from {', '.join(methods)}.")
    keys = ["dataset", "category", "query"]
    ranks = [table.loc[table["method"] == method, [*keys, "rank"]] for method in (first, second)]
    ranks = [part.rename(columns={"rank": name}) for part, name in zip(ranks, ("first", "second"), strict=True)]
    return ranks[0].merge(ranks[1], on=keys)


def lead_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of each data set's first main metric, every query and method once."""
    leads = lead_metrics(scores)
    panels = [(title, name, metric) for title, metric in leads.items() for name in protocol_titled(title).categories]
    return scores[pd.MultiIndex.from_frame(scores[["dataset", "category", "metric"]]).isin(panels)]


def group_means(samples: Iterable[Resampled]) -> pd.DataFrame:
    """Return the means of groups of queries with their 95 % intervals, in the columns COLUMNS, in percent."""
    tables = [pd.DataFrame(columns=COLUMNS)]
    for sample in samples:
        low, high = np.percentile(sample.draws, [2.5, 97.5], axis=0)
        table = pd.DataFrame({"value": sample.means, "ci_low": low, "ci_high": high}) * 100
        facts = {"dataset": sample.dataset, "group": sample.category, "queries": sample.queries}
        tables.append(table.reset_index().assign(**facts)[COLUMNS])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def resample_groups(scores: pd.DataFrame, resamples: int, seed: int) -> Iterator[Resampled]:
    """Yield the means of each data set and group, and their draws over bootstrap resamples of the group's queries.

    All queries of a group weigh equally, in FashionIQ too. All methods share the resamples of a group.

    Args:
        scores: long form, with a column `group`, which becomes the category of the Resampled.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: if a method lacks a score of a query.
    """
    for (dataset, split, group), rows in scores.groupby(["dataset", "split", "group"], sort=False):
        table = rows.pivot(index=["category", "query"], columns=["method", "metric"], values="value")
        table = table[pd.MultiIndex.from_frame(rows[["method", "metric"]].drop_duplicates())]  # the study's order
        draws = draw_means(table, f"{name_of_title(dataset)}/{split}/{group}", resamples, seed)
        yield Resampled(dataset, split, group, table.mean(), draws, len(table))
