"""A study's tables of results: one a data set in the form that papers print, with published numbers apart below.

Takes the long table that `intervals.summarise` returns, and the provenance that `scores.provenance` returns. This
module says what a table holds; `formats` says how it looks as HTML, LaTeX, Markdown and CSV.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from searle_lib.evaluation import tuning
from searle_lib.evaluation.intervals import (
    TITLES,
    UNSTATED,
    aspects,
    evaluated_on,
    main_panels,
    name_of_title,
    other_models,
    paper_table,
    protocol_titled,
    published_numbers,
)
from searle_lib.evaluation.methods import METHODS
from searle_lib.reporting import formats, pages, templates
from searle_lib.reporting.formats import TIE, Cell, Section, Table
from searle_lib.store.artefacts import atomic_write

Groups = Mapping[tuple[str, str], Sequence[str]]  # by data set and metric: the best method, then those that tie with it

BOUNDS = ["value", "ci_low", "ci_high"]
MARKS = {1: "best", 2: "second"}  # by rank
KINDS = {"FashionIQ": ("R", "mAP"), "CIRCO": ("mAP", "R")}  # a table each; the papers print the first
L14 = "ViT-L/14"
PROTOCOL_NOTES = {
    "FashionIQ": "both captions joined in both orders, the reference stays in the gallery",
    "CIRR": "the reference takes no rank, Rsubset ranks the group of six without it",
    "CIRCO": "the reference stays in the gallery, mAP counts all targets and R the annotated one",
}
OWN_NOTE = "the reference takes no rank, mAP counts all targets and R the first one"
DRAWN = "; do not compare with drawn images"
ORIGINS = {"published": "Published", "reproduced": "Reproduced in the design document"}
REMARK = re.compile(r"\s*\((another source prints [^)]*)\)")


def table(
    results: pd.DataFrame, dataset: str, split: str, provenance: dict, kind: str = "", groups: Groups | None = None
) -> HTML:
    """Show a benchmark's results by method, with the published numbers of the same metrics below.

    Args:
        results: long table of `intervals.summarise`.
        dataset: title of the benchmark, as in "CIRCO".
        split: as in "val".
        provenance: what `scores.provenance` returns.
        kind: "R", "Rsubset" or "mAP" to show only the metrics of that kind.
        groups: what `significance.best_groups` returns; marks the methods that cannot be told from the best.
    """
    return HTML(formats.to_html(_by_method(results, dataset, split, provenance, kind, groups or {})))


def aspect_table(results: pd.DataFrame, dataset: str, split: str, provenance: dict) -> HTML:
    """Show mAP by semantic aspect: a row for each aspect, a column for each method."""
    return HTML(formats.to_html(_by_aspect(results, dataset, split, provenance)))


def of_study(results: pd.DataFrame, provenance: dict, groups: Groups | None = None) -> list[HTML]:
    """Return the tables of every benchmark: recall and mAP apart, CIRCO's mAP also by aspect."""
    return [HTML(formats.to_html(each)) for each in _of_study(results, provenance, groups or {})]


def write_files(results: pd.DataFrame, provenance: dict, groups: Groups | None, folder: Path) -> list[Path]:
    """Write each table of `of_study` as .tex, .md, .csv and .html into a folder, and return the files."""
    files = []
    for each in _of_study(results, provenance, groups or {}):
        texts = {"tex": formats.to_latex(each), "md": formats.to_markdown(each), "csv": formats.to_csv(each)}
        for ending, text in texts.items():
            with atomic_write(folder / f"{each.name}.{ending}") as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        pages.write(folder / f"{each.name}.html", each.title, (), formats.to_html(each))
        files += [folder / f"{each.name}.{ending}" for ending in (*texts, "html")]
    return files


def sentences(lines: list[str]) -> HTML:
    """Show sentences as a list."""
    return HTML(templates.render("sentences", sentences=lines))


def _of_study(results: pd.DataFrame, provenance: dict, groups: Groups) -> Iterator[Table]:
    for dataset in results["dataset"].unique():
        metrics = results.loc[results["dataset"] == dataset, "metric"]
        for kind in KINDS.get(dataset, ("",)):
            if metrics.str.startswith(f"{kind}@" if kind else "").any():
                yield _by_method(results, dataset, "val", provenance, kind, groups)
        if aspects(results, dataset):
            yield _by_aspect(results, dataset, "val", provenance)


def _by_method(results: pd.DataFrame, dataset: str, split: str, provenance: dict, kind: str, groups: Groups) -> Table:
    """Return the table of one kind of metrics: the study's numbers, their distance to papers, and those of papers."""
    bounds = [paper_table(results.assign(value=results[bound]), dataset, split) for bound in BOUNDS]
    others = aspects(results, dataset)
    columns = [(c, m) for c, m in bounds[0] if c not in others and m.startswith(f"{kind}@" if kind else "")]
    bounds = [bound[columns] for bound in bounds]
    tested = [(c, m) for c, m in columns if (dataset, split, c, m) in main_panels(results) and (dataset, m) in groups]
    ties = pd.DataFrame(False, bounds[0].index, bounds[0].columns)
    for category, metric in tested:
        ties[category, metric] = ties.index.isin(groups[dataset, metric][1:])
    conditions = _conditions(results, dataset, split, provenance)
    cells = _cells(*bounds, _marks(bounds[0]), ties).rename(columns=_groups_of(dataset), level=0)
    own = Section("study", _heading(results, provenance), _rows(cells), [conditions] * len(cells))
    differences = _differences(bounds, dataset, split, provenance, other_models(results, provenance))
    note = _legend("queries", "column") + _tie_legend([_column(dataset, *c) for c in tested]) + f" {conditions}."
    if provenance["world"] == "real" and not differences and dataset in TITLES:
        note += f" No difference is shown: no published number is of {dataset} {split}, this gallery and this CLIP."
    name = dataset if kind == KINDS.get(dataset, ("",))[0] else f"{dataset}-{kind}"
    title = f"{dataset} {split}" + (f", {'recall' if kind == 'R' else kind}" if kind else "")
    papers = _papers(dataset, bounds[0].columns, provenance["world"])
    return Table(name, title, "method", [own, *differences, *papers], note)


def _by_aspect(results: pd.DataFrame, dataset: str, split: str, provenance: dict) -> Table:
    """Return the table with a row for each aspect and a column for each method."""
    rows = results[(results["dataset"] == dataset) & (results["split"] == split)]
    rows = rows[rows["category"].isin(aspects(results, dataset))]
    frames = rows.assign(category=rows["category"].str.replace("_", " ")).pivot(index="category", columns="method")
    bounds = [frames[bound][rows["method"].unique()] for bound in BOUNDS]
    cells = _cells(*bounds, _marks(bounds[0].T).T, bounds[0].isna())
    cells.columns = pd.MultiIndex.from_product([[""], cells.columns])
    cells = _rows(cells, [f"{count} queries" for count in frames["queries"].iloc[:, 0]])
    conditions = _conditions(results, dataset, split, provenance)
    own = Section("study", _heading(results, provenance), cells, [conditions] * len(cells))
    kind, noun = ("semantic aspect", "aspect") if dataset in TITLES else ("category", "category")
    title = f"{dataset} {split}, {rows['metric'].iloc[0]} by {kind}"
    note = _legend(f"the {noun}'s queries", "row") + f" {conditions}."
    return Table(f"{dataset}-aspects", title, noun, [own], note)


def _differences(
    bounds: Sequence[pd.DataFrame], dataset: str, split: str, provenance: dict, others: Sequence[str]
) -> list[Section]:
    """Return how far a real-data study is from the published values of the same method, CLIP, split and gallery.

    Args:
        bounds: values, and the bounds of their intervals: one row per method.
        dataset: the title.
        split: as in "val".
        provenance: what `scores.provenance` returns.
        others: the rows of other models, which have no CLIP in common with a paper.
    """
    backbone, own = provenance["backbone"], bounds[0]
    if provenance["world"] != "real" or "union gallery" in evaluated_on(dataset, split, provenance["sizes"]):
        return []
    numbers = published_numbers()
    for name, value in {"dataset": dataset, "split": split, "backbone": backbone, "origin": "published"}.items():
        numbers = numbers[numbers[name] == value]
    names = pd.Series(
        own.index.map(lambda name: (backbone == L14 and name in METHODS and METHODS[name].name_on_large) or name),
        own.index,
    )
    published = numbers.pivot(index="method", columns=["category", "metric"], values="value")
    published = published.reindex(index=names, columns=own.columns).set_axis(own.index)
    rows = published.notna().any(axis=1) & ~own.index.isin(others)
    if not rows.any():
        return []
    cells = _rows(
        _cells(*(bound[rows] - published[rows] for bound in bounds)).rename(columns=_groups_of(dataset), level=0)
    )
    sources = _by_paper(numbers).groupby("method")["paper"].unique().map("; ".join)[names[rows]].tolist()
    heading = f"Difference to the published value, {backbone} on {dataset} {split}, in points"
    note = "This study minus the paper. The interval is that of this study; the published value counts as exact."
    return [Section("difference", heading, cells, sources, note)]


def _papers(dataset: str, columns: pd.MultiIndex, world: str) -> Iterator[Section]:
    """Yield the numbers of papers in these columns, one section for each origin and split."""
    numbers = published_numbers()
    numbers = numbers[numbers["dataset"] == dataset]
    numbers = numbers[pd.MultiIndex.from_frame(numbers[["category", "metric"]]).isin(columns)]
    reference = {paper: number for number, paper in enumerate(_by_paper(numbers)["paper"].unique(), 1)}
    for (split, origin), group in numbers.groupby(["split", "origin"]):
        papers = _by_paper(group)
        values = group.pivot(index=["method", "backbone"], columns=["category", "metric"], values="value")
        of_row = papers.groupby(["method", "backbone"])["paper"].unique()[values.index]
        cells = _cells(values.reindex(columns=columns)).rename(columns=_groups_of(dataset), level=0)
        cells.index = pd.MultiIndex.from_tuples(
            (method, backbone.replace(UNSTATED, "backbone unstated"), str(sorted(map(reference.get, names))))
            for (method, backbone), names in of_row.items()
        )
        remarks = [
            f"{row.method} ({row.backbone}) {_column(dataset, row.category, row.metric)}: {remark}."
            for row in group.itertuples()
            for remark in REMARK.findall(row.source)
        ]
        note = " ".join([*(f"[{reference[paper]}] {paper}." for paper in papers["paper"].unique()), *remarks])
        heading = f"{ORIGINS[origin]}, on the real {dataset} {split}{DRAWN if world == 'miniature' else ''}"
        yield Section(origin, heading, cells, list(map("; ".join, of_row)), note, digits=2)


def _by_paper(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each number and paper that prints it, with the paper and its table in the column `paper`."""
    papers = numbers["source"].str.replace(REMARK, "", regex=True).str.split("; ")
    return numbers.assign(paper=papers).explode("paper")


def _cells(*fields: pd.DataFrame) -> pd.DataFrame:
    """Return a Cell for each value; the fields of a Cell come in their order, at least the values."""
    rows = zip(*(frame.to_numpy().ravel().tolist() for frame in fields), strict=True)
    cells = np.array([Cell(*row) for row in rows], object).reshape(fields[0].shape)
    return pd.DataFrame(cells, fields[0].index, fields[0].columns)


def _rows(cells: pd.DataFrame, details: Sequence[str] = ()) -> pd.DataFrame:
    """Return the same cells with rows (name, detail, reference), as a Section has them."""
    details = details or [""] * len(cells)
    return cells.set_axis(pd.MultiIndex.from_tuples(zip(cells.index, details, [""] * len(cells), strict=True)))


def _marks(values: pd.DataFrame) -> pd.DataFrame:
    """Return "best" and "second" for the best values of each column, by the digits that are printed."""
    ranks = values.map(lambda value: float(f"{value:.1f}")).rank(ascending=False, method="dense")
    return ranks.map(lambda rank: MARKS.get(rank, ""))


def _groups_of(dataset: str) -> dict[str, str]:
    """Return the new name of each category that is no group of columns: a data set without categories needs none."""
    return {} if len(protocol_titled(dataset).categories) > 1 else {"all": "", "subset": ""}


def _column(dataset: str, category: str, metric: str) -> str:
    return f"{_groups_of(dataset).get(category, category)} {metric}".strip()


def _heading(results: pd.DataFrame, provenance: dict) -> str:
    drawn = ", on the drawn images of a miniature world" if provenance["world"] == "miniature" else ""
    return f"This study, {results['study'].iloc[0]}{drawn}"


def _legend(sample: str, line: str) -> str:
    return (
        f"Percent; with each value its 95 % bootstrap interval over {sample}. In each {line} the best is bold and the"
        " second best underlined."
    )


def _tie_legend(columns: Sequence[str]) -> str:
    if not columns:
        return ""
    return (
        f" {TIE} These queries cannot tell it from the best of its column: the paired 95 % interval of the difference"
        f" contains zero, or p is at least 0.05 after Holm's correction. Tested: {', '.join(columns)}."
    )


def _conditions(results: pd.DataFrame, dataset: str, split: str, provenance: dict) -> str:
    """Say how much of the data set the numbers cover, by which protocol, and which CLIP they come from."""
    rows = results[(results["dataset"] == dataset) & (results["split"] == split)]
    parts = [
        f"{dataset} {split}, n = {rows['queries'].max():,}: {evaluated_on(dataset, split, provenance['sizes'])}",
        PROTOCOL_NOTES.get(dataset, OWN_NOTE),
        f"CLIP {provenance['backbone']} (sha256 of its weights {provenance['clip_sha256'][:8]}…)",
    ]
    others = ", ".join(other_models(rows, provenance))
    parts += [f"scored from files, backbone {UNSTATED}: {others}"] if others else []
    parts += [f"images preprocessed by {provenance['preprocess']}"] if "preprocess" in provenance else []
    return "; ".join([*parts, *_settings(rows["method"].unique(), f"{name_of_title(dataset)}/{split}", provenance)])


def _settings(methods: Iterable[str], split: str, provenance: dict) -> list[str]:
    """Say which setting each method has on a split, and on which other data it was chosen."""
    other = tuning.chosen_on(split)
    settings = {method: provenance.get("settings", {}).get(f"{other}/{method}") for method in methods}
    return [
        f"{method} with {', '.join(f'{value:g}' for value in facts['setting'])}"
        + (f", chosen on {other}" if facts["values"] else f", unchosen, for the study lacks {other}")
        for method, facts in settings.items()
        if facts
    ]
