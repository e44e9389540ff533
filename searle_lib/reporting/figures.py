"""Charts of a study: bars with intervals, curves, shares, and maps of attention; a notebook shows each once.

A chart is one or several small figures. They stand side by side where there is room, and below each other on a phone.
Each has an alternative text with its numbers. Text and axes take the colours of the page, light or dark.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from searle_lib.data import images
from searle_lib.evaluation import breakdowns, methods
from searle_lib.evaluation import composition as queries
from searle_lib.evaluation.intervals import AVERAGE, protocol_titled
from searle_lib.fti4cir.network import Words
from searle_lib.reporting import sheets, templates
from searle_lib.store.artefacts import atomic_write

LINES = ("#396b89", "#99570a", "#78969b", "#cd68eb")  # of curves
DASHES = ("-", "--", "-.", ":")
KINDS = {"shortcut": "#9c9373", "composed": "#396b89", "unsolved": "#858e9d"}
INK, AXIS, GRID = "#1d2433", "#7d8797", "#d9dee7"  # of text, axes and grid; a page replaces them by its own
THEME = {INK: f"var(--ink, {INK})", AXIS: f"var(--soft, {AXIS})", GRID: f"var(--line, {GRID})"}
LOOK = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"], INK),
    **{"axes.edgecolor": AXIS, "grid.color": GRID, "axes.linewidth": 0.8, "patch.force_edgecolor": False},
    **{"font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 9, "legend.fontsize": 9},
    **{"xtick.bottom": False, "ytick.left": False, "svg.fonttype": "none", "svg.hashsalt": "searle"},
    "text.parse_math": False,  # a name may hold a dollar sign,
}
PER_ROW = 4  # figures beside each other in a PNG


class Chart(HTML):
    """Matplotlib's figures as HTML, each an SVG with its alternative text."""

    def __init__(self, figures: Sequence[Figure], texts: Sequence[str]):
        self.figures, self.texts = tuple(figures), tuple(texts)
        pairs = list(zip(map(_svg, figures), texts, strict=True))
        super().__init__(templates.render("chart", figures=pairs))


def loss_curves(history: pd.DataFrame, columns: Mapping[str, str], x: str = "step") -> HTML:
    """Plot the columns (name: label) that the history has, over steps or epochs."""
    columns = {name: label for name, label in columns.items() if name in history}
    if not columns:
        return sheets.strip([], [])
    texts = []
    with _canvas(4.2, 2.5) as (figure, axes):
        for (name, label), colour, dash in zip(columns.items(), LINES, DASHES, strict=False):
            curve = history[[x, name]].dropna().groupby(x)[name].mean()
            axes.plot(curve.index, curve, dash, color=colour, label=label, linewidth=1.6)
            texts.append(f"{label} from {curve.iloc[0]:.3g} to {curve.iloc[-1]:.3g}")
        axes.set(xlabel=x, ylim=(0, None))
        axes.legend(frameon=False)
    return Chart([figure], [f"Curves over {x}: {'; '.join(texts)}."])


def chart(results: pd.DataFrame, panels: Sequence[tuple[str, str, str, str]]) -> Chart:
    """Plot bars with 95 % intervals and values, one figure for each (dataset, split, category, metric)."""
    figures, texts, colours = [], [], methods.colours(results["method"])
    keys = results[["dataset", "split", "category", "metric"]]
    for panel in panels:
        rows = results[keys.eq(list(panel)).all(axis=1)]
        dataset, split, category, metric = panel
        title = f"{dataset} {split}\n{metric}{f', {category}' if category == AVERAGE else ''}, %"
        figures.append(_bars(rows, title, colours))
        texts.append(f"{title}: {_listing(rows)}.".replace("\n", ", "))
    return Chart(figures, texts)


def groups(table: pd.DataFrame) -> Chart:
    """Plot bars with intervals for groups of queries, one figure for each; the figures of a data set share their axis.

    `table` is one of `breakdowns`, with columns dataset, group, queries, method, metric, value, ci_low and ci_high.
    """
    return _group_bars(table, methods.colours(table["method"]))


def aspects(results: pd.DataFrame) -> Chart:
    """Plot CIRCO's mAP@10 by semantic aspect, and own data sets by category, from `intervals.summarise`'s results."""
    table = breakdowns.by_category(results)
    shared = [title for title in table["dataset"].unique() if len(protocol_titled(title).categories) == 1]
    return _group_bars(table[table["dataset"].isin(shared)], methods.colours(results["method"]))


def composition(classes: pd.DataFrame) -> HTML:
    """Plot each data set's shares of queries by kind, stacked; `classes` is what `composition.classes` returns."""
    if classes.empty:
        return sheets.strip([], [])
    shares = queries.shares(classes).pivot(index="dataset", columns="kind", values="share")
    shares = shares.loc[classes["dataset"].unique(), list(KINDS)]
    with _canvas(3.8, 0.55 + 0.3 * len(shares)) as (figure, axes):
        starts = np.zeros(len(shares))
        for kind, colour in KINDS.items():
            axes.barh(shares.index, shares[kind], left=starts, color=colour, height=0.62, label=kind)
            ink = "white" if kind == "composed" else "black"
            for row, (start, share) in enumerate(zip(starts, shares[kind], strict=True)):
                label = f"{share:.0f} %" if share >= 8 else ""  # a narrower part has no room for its number
                axes.text(start + share / 2, row, label, ha="center", va="center", color=ink)
            starts += shares[kind].to_numpy()
        axes.set(xlim=(0, 100), xticks=[])
        axes.invert_yaxis()
        sns.despine(ax=axes, bottom=True, left=True)
        figure.legend(frameon=False, loc="outside upper right", ncols=len(KINDS))
    parts = (", ".join(f"{kind} {share:.0f} %" for kind, share in row.items()) for _, row in shares.iterrows())
    text = "; ".join(f"{dataset}: {part}" for dataset, part in zip(shares.index, parts, strict=True))
    return Chart([figure], [f"Shares of queries. {text}."])


def recall_curves(table: pd.DataFrame) -> Chart:
    """Plot recall over k, one figure for each data set; `table` is what `breakdowns.recall_curves` returns."""
    figures, texts, colours = [], [], methods.colours(table["method"])
    for dataset, rows in table.groupby("dataset", sort=False):
        curves = {method: curve.set_index("k")["value"] for method, curve in rows.groupby("method", sort=False)}
        with _canvas(2.5, 2.6, f"{dataset}\nrecall at k, %") as (figure, axes):
            for number, (method, curve) in enumerate(curves.items()):
                dash = DASHES[number // 3 % len(DASHES)]
                axes.plot(curve.index, curve, dash, color=colours[method], label=method, linewidth=1.6)
            ticks = [k for k in (1, 2, 5, 10, 20, 50) if rows["k"].min() <= k <= rows["k"].max()]
            axes.set(xscale="log", xlabel="k", ylim=(0, 100))
            axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
            figure.legend(frameon=False, loc="outside lower center", ncols=2, columnspacing=0.8, handlelength=1.8)
        figures.append(figure)
        ends = [f"{method} from {curve.iloc[0]:.1f} to {curve.iloc[-1]:.1f}" for method, curve in curves.items()]
        span = f"{rows['k'].min()} to {rows['k'].max()}"
        texts.append(f"{dataset}, recall at k in percent for k from {span}: {'; '.join(ends)}.")
    return Chart(figures, texts)


def attention(paths: Sequence[Path | str], shares: Tensor, words: Words, attributes: int = 5) -> HTML:
    """Show each image, and beside it where its first attributes look, with the score of each attribute.

    `shares` [N, K, P] is the attention of K query slots over P tokens. The first token, the class token, is left out.
    """
    side = round((shares.shape[-1] - 1) ** 0.5)
    rows = []
    for row, path in enumerate(paths):
        image = images.read(Path(path)).convert("RGB")
        shown, captions = [image], ["image"]
        for slot in words.slots[row, : words.counts[row]].tolist()[:attributes]:
            shown.append(_overlay(image, shares[row, slot, 1:].view(side, side).detach().cpu().float().numpy()))
            captions.append(f"score {words.scores[row, slot]:.2f}")
        rows.append(sheets.strip(shown, captions).data)
    return HTML("".join(rows))


def save(drawing: Chart, path: Path) -> Chart:
    """Write the figures of a chart as one PNG and return the chart, so that a notebook shows it too."""
    tiles = [_png(figure) for figure in drawing.figures]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    columns = min(len(tiles), PER_ROW)
    sheet = Image.new("RGB", (width * columns, height * -(-len(tiles) // columns)), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    with atomic_write(path) as aside:
        sheet.save(aside, "PNG")
    return drawing


def _group_bars(table: pd.DataFrame, colours: Mapping[str, str]) -> Chart:
    figures, texts = [], []
    limits = table.groupby("dataset")["ci_high"].max()
    for (dataset, group, metric), rows in table.groupby(["dataset", "group", "metric"], sort=False):
        title = f"{dataset}, {group.replace('_', ' ')}\n{metric}, %, {rows['queries'].iloc[0]:,} queries"
        figures.append(_bars(rows, title, colours, limits[dataset]))
        texts.append(f"{title}: {_listing(rows)}.".replace("\n", ", "))
    return Chart(figures, texts)


def _bars(rows: pd.DataFrame, title: str, colours: Mapping[str, str], limit: float | None = None) -> Figure:
    """Plot a horizontal bar, its interval and its value for each row; `limit` ends the axis."""
    values, limit = rows["value"].to_numpy(), limit or rows["ci_high"].max()
    with _canvas(2.5, 0.75 + 0.21 * len(rows), title) as (figure, axes):
        axes.barh(rows["method"], values, color=rows["method"].map(colours), height=0.68)
        spans = np.clip([values - rows["ci_low"], rows["ci_high"] - values], 0, None)
        axes.errorbar(values, range(len(rows)), xerr=spans, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        for number, (value, high) in enumerate(zip(values, rows["ci_high"], strict=True)):
            axes.text(high + limit * 0.03, number, f"{value:.1f}", va="center")
        axes.set_xlim(0, limit * 1.28)  # room for the numbers
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.grid(False, axis="y")
        axes.invert_yaxis()
        sns.despine(ax=axes, bottom=True)
    return figure


def _listing(rows: pd.DataFrame) -> str:
    """Return methods, values and intervals as text."""
    columns = rows[["method", "value", "ci_low", "ci_high"]].itertuples(index=False)
    return "; ".join(f"{method} {value:.1f} [{low:.1f}, {high:.1f}]" for method, value, low, high in columns)


def _overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return the image in grey below a map of heat [side, side]."""
    scaled = (heat - heat.min()) / max(np.ptp(heat), 1e-12)
    smooth = Image.fromarray((scaled * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    colours = Image.fromarray(colormaps["magma"](np.asarray(smooth), bytes=True)[..., :3])
    return Image.blend(image.convert("L").convert("RGB"), colours, 0.6)


def _svg(figure: Figure) -> str:
    """Return a figure as SVG for a page, in the page's colours, without ids that two figures would share."""
    buffer = io.StringIO()
    with plt.rc_context(LOOK):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' id="[a-zA-Z2.]+_\d+"', "", svg)  # groups; what is referred to has a hash as its id
    svg = re.sub(r'<svg (?:[^>]*?)(viewBox="[^"]+")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _png(figure: Figure) -> Image.Image:
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
        return Image.open(buffer).convert("RGB")


@contextmanager
def _canvas(width: float, height: float, title: str = "") -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure of this size in inches and its axes, in the project's look; close the figure at the end."""
    with sns.axes_style("whitegrid"), plt.rc_context(LOOK):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        yield figure, axes
        plt.close(figure)
