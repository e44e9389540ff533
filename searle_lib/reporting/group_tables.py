"""Tables of groups of queries as HTML: means by group, and the lead over the better single part by class.

Takes the long tables of `breakdowns` and `composition`, and returns what a notebook shows.
"""

import html

import pandas as pd
from IPython.display import HTML

from searle_lib.reporting import templates
from searle_lib.reporting.formats import EMPTY

NOTHING = "Nothing to show: this study has no queries with public targets, or lacks Image-only or Text-only."


def by_group(table: pd.DataFrame, property_name: str) -> HTML:
    """Show each method's mean by group of queries, with its 95 % interval; the best of a group is bold.

    `table` is what `breakdowns.by_tercile` returns, and `property_name` says in words what makes the groups.
    """
    values, low, high = (_by_method(table, name) for name in ("value", "ci_low", "ci_high"))
    cells = values.map("<span>{:.1f}</span>".format)
    cells += low.map("<small>{:.1f}–".format) + high.map("{:.1f}</small>".format)
    cells = cells.where(values.notna(), f"<span>{EMPTY}</span>")  # a model may lack a data set
    marks = values.round(1).eq(values.round(1).max(axis=1), axis=0).map({True: "best", False: ""}.get)
    return _show(f"By {property_name}", cells, marks, "Percent; below each mean its 95 % interval. Best bold.")


def gaps(table: pd.DataFrame) -> HTML:
    """Show by how many points each method is ahead of the better single part, by class; certain leads are bold.

    `table` is what `composition.gaps` returns.
    """
    hits = table[table["metric"].str.startswith("hit@")]
    if hits.empty:
        return HTML(templates.render("sentences", sentences=[NOTHING]))
    hits = hits.rename(columns={"kind": "group"})
    difference, low, high = (_by_method(hits, name) for name in ("difference", "low", "high"))
    cells = difference.map("<span>{:+.1f}</span>".format)
    cells += low.map("<small>{:+.1f} to ".format) + high.map("{:+.1f}</small>".format)
    cells = cells.where(difference.notna(), f"<span>{EMPTY}</span>")
    marks = (low > 0).map({True: "best", False: ""}.get)
    metric = hits["metric"].iloc[0]
    note = (
        f"Points of {metric}, the share of queries with a target among the first {metric.partition('@')[2]} images; "
        "below each its paired 95 % interval. Bold if the interval lies above zero."
    )
    return _show("Lead over the better of image alone and text alone", cells, marks, note)


def _by_method(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return one column per method, and one row per data set and group with its number of queries, in order."""
    keys = ["dataset", "metric", "group", "queries"]
    wide = table.pivot(index=keys, columns="method", values=value)
    rows = pd.MultiIndex.from_frame(table[keys].drop_duplicates())
    return wide.loc[rows, table["method"].unique()]


def _show(title: str, cells: pd.DataFrame, marks: pd.DataFrame, note: str) -> HTML:
    names = [f"{dataset} {metric}, {group} ({queries:,})" for dataset, metric, group, queries in cells.index]
    cells, marks = (part.set_axis(names).rename_axis(index=None, columns=None) for part in (cells, marks))
    styler = cells.style.set_table_attributes('class="results"').set_td_classes(marks)
    styler.format_index(html.escape).format_index(html.escape, axis=1)
    note += " The number of queries stands in brackets."
    return HTML(templates.render("group_table", title=title, table=styler.to_html(), note=note))
