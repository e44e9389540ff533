"""Compare every pair of methods on every main metric: which is ahead, by how much, and whether that is certain.

Takes the scores of single queries and a study's results. Returns one table of paired comparisons, in points of percent,
and what reports say about it: groups of methods that cannot be told from the best, small matrices, and sentences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from searle_lib.evaluation.intervals import (
    AVERAGE,
    Resampled,
    lead_metrics,
    main_panels,
    protocol_titled,
    resample,
    signed,
)
from searle_lib.store import randomness

COLUMNS = [
    *("dataset", "split", "category", "metric", "first", "second", "difference", "low", "high"),
    *("won", "tied", "lost", "p", "p_holm", "certain", "matters", "family"),
]
PERMUTATIONS = 19_999
CHUNK = 1000  # permutations at once; bounds memory
LEVEL = 0.05  # a corrected p below it is certain
RELEVANT = 1.0  # points; a smaller difference may be certain, but it matters little
MARKS = {"●": "certain, at least one point", "○": "certain, less than one point", "": "not certain"}


def pairs(scores: pd.DataFrame, resamples: int = 2000, seed: int = 42) -> pd.DataFrame:
    """Compare every unordered pair of methods on every main metric, over the same queries.

    `difference` is `first` minus `second` in points; `low` and `high` are the ends of its paired 95 % bootstrap
    interval. `won`, `tied` and `lost` count queries, as seen from `first`. `p` is the two-sided p of a paired
    permutation test, and `p_holm` is corrected over the whole table, whose number of rows is `family`. A difference is
    `certain` if its interval leaves out zero and p_holm < 0.05, and it `matters` from one point on. FashionIQ's average
    weighs its categories equally; its `won`, `tied` and `lost` count the queries of all categories.

    Args:
        scores: long form, as `scores.read_scores` returns them.
        resamples: number of bootstrap resamples.
        seed: of the resampling and of the permutations.

    Returns:
        One row per pair and main metric, with the columns COLUMNS, in the order of main metrics and of methods.
        Empty if there are no scores or only one method.

    Raises:
        ValueError: if a method lacks a score of a query.
    """
    order = list(scores["method"].unique())
    scores = _main_scores(scores)
    samples = {(sample.dataset, sample.split, sample.category): sample for sample in resample(scores, resamples, seed)}
    rows = []
    for *panel, metric in main_panels(scores):
        sample = samples.get(tuple(panel))
        if sample is not None and metric in sample.main_metrics:
            rows += _compare(sample, metric, scores, order, seed)
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name in (rows[0] if rows else COLUMNS)])
    table["p_holm"] = holm(table["p"].to_numpy(float))
    table["certain"] = ((table["low"] > 0) | (table["high"] < 0)) & (table["p_holm"] < LEVEL)
    table["matters"] = table["difference"].abs().astype(float).round(9) >= RELEVANT
    return table.assign(family=len(table))[COLUMNS]


def permutation_p(differences: np.ndarray, key: int, permutations: int = PERMUTATIONS) -> np.ndarray:
    """Return the two-sided p of paired permutation tests: two methods' scores of a query are swapped at random.

    A swap turns the sign of the query's difference. p is the share of random signs whose sum is at least as far from
    zero as the observed sum; the observed signs count as one of them.

    Args:
        differences: [Q, P] float64, the difference of each query in P comparisons, times the query's weight.
        key: seeds the random signs, which all comparisons share.
        permutations: number of random signs for each query.

    Returns:
        [P] float64.
    """
    random = np.random.default_rng(key)
    total = differences.sum(0)
    threshold = np.abs(total) - 1e-9 * np.abs(differences).sum(0)  # equal sums may differ in their last digits
    rows, sizes = np.unique(differences, axis=0, return_counts=True)  # scores of 0 and 1 leave few distinct rows
    counts = np.zeros(len(total), dtype=np.int64)
    for start in range(0, permutations, CHUNK):
        positive = _coins(random, sizes, min(CHUNK, permutations - start)).astype(np.float64)  # [CHUNK, rows]
        counts += (np.abs(2 * positive @ rows - total) >= threshold).sum(0)
    return (1 + counts) / (1 + permutations)


def holm(p: np.ndarray) -> np.ndarray:
    """Return p values [P] corrected by Holm's method, which bounds the chance of any false finding in the family."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(steps, 1.0)
    return result


def best_groups(table: pd.DataFrame, pairs: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """Return for each data set and main metric the best method, then those that cannot be told from it, by mean.

    Args:
        table: the study's results, or its scores of single queries.
        pairs: what `pairs` returns.
    """
    certain = _both_ways(pairs)["certain"]
    groups = {}
    for dataset, metric, means in _main_means(table):
        best, *others = means.index
        groups[dataset, metric] = [best, *(name for name in others if not certain[dataset, metric, best, name])]
    return groups


def matrix(pairs: pd.DataFrame, dataset: str, metric: str) -> pd.DataFrame:
    """Return by how many points the method of a row is ahead of the method of a column, as text with a mark of MARKS.

    Args:
        pairs: what `pairs` returns.
        dataset: the title, as in "CIRCO".
        metric: a main metric of the data set.
    """
    rows = pairs[(pairs["dataset"] == dataset) & (pairs["metric"] == metric)]
    methods = list(dict.fromkeys([*rows["first"], *rows["second"]]))
    table = pd.DataFrame("", index=methods, columns=methods)
    for (*_, row, column), pair in _both_ways(rows).iterrows():
        mark = ("●" if pair["matters"] else "○") if pair["certain"] else ""
        table.loc[row, column] = f"{signed(pair['difference'])} {mark}".rstrip()
    return table


def verdicts(pairs: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    """Return one sentence per main metric: which method is ahead, by how much, and which cannot be told from it.

    Sentences that name one certain winner come first, the larger lead before the smaller. Ties follow, between few
    methods before ties between many.

    Args:
        pairs: what `pairs` returns.
        results: the study's results, as `intervals.summarise` returns them.
    """
    return [_sentence(verdict.clause + verdict.details) for verdict in _verdicts(pairs, results)]


def headline(pairs: pd.DataFrame, results: pd.DataFrame) -> str:
    """Return one sentence on the whole study, with a clause per data set: who is ahead, and whether that is certain.

    Each data set is represented by its first main metric. Takes what `verdicts` takes.
    """
    lead_results = results[results["metric"] == results["dataset"].map(lead_metrics(results))]
    methods = list(lead_results["method"].unique())
    if not methods:
        return "No query of this study was scored here."
    if len(methods) == 1:
        values = [f"{metric} {means.iloc[0]:.1f} on {dataset}" for dataset, metric, means in _main_means(lead_results)]
        return f"{methods[0]} is the only method of this study; it reaches {_join(values)}."
    verdicts = _verdicts(pairs, lead_results)
    sentence = "; ".join(verdict.clause for verdict in verdicts)
    if len(verdicts) > 1 and verdicts[0].group > 1 and len({verdict.best for verdict in verdicts}) == 1:
        best = f"{verdicts[0].best} has the highest mean in the first metric of every data set"
        sentence = f"{best}, but none of these leads is certain: {sentence}"
    return _sentence(sentence)


def _main_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows that the main metrics need; the others would only cost resampling."""
    panels = [
        (dataset, split, name, metric)
        for dataset, split, category, metric in main_panels(scores)
        for name in (protocol_titled(dataset).categories if category == AVERAGE else [category])
    ]
    return scores[pd.MultiIndex.from_frame(scores[["dataset", "split", "category", "metric"]]).isin(panels)]


def _compare(sample: Resampled, metric: str, scores: pd.DataFrame, order: Sequence[str], seed: int) -> list[dict]:
    """The rows of one main metric, without what depends on the whole family; `scores` holds main metrics only."""
    panel = {"dataset": sample.dataset, "split": sample.split, "category": sample.category, "metric": metric}
    rows = scores[(scores["dataset"] == sample.dataset) & (scores["split"] == sample.split)]
    rows = rows[rows["metric"] == metric]
    table = rows.pivot(index=["category", "query"], columns="method", values="value")
    names = list(combinations([method for method in order if method in table], 2))
    if not names:
        return []
    differences = np.stack([(table[first] - table[second]).to_numpy() for first, second in names], axis=1)  # [Q, P]
    categories = table.index.get_level_values("category")
    sizes = categories.value_counts()
    weights = 1 / (len(sizes) * sizes.loc[categories].to_numpy()[:, None])  # [Q, 1]
    key = randomness.keys(seed, "permutation", ["/".join(panel.values())])[0]
    p = permutation_p(differences * weights, key)
    comparisons = []
    for column, (first, second) in enumerate(names):
        points = dict(zip(("difference", "low", "high"), sample.difference(metric, first, second), strict=True))
        signs = np.sign(differences[:, column])
        counts = {name: int((signs == sign).sum()) for name, sign in (("won", 1), ("tied", 0), ("lost", -1))}
        comparisons.append(panel | {"first": first, "second": second} | points | counts | {"p": p[column]})
    return comparisons


def _coins(random: np.random.Generator, sizes: np.ndarray, repeats: int) -> np.ndarray:
    """How many of `sizes` [R] fair coins show heads: [repeats, R] int64, by counting the bits of random words."""
    words = -(-sizes // 64)
    ends = np.cumsum(words)
    masks = np.full(ends[-1], 2**64 - 1, dtype=np.uint64)
    masks[ends - 1] >>= (64 * words - sizes).astype(np.uint64)  # the last word of each has fewer coins
    bits = random.integers(0, 2**64, size=(repeats, ends[-1]), dtype=np.uint64) & masks
    return np.add.reduceat(np.bitwise_count(bits), ends - words, axis=1, dtype=np.int64)


def _main_means(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series]]:
    """Yield data set, metric and the methods' means, best first, for each main metric that a table has."""
    order = list(table["method"].unique())
    for dataset, split, category, metric in main_panels(table):
        rows = table[(table["dataset"] == dataset) & (table["split"] == split) & (table["metric"] == metric)]
        if category != AVERAGE or AVERAGE in set(rows["category"]):  # scores have no average, results have it
            rows = rows[rows["category"] == category]
        if len(rows):
            means = rows.groupby(["method", "category"])["value"].mean().groupby("method").mean()
            means = means.loc[[method for method in order if method in means.index]]
            yield dataset, metric, means.sort_values(ascending=False, kind="stable")


def _both_ways(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every pair in both orders, by data set, metric, first and second."""
    mirror = pairs.rename(columns={"first": "second", "second": "first", "won": "lost", "lost": "won"})
    mirror = mirror.assign(difference=-pairs["difference"], low=-pairs["high"], high=-pairs["low"])
    return pd.concat([pairs, mirror]).set_index(["dataset", "metric", "first", "second"]).sort_index()


@dataclass(frozen=True)
class _Verdict:
    """What is to say of one main metric: the best method, the size of its group, its lead, and the words."""

    best: str
    group: int
    lead: float
    clause: str
    details: str


def _verdicts(pairs: pd.DataFrame, results: pd.DataFrame) -> list[_Verdict]:
    """A verdict for each main metric of `results`, the one that says most first."""
    groups, ahead = best_groups(results, pairs), _both_ways(pairs)
    verdicts = []
    for dataset, metric, means in _main_means(results):
        group = groups[dataset, metric]
        of_metric = ahead.loc[dataset, metric] if len(means) > 1 else ahead
        words = _tie if len(group) > 1 else _lead if len(means) > 1 else _only_method
        clause, details = words(dataset, metric, means, group, of_metric)
        lead = of_metric.loc[(means.index[0], means.index[1]), "difference"] if len(means) > 1 else 0.0
        verdicts.append(_Verdict(group[0], len(group), lead, clause, details))
    return sorted(verdicts, key=lambda verdict: (verdict.group, -verdict.lead))


def _lead(dataset: str, metric: str, means: pd.Series, group: list[str], ahead: pd.DataFrame) -> tuple[str, str]:
    """The words for one certain winner, against the method with the second highest mean."""
    best, second = means.index[:2]
    lead = ahead.loc[(best, second)]
    clause = f"{best} is certainly ahead on {dataset}, {metric} {means[best]:.1f} against {means[second]:.1f} for "
    return f"{clause}{second}, {_interval(lead)}{'' if lead['matters'] else ', less than one point'}", ""


def _tie(dataset: str, metric: str, means: pd.Series, group: list[str], ahead: pd.DataFrame) -> tuple[str, str]:
    """The words for several methods of which none is certainly the best."""
    best, *level = group
    if any(ahead["certain"][pair] for pair in combinations(group, 2)):
        clause = (
            f"on {dataset} {metric}, {best} has the highest mean ({means[best]:.1f}), but {_join(level)} cannot be "
        )
        clause += "told from it"
    else:
        values = [f"{method} ({means[method]:.1f})" for method in group]
        clause = f"on {dataset} {metric}, {_join(values)} cannot be told apart"
    details = f", {_interval(ahead.loc[(best, *level)])}" if len(level) == 1 else ""
    behind = [f"{method} ({_interval(ahead.loc[(best, method)])})" for method in means.index if method not in group]
    details += f"; {best} is certainly ahead of {_join(behind)}" if behind else ""
    return clause, details


def _only_method(dataset: str, metric: str, means: pd.Series, group: list[str], ahead: pd.DataFrame) -> tuple[str, str]:
    """The words for a study of one method."""
    return f"{group[0]} reaches {metric} {means.iloc[0]:.1f} on {dataset}; no other method was compared", ""


def _interval(pair: pd.Series) -> str:
    """As in "+4.7 [1.4, 8.0]"."""
    low, high = (signed(pair[name]).removeprefix("+") for name in ("low", "high"))
    return f"{signed(pair['difference'])} [{low}, {high}]"


def _join(names: Sequence[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _sentence(clause: str) -> str:
    """A clause as a sentence; a method's name keeps its letters."""
    return f"{clause[0].upper()}{clause[1:]}."
