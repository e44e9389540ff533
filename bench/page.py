"""The benchmark's table, for the terminal and as a page that stands alone, with how time grows on log axes."""

import base64
import html
import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from searle_lib.reporting import pages

COLUMNS = ("work", "problem", "ours", "plain", "times faster", "goal", "of GEMM rate", "memory added", "same result")


def write(target: Path, facts: dict) -> str:
    """Write the page; the same table as text."""
    work, on_cuda = facts["work"]["cpu"], facts["work"].get("cuda")
    cuda = f"<p>{html.escape(_cuda(facts))}</p>{_table(on_cuda) if on_cuda else ''}"
    missed = [_why(row) for row in work if row.get("missed") and row["floor_seconds"]]
    text = f"<h1>Benchmark</h1><p>{html.escape(_about(facts))}</p>{_table(work)}"
    text += "".join(f"<p>{html.escape(sentence)}</p>" for sentence in missed) + f"<h2>CUDA</h2>{cuda}"
    pages.write(target, "Benchmark", (), f"{text}<h2>How time grows</h2>{_charts(facts)}")
    return "\n\n".join([_lines(work), *missed, _about(facts), _cuda(facts), *([_lines(on_cuda)] if on_cuda else [])])


def _table(work: list[dict]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) for row in work)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table class="dataframe"><thead><tr>{head}</tr></thead>{body}</table></div>'


def _lines(work: list[dict]) -> str:
    rows = [COLUMNS, *map(_cells, work)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cells(row: dict) -> tuple[str, ...]:
    if "skipped" in row:
        return (row["name"], row["skipped"], *[""] * (len(COLUMNS) - 2))
    share = "" if row["share_of_gemm"] is None else f"{row['share_of_gemm']:.0%}"
    goal = f"{row['target']:g}" + ("\N{NO-BREAK SPACE}missed" if row["missed"] else "") if row["target"] else ""
    return (
        row["name"],
        row["what"],
        f"{row['seconds']['ours']:.3f}\N{NO-BREAK SPACE}s",
        f"{row['seconds']['plain']:.2f}\N{NO-BREAK SPACE}s",
        f"{row['times_faster']:.1f}",
        goal,
        share,
        f"{row['peak_mib']['ours']:,} / {row['peak_mib']['plain']:,}\N{NO-BREAK SPACE}MiB",
        "yes" if row["agree"] else "NO",
    )


def _why(row: dict) -> str:
    """Why a piece misses its goal."""
    most = row["seconds"]["plain"] / row["floor_seconds"]
    goes = ", ".join(f"{share:.0%} {kind}" for kind, share in row["time_goes_to"].items())
    return (
        f"{row['name']}: the goal is {row['target']:g} times, {row['times_faster']:.1f} were measured. The arithmetic "
        f"that is needed takes {row['floor_seconds']:.3f} s at the machine's own rate; that would be {most:.1f} times. "
        f"Our time goes to: {goes}."
    )


def _about(facts: dict) -> str:
    return (
        f"{facts['threads']} threads, {facts['instructions']}; matrix products of the text tower's shape reach "
        f"{_rates(facts, 'cpu')} GFLOP/s; random weights of ViT-B/32's size; medians of one to three rounds of both "
        f"ways by turns, in one run of {facts['took']} minutes."
    )


def _charts(facts: dict) -> str:
    figure, axes = plt.subplots(1, len(facts["growth"]), figsize=(11, 3.2), layout="constrained")
    for axis, (title, grown) in zip(axes, facts["growth"].items(), strict=True):
        axis.loglog(list(grown["seconds"]), list(grown["seconds"].values()), "o-", color="#1f6d8a")
        axis.set(title=f"{title}: exponent {grown['exponent']:.2f}", xlabel=grown["unit"], ylabel="seconds")
        axis.set_xticks(list(grown["seconds"]), [f"{int(size):,}" for size in grown["seconds"]])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_yticks(list(grown["seconds"].values()), [f"{value:.2g}" for value in grown["seconds"].values()])
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(True, which="both", alpha=0.3)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="Time against size on log axes">'


def cuda_text(facts: dict, rows: list[dict]) -> str:
    """Return the measurements on a CUDA device as text."""
    return "\n\n".join([_cuda(facts), _lines(rows)])


def _cuda(facts: dict) -> str:
    if not facts["cuda"]:
        return "This machine has no CUDA device; nothing was measured on one."
    return f"{facts['cuda']}: matrix products reach {_rates(facts, 'cuda')} GFLOP/s; memory is the device's."


def _rates(facts: dict, device: str) -> str:
    return ", ".join(f"{kind} {rate:,.0f}" for kind, rate in facts["gemm_gflops"][device].items())
