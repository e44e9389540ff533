"""Whether a page still shows the study as it is: each page names the record it was made from.

A notebook that runs by hand changes its own record at once, while the pages stay as they were. So every page that no
longer fits the records says so at its top, until it is made again.
"""

import html
import re
from pathlib import Path

from searle_lib.store.artefacts import written_aside
from searle_lib.store.records import Study

RECORD = '<meta name="record" content="{}">'
NOTE = '<!--stale--><p class="stale">{}</p><!--/stale-->'
NO_NOTE = "<!--stale--><!--/stale-->"
_RECORD, _NOTE = re.compile(RECORD.format(r"(\w*)")), re.compile("<!--stale-->.*?<!--/stale-->", re.S)


def mark_stale(study: Study) -> None:
    """Write on top of each page of a study that it shows an earlier state, or take that note off again."""
    for page in study.reports.glob("[0-9][0-9]_*.html"):
        text = page.read_text(encoding="utf-8")
        problem = stale(study, page.stem, text)
        note = NOTE.format(html.escape(problem)) if problem else NO_NOTE
        marked = _NOTE.sub(lambda match, note=note: note, text, count=1)
        if marked != text:
            with written_aside(page) as aside:
                aside.write_text(marked, encoding="utf-8")


def shows(study: Study, notebook: str) -> bool:
    """Return whether a notebook's page exists and was made from its present record."""
    page = study.reports / f"{notebook}.html"
    if not page.is_file() or not page.with_suffix(".ipynb").is_file():
        return False
    return record_of(page.read_text(encoding="utf-8")) == digest_of(study, notebook)


def stale(study: Study, notebook: str, page: str) -> str:
    """Return in one sentence why a page no longer shows the study as it is, "" when it does."""
    if record_of(page) != digest_of(study, notebook):
        return f"This page is older than the last run of {notebook}; run the study to make it again."
    problem = study.problem(notebook)
    return f"This page shows an earlier state: {problem}" if problem else ""


def record_of(page: str) -> str:
    """Return the digest of the record that a page was made from, "" where it names none."""
    match = _RECORD.search(page)
    return match[1] if match else ""


def digest_of(study: Study, notebook: str) -> str:
    """Return the digest of a notebook's record, "" where it has none."""
    record = study.find(notebook)
    return record.digest if record else ""


def head_of(study: Study, page: Path) -> str:
    """Return what a page about to be written says of the record it is made from."""
    return RECORD.format(digest_of(study, page.stem))
