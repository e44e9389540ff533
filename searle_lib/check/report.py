"""The report of `searle check`: findings and estimates as tables, then every problem with what to do about it."""

import contextlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from searle_lib.backbone.model import Backbone
from searle_lib.check import estimates, findings, published, weights
from searle_lib.store.records import Study
from searle_lib.study import parameters, run, workspace

BUSY = 0.5  # load of the machine above which measured times are too long


def report(values: Mapping, study: Study) -> int:
    """Print what a study needs and will take; return 0 if it can run, 1 if there is a problem."""
    console = Console(highlight=False, soft_wrap=False)
    clip, finding = weights.check_clip(values, study)
    results = [finding]
    results += weights.check_models(values, study, clip)
    results += findings.check_user_files(values, study, clip)
    results += findings.check_data(values, study)
    results += findings.check_other_models(values, study)
    console.print(_findings_table(results))
    problems = list(dict.fromkeys(problem for finding in results for problem in finding.problems))
    problems += _print_estimates(values, study, clip, console, complete=not problems)
    for note in dict.fromkeys(note for finding in results for note in finding.notes):
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    for problem in problems:
        console.print(f"problem: {problem}", soft_wrap=True, markup=False)
    number = f"{len(problems)} problem" + "s" * (len(problems) > 1)
    console.print(f"{number}; this study cannot run yet." if problems else "ready.")
    return int(bool(problems))


def finished_notebooks(values: Mapping, study: Study) -> set[str]:
    """Return the notebooks that a run would leave unchanged, so that they take neither disk nor time."""
    notebooks, finished = workspace.notebooks(study.root), set()
    declarations = parameters.read_declarations(notebooks)
    for path in notebooks:
        record = study.find(path.stem)
        own = {name: values[name] for name in parameters.names_of_notebook(declarations, path.stem)}
        if record and set(record.read) <= finished and run.is_unchanged(study, path, own, values["methods"]):
            finished.add(path.stem)
    return finished


def _findings_table(results: list[findings.Finding]) -> Table:
    table = Table("", "what", "expected", "found", box=box.SIMPLE)
    table.columns[3].overflow = "fold"  # show a sha256 in full
    for finding in results:
        mark = Text("✗", "red") if finding.problems else Text("!", "yellow") if finding.notes else Text("✓", "green")
        table.add_row(mark, *map(Text, (finding.subject, finding.expected, finding.observed)))
    return table


def _print_estimates(values: Mapping, study: Study, clip: Backbone | None, console: Console, complete: bool) -> list:
    """Print what the study will take; return a problem for each resource that the machine lacks.

    Args:
        values: the study's parameters.
        study: the study.
        clip: its CLIP; None if it is absent, and then one with random weights of its size is measured.
        console: where to print.
        complete: whether all findings are good, so that unreadable data are an error.
    """
    measured = clip or published.stand_in(values)
    try:
        load = estimates.workload(values, study)
    except (OSError, ValueError):
        if complete:
            raise
        load = None
    if load is None or measured is None:
        console.print("Disk, memory and time cannot be estimated before the data and the CLIP can be read.")
        return []
    finished = finished_notebooks(values, study)
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with contextlib.redirect_stderr(io.StringIO()):  # hide the progress bars of the measurements
        try:
            stages = estimates.times(values, measured, load)
        except RuntimeError as problem:  # torch raises it when memory runs out
            reason = " ".join(str(problem).split())[:120]
            return [f"a batch of this study does not fit ({reason}); lower image_batch_size or text_batch_size."]
    stages = [stage for stage in stages if estimates.NOTEBOOKS[stage.name] not in finished]
    sizes = estimates.disk(values, measured, load)
    sizes = {name: size for name, size in sizes.items() if estimates.NOTEBOOKS[name] not in finished}
    root = next(folder for folder in (study.store.root, *study.store.root.parents) if folder.exists())
    needed = estimates.memory(measured, load)
    console.print(_estimates_table(sizes, stages, needed, root))
    if finished:
        console.print(f"Left out, because they have run with these parameters: {', '.join(sorted(finished))}.")
    if load.assumed:
        console.print(f"Assumed at their published sizes, because they are absent: {', '.join(load.assumed)}.")
    weights = "" if clip else f", with random weights in the size of {values['clip_model']}"
    pixels = "" if load.sample else ", on random pixels"
    console.print(f"The times per image and per text were measured on {measured.device} here{weights}{pixels}.")
    if load_before > BUSY:
        console.print(f"The machine was busy meanwhile (load {load_before:.1f}); idle, it takes less time.")
    return _shortages(sum(sizes.values()), needed, root)


def _estimates_table(sizes: Mapping[str, int], stages: list[estimates.Stage], needed: int, root: Path) -> Table:
    table = Table("it will take", "", "arithmetic", box=box.SIMPLE)
    for name, size in sizes.items():
        table.add_row(f"disk: {name}", _format_bytes(size), "")
    free, available = shutil.disk_usage(root).free, estimates.machine_memory()
    table.add_row("disk, all", _format_bytes(sum(sizes.values())), f"free in {root}: {_format_bytes(free)}")
    table.add_row("memory", _format_bytes(needed), f"this machine's: {_format_bytes(available)}" if available else "")
    for stage in stages:
        table.add_row(f"time: {stage.name}", _format_duration(stage.seconds), stage.arithmetic)
    table.add_row("time, all", _format_duration(sum(stage.seconds for stage in stages)), "")
    return table


def _shortages(size: int, needed: int, root: Path) -> list[str]:
    """Return a problem if the disk of `root` has less than `size` bytes, or the machine less memory."""
    free, available = shutil.disk_usage(root).free, estimates.machine_memory()
    problems = []
    if size > free:
        problems.append(
            f"artefacts will take {_format_bytes(size)} and {root} has {_format_bytes(free)} free; set "
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
