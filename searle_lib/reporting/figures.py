"""Charts of a study: bars with intervals, curves over steps, and maps of attention; a notebook shows each once."""

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
from searle_lib.store.artefacts import atomic_write

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
    """Plot the columns (name: label) that the history has, over steps or epochs."""
    columns = {name: label for name, label in columns.items() if name in history}
    if not columns:
        return _message("Nothing to show: not computed in this study.")
    curves = history.rename(columns=columns).melt(x, list(columns.values()), "curve", "value").dropna()
    with _canvas(1, 6.4, 3.0, 110) as (figure, (axes, *_)):
        sns.lineplot(curves, x=x, y="value", hue="curve", ax=axes, palette=list(LINES[: len(columns)]))
        axes.set(ylabel="", ylim=(0, None))
        axes.legend(title="", frameon=False)
    return figure


def chart(results: pd.DataFrame, panels: Sequence[tuple[str, str, str, str]]) -> Figure:
    """Plot bars with 95 % intervals, one panel for each (dataset, split, category, metric), four in a row."""
    with _canvas(len(panels), 2.9, 3.1, 160) as (figure, grid):
        for axes, (dataset, split, category, metric) in zip(grid, panels, strict=False):  # the grid may have more
            keys = results[["dataset", "split", "category", "metric"]]
            _bars(axes, results[(keys == (dataset, split, category, metric)).all(axis=1)])
            suffix = f", {category}" if category == AVERAGE else ""
            axes.set(title=f"{dataset} {split}\n{metric}{suffix}, %", xlabel="", ylabel="")
    return figure


def attention(paths: Sequence[Path | str], shares: Tensor, words: Words, attributes: int = 5) -> Figure:
    """Plot each image, and beside it where its first attributes look, with the score of each attribute.

    `shares` [N, K, P] is the attention of K query slots over P tokens. The first token, the class token, is left out.
    """
    side = round((shares.shape[-1] - 1) ** 0.5)
    with sns.plotting_context("notebook", font_scale=0.75):
        size = (1.55 * (attributes + 1), 1.75 * len(paths))
        figure, grid = plt.subplots(len(paths), attributes + 1, figsize=size, dpi=110, squeeze=False)
        for row, (path, (first, *others)) in enumerate(zip(paths, grid, strict=True)):
            image = images.read(Path(path)).convert("RGB")
            extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
            first.imshow(image)
            for axes, slot in zip(others, words.slots[row, : words.counts[row]].tolist(), strict=False):
                heat = shares[row, slot, 1:].view(side, side).detach().cpu()
                axes.imshow(image.convert("L"), cmap="gray", alpha=0.45)
                axes.imshow(heat, cmap="magma", alpha=0.6, extent=extent, interpolation="bicubic")
                axes.set_title(f"score {words.scores[row, slot]:.2f}")
        for axes in grid.flat:
            axes.axis("off")
        figure.tight_layout()
        plt.close(figure)
    return figure


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG and return it, so that a notebook shows it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
    return figure


def _message(text: str) -> Figure:
    """Return a figure that shows one sentence."""
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
    """Yield a figure and its panels, four in a row, in the project's look; close the figure at the end."""
    with sns.axes_style("whitegrid", LOOK), sns.plotting_context("notebook", font_scale=0.9):
        columns = min(panels, 4)
        rows = -(-panels // columns)
        figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), dpi=dpi, squeeze=False)
        yield figure, grid.flat
        for axes in grid.flat[panels:]:
            axes.remove()
        figure.tight_layout()
        plt.close(figure)
