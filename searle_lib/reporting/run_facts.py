"""What was run to make a study: stages, departures from the papers, versions, weights, code; from its records.

Takes the records of a study by notebook, as `read_records` returns them, in the order of the notebooks. Returns plain
lists and dictionaries of text and numbers, which the front page shows.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from searle_lib.backbone.model import clip_facts
from searle_lib.releases.folders import is_trained
from searle_lib.store.artefacts import DamagedArtefact
from searle_lib.store.records import FOLDER, MissingInput, Record, StaleInput, Study

CODE = ("searle_lib", "notebooks", "params")  # a change here is a change of what the commit says
NETWORKS = {"phi": "φ", "fti4cir": "FTI4CIR's network"}  # artefacts that hold trained weights
IMPORTED = {  # parameters that have no effect if a notebook takes a file instead of computing
    "01_phrases": (lambda values: values.get("phrases_file"), ("phrases_per_", "phrase_")),
    "04_phi": (lambda values: not is_trained(values.get("phi_checkpoint", "last")), ("phi_",)),
    "05_fti4cir": (lambda values: values.get("fti_weights"), ("fti_",)),
}
UNREADABLE = (MissingInput, StaleInput, DamagedArtefact)


def read_records(study: Study) -> dict[str, Record]:
    """Return every record of a study by notebook, in the notebooks' order, without any check."""
    names = sorted(path.stem for path in (study.reports / FOLDER).glob("[0-9][0-9]_*.json"))
    records = {name: study.find(name) for name in names}
    return {name: record for name, record in records.items() if record}


def world(records: Mapping[str, Record]) -> str:
    """Return "miniature" or "real"; "" if no record says it."""
    return records["02_concepts"].parameters.get("world", "") if "02_concepts" in records else ""


def date(records: Mapping[str, Record]) -> str:
    """Return when the last notebook ran, as in "2026-11-28 00:26 UTC"; "" if no record says it."""
    dates = [record.execution["date"] for record in records.values() if "date" in record.execution]
    return f"{datetime.fromisoformat(max(dates)):%Y-%m-%d %H:%M} UTC" if dates else ""


def departures(records: Mapping[str, Record], published: Mapping[str, object]) -> list[dict]:
    """Return each parameter that has another value than the published one: name, notebook, value, published."""
    rows = []
    for notebook, record in records.items():
        for name, value in record.parameters.items():
            if name in published and _has_effect(notebook, name, record) and not _equal(value, published[name]):
                rows.append({"name": name, "notebook": notebook, "value": value, "published": published[name]})
    return list({row["name"]: row for row in reversed(rows)}.values())[::-1]  # the first notebook that declares it


def stages(records: Mapping[str, Record]) -> list[dict]:
    """Return each notebook's duration and peak memory as text, and its share of the longest duration, 0 to 1."""
    executions = {name: record.execution for name, record in records.items()}
    longest = max((run.get("seconds", 0) for run in executions.values()), default=0)
    return [
        {
            "name": name,
            "duration": duration(run["seconds"]) if "seconds" in run else "",
            "memory": f"{run['peak_memory'] / 1e9:.1f} GB" if "peak_memory" in run else "",
            "share": run.get("seconds", 0) / longest if longest else 0.0,
        }
        for name, run in executions.items()
    ]


def made_with(study: Study, records: Mapping[str, Record]) -> dict[str, str]:
    """Return date, code, machine, versions, weights and total duration as text, by label; unknown ones are left out."""
    executions = [record.execution for record in records.values()]
    versions = [" ".join(item) for run in executions for item in run.get("versions", {}).items()]
    facts = {
        "Date": date(records),
        "Commit": commit(study.root),
        "Machine": _distinct(run.get("machine", "") for run in executions),
        "Device": _distinct(str(run.get("settings", {}).get("device", "")) for run in executions),
        "Versions": _distinct(versions),
        **_weights(study, records),
        "Total duration": duration(sum(run.get("seconds", 0) for run in executions)) if executions else "",
    }
    return {label: text for label, text in facts.items() if text}


def commit(root: Path) -> str:
    """Return the commit of a git checkout, and whether its code has changed since; "" if it is no checkout."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""

    def ask(*command: str) -> str:
        done = subprocess.run([git, "-C", str(root), *command], capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""

    name = ask("rev-parse", "--short=10", "HEAD")
    return f"{name}, with uncommitted changes" if name and ask("status", "--porcelain", "--", *CODE) else name


def duration(seconds: float) -> str:
    """Return a duration in words, as in "4 min 32 s"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def differing(studies: Mapping[str, Mapping[str, Record]]) -> dict[str, dict[str, object]]:
    """Return for each study the parameters that have several values among the studies that have them.

    Args:
        studies: the records of each study, by the study's name.
    """
    values = {
        name: {key: value for record in records.values() for key, value in record.parameters.items()}
        for name, records in studies.items()
    }
    names = dict.fromkeys(key for of_study in values.values() for key in of_study)
    several = [key for key in names if len({repr(one[key]) for one in values.values() if key in one}) > 1]
    return {name: {key: one[key] for key in several if key in one} for name, one in values.items()}


def _has_effect(notebook: str, name: str, record: Record) -> bool:
    imports, prefixes = IMPORTED.get(notebook, (lambda values: False, ()))
    return not (imports(record.parameters) and name.startswith(prefixes))


def _equal(value: object, published: object) -> bool:
    """Return whether a value is the published one; a path or a hub name may stand around a published name."""
    return published in value if isinstance(value, str) and isinstance(published, str) else value == published


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _weights(study: Study, records: Mapping[str, Record]) -> dict[str, str]:
    """Return CLIP's name and the sha256 of its weights, and the artefact of each trained network."""
    try:
        clip = clip_facts(study)
        facts = {"CLIP": f"{clip['name']}, sha256 {clip['sha256']}"}
    except UNREADABLE:
        facts = {}
    for record in records.values():
        facts |= {label: f"artefact {record.made[name]}" for name, label in NETWORKS.items() if name in record.made}
    return facts
