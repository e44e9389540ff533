"""Charts of the study: bars with intervals, and the course of losses and metrics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from searle_lib.data import images
from searle_lib.evaluation.intervals import AVERAGE
from searle_lib.fti4cir.network import Words
from searle_lib.store.artefacts import written_aside

COLOURS = {
    "Image-only": "#b8bec9",
    "Text-only": "#8b95a7",
    "Image+Text": "#5b677d",
    "SEARLE": "#d9772b",
    "SEARLE-OTI": "#2a7f9e",
    "FTI4CIR": "#7c5aa6",
}
LINES = ("#2a7f9e", "#d9772b", "#5b677d", "#8a5a9e")
LOOK = {"axes.edgecolor": "#aeb6c4", "grid.color": "#e6e9ef"}


def loss_curves(history: pd.DataFrame, columns: Mapping[str, str], x: str = "step") -> Figure:
    """Curves of those columns (name: label) that there are, over steps or epochs."""
    columns = {name: label for name, label in columns.items() if name in history}
    if not columns:
        return _note("Nothing to show: not computed in this study.")
    long = history.rename(columns=dict(columns)).melt(x, list(columns.values()), "curve", "value").dropna()
    with _canvas(1, 6.4, 3.0, 110) as (figure, (axes, *_)):
        sns.lineplot(long, x=x, y="value", hue="curve", ax=axes, palette=list(LINES[: len(columns)]))
        axes.set(ylabel="", ylim=(0, None))
        axes.legend(title="", frameon=False)
    return figure


def chart(results: pd.DataFrame, panels: Sequence[tuple[str, str, str, str]]) -> Figure:
    """Bars with 95 % intervals, one panel for each (dataset, split, category, metric), four a row."""
    with _canvas(len(panels), 2.9, 3.1, 160) as (figure, grid):
        for axes, (dataset, split, category, metric) in zip(grid, panels, strict=False):  # the grid may have more
            where = {"dataset": dataset, "split": split, "category": category, "metric": metric}
            rows = results.loc[np.logical_and.reduce([results[name] == value for name, value in where.items()])]
            _bars(axes, rows)
            under = f", {category}" if category == AVERAGE else ""
            axes.set(title=f"{dataset} {split}\n{metric}{under}, %", xlabel="", ylabel="")
    return figure


def attention(paths: Sequence[Path | str], shares: Tensor, words: Words, most: int = 5) -> Figure:
    """Each picture, and beside it where its first attributes look: shares [N, K, P] of the query slots over patches.

    The class token, first of the P, is left out. Above each attribute stands its score.
    """
    side = round((shares.shape[-1] - 1) ** 0.5)
    with sns.plotting_context("notebook", font_scale=0.75):
        size = (1.55 * (most + 1), 1.75 * len(paths))
        figure, grid = plt.subplots(len(paths), most + 1, figsize=size, dpi=110, squeeze=False)
        for row, (path, line) in enumerate(zip(paths, grid, strict=True)):
            picture = images.read(Path(path)).convert("RGB")
            box = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
            line[0].imshow(picture)
            slots = words.slots[row, : words.counts[row]].tolist()
            for axes, slot in zip(line[1:], slots, strict=False):
                look = shares[row, slot, 1:].view(side, side).detach().cpu()
                axes.imshow(picture.convert("L"), cmap="gray", alpha=0.45)
                axes.imshow(look, cmap="magma", alpha=0.6, extent=box, interpolation="bicubic")
                axes.set_title(f"score {words.scores[row, slot]:.2f}")
        for axes in grid.flat:
            axes.axis("off")
        figure.tight_layout()
        plt.close(figure)
    return figure


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG and hand it on, so that a notebook shows it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
    return figure


def _note(text: str) -> Figure:
    """A figure that says why it shows nothing."""
    figure = plt.figure(figsize=(6.4, 0.6), dpi=110)
    figure.text(0.02, 0.4, text)
    plt.close(figure)
    return figure


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    palette = {method: COLOURS.get(method, LINES[3]) for method in rows["method"]}
    sns.barplot(rows, x="method", y="value", hue="method", palette=palette, ax=axes, legend=False)
    spans = np.clip([rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]], 0, None)
    axes.errorbar(range(len(rows)), rows["value"], yerr=spans, fmt="none", ecolor="#1d2433", elinewidth=1.2, capsize=3)
    axes.set_xticks(range(len(rows)), rows["method"], rotation=35, ha="right")


@contextmanager
def _canvas(panels: int, width: float, height: float, dpi: int) -> Iterator[tuple[Figure, Iterable[Axes]]]:
    """Panels side by side in the project's look, closed at the end so that a notebook shows them once."""
    with sns.axes_style("whitegrid", LOOK), sns.plotting_context("notebook", font_scale=0.9):
        columns = min(panels, 4)
        rows = -(-panels // columns)
        size = (width * columns, height * rows)
        figure, grid = plt.subplots(rows, columns, figsize=size, dpi=dpi, squeeze=False)
        yield figure, grid.flat
        for axes in grid.flat[panels:]:
            axes.remove()
        figure.tight_layout()
        plt.close(figure)
