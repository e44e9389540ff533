"""The report of `searle check`: findings and estimates as tables, then every problem with what to do about it."""

import contextlib
import io
import shutil
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from searle_lib.backbone.model import Backbone
from searle_lib.check import estimates, findings
from searle_lib.store.records import Study


def report(values: Mapping, study: Study) -> int:
    """Print what a study needs and will take; return 0 if it can run, 1 if there is a problem."""
    console = Console(highlight=False, soft_wrap=False)
    clip, finding = findings.check_clip(values, study)
    results = [finding]
    results += findings.check_models(values, study, clip)
    results += findings.check_user_files(values, study, clip)
    results += findings.check_data(values, study)
    console.print(_findings_table(results))
    problems = list(dict.fromkeys(problem for finding in results for problem in finding.problems))
    if clip:
        problems += _print_estimates(values, study, clip, console, complete=not problems)
    for problem in problems:
        console.print(f"problem: {problem}", soft_wrap=True, markup=False)
    number = f"{len(problems)} problem" + "s" * (len(problems) > 1)
    console.print(f"{number}; this study cannot run yet." if problems else "ready.")
    return int(bool(problems))


def _findings_table(results: list[findings.Finding]) -> Table:
    table = Table("", "what", "expected", "found", box=box.SIMPLE)
    table.columns[3].overflow = "fold"  # show a sha256 in full
    for finding in results:
        mark = Text("✗", "red") if finding.problems else Text("✓", "green")
        table.add_row(mark, *map(Text, (finding.subject, finding.expected, finding.observed)))
    return table


def _print_estimates(values: Mapping, study: Study, clip: Backbone, console: Console, complete: bool) -> list[str]:
    """Print what the study will take; return a problem for each resource that the machine lacks.

    Args:
        values: the study's parameters.
        study: the study.
        clip: its CLIP.
        console: where to print.
        complete: whether all findings are good, so that unreadable data are an error.
    """
    try:
        load = estimates.workload(values, study)
    except (OSError, ValueError):
        if complete:
            raise
        console.print("Disk, memory and time cannot be estimated before the data can be read.")
        return []
    sizes = estimates.disk(values, clip, load)
    table = Table("it will take", "", "arithmetic", box=box.SIMPLE)
    for name, size in sizes.items():
        table.add_row(f"disk: {name}", _format_bytes(size), "")
    root = next(folder for folder in (study.store.root, *study.store.root.parents) if folder.exists())
    free = shutil.disk_usage(root).free
    table.add_row("disk, all", _format_bytes(sum(sizes.values())), f"free in {root}: {_format_bytes(free)}")
    needed, available = estimates.memory(clip, load), estimates.machine_memory()
    table.add_row("memory", _format_bytes(needed), f"this machine's: {_format_bytes(available)}" if available else "")
    with contextlib.redirect_stderr(io.StringIO()):  # hide the progress bars of the measurements
        try:
            stages = estimates.times(values, clip, load)
        except RuntimeError as problem:  # torch raises it when memory runs out
            reason = " ".join(str(problem).split())[:120]
            return [f"a batch of this study does not fit ({reason}); lower image_batch_size or text_batch_size."]
    for stage in stages:
        table.add_row(f"time: {stage.name}", _format_duration(stage.seconds), stage.arithmetic)
    table.add_row("time, all", _format_duration(sum(stage.seconds for stage in stages)), "")
    console.print(table)
    console.print("The times per image and per text were measured on this machine; without images, on random pixels.")
    problems = []
    if sum(sizes.values()) > free:
        problems.append(
            f"artefacts will take {_format_bytes(sum(sizes.values()))} and {root} has {_format_bytes(free)} free; set "
            "artefact_root to a larger disk."
        )
    if available and needed > available:
        problems.append(
            f"about {_format_bytes(needed)} of memory are needed and this machine has {_format_bytes(available)}; use "
            "a larger machine."
        )
    return problems


def _format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000


def _format_duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
