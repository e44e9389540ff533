"""The report of `python -m searle_lib check`: findings and estimates as tables, then every problem with its remedy."""

import contextlib
import io
import shutil
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from searle_lib.check import estimates, findings
from searle_lib.store.records import Study


def report(values: Mapping, study: Study) -> int:
    """Print what a study needs and will take; return 0 when it can run, 1 when there is a problem."""
    console = Console(highlight=False, soft_wrap=False)
    loaded, first = findings.clip(values, study)
    found = [first]
    found += findings.models(values, study, loaded)
    found += findings.brought(values, study, loaded)
    found += findings.data(values, study)
    console.print(_findings(found))
    problems = list(dict.fromkeys(problem for finding in found for problem in finding.problems))
    if loaded:
        problems += _estimates(values, study, loaded, console, complete=not problems)
    for problem in problems:
        console.print(f"problem: {problem}", soft_wrap=True, markup=False)
    number = f"{len(problems)} problem" + "s" * (len(problems) > 1)
    console.print(f"{number}; this study cannot run yet." if problems else "ready.")
    return int(bool(problems))


def _findings(found: list[findings.Finding]) -> Table:
    table = Table("", "what", "expected", "found", box=box.SIMPLE)
    table.columns[3].overflow = "fold"  # a sha256 is shown whole
    for finding in found:
        mark = Text("✗", "red") if finding.problems else Text("✓", "green")
        table.add_row(mark, *map(Text, (finding.what, finding.expected, finding.found)))
    return table


def _estimates(values: Mapping, study: Study, clip, console: Console, complete: bool) -> list[str]:
    """Print what the study will take; return a problem for each thing of which the machine has less."""
    try:
        load = estimates.workload(values, study)
    except (OSError, ValueError):
        if complete:
            raise
        console.print("What it will take cannot be said before the data can be read.")
        return []
    sizes = estimates.disk(values, clip, load)
    table = Table("it will take", "", "arithmetic", box=box.SIMPLE)
    for name, size in sizes.items():
        table.add_row(f"disk: {name}", _bytes(size), "")
    root = next(folder for folder in (study.store.root, *study.store.root.parents) if folder.exists())
    free = shutil.disk_usage(root).free
    table.add_row("disk, all", _bytes(sum(sizes.values())), f"free in {root}: {_bytes(free)}")
    needed, there = estimates.memory(clip, load), estimates.machine_memory()
    table.add_row("memory", _bytes(needed), f"this machine's: {_bytes(there)}" if there else "")
    with contextlib.redirect_stderr(io.StringIO()):  # the bars of measurements tell nothing
        try:
            stages = estimates.times(values, clip, load)
        except RuntimeError as problem:  # torch's, for want of memory on the processor or the device
            said = " ".join(str(problem).split())[:120]
            return [f"a batch of this study does not fit ({said}); lower image_, text_, oti_, phi_ or fti_batch_size."]
    for stage in stages:
        table.add_row(f"time: {stage.name}", _duration(stage.seconds), stage.arithmetic)
    table.add_row("time, all", _duration(sum(stage.seconds for stage in stages)), "")
    console.print(table)
    console.print("Times were measured just now on this machine, with random input where pictures were not there.")
    problems = []
    if sum(sizes.values()) > free:
        problems.append(
            f"artefacts will take {_bytes(sum(sizes.values()))} and {root} has {_bytes(free)} free; point "
            "artefact_root to a larger disk."
        )
    if there and needed > there:
        problems.append(f"about {_bytes(needed)} of memory are needed and this machine has {_bytes(there)}.")
    return problems


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
