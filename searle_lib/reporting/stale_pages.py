"""Notes on pages that no longer show the study as it is: each page names the record that it was made from.

A notebook that runs by hand changes its own record at once, while the pages stay as they were. A page that no longer
fits the records says so at its top until the study makes it again.
"""

import html
import re
from pathlib import Path

from searle_lib.store.artefacts import atomic_write
from searle_lib.store.records import Study

RECORD = '<meta name="record" content="{}">'
NOTE = '<!--stale--><p class="stale">{}</p><!--/stale-->'
NO_NOTE = "<!--stale--><!--/stale-->"
_RECORD, _NOTE = re.compile(RECORD.format(r"(\w*)")), re.compile("<!--stale-->.*?<!--/stale-->", re.S)


def mark_stale(study: Study) -> None:
    """Write a note at the top of each page of a study that shows an earlier state; remove the note elsewhere."""
    pages = {page: page.stem for page in study.reports.glob("[0-9][0-9]_*.html")}
    explorer = study.reports / "explorer.html"
    pages |= {explorer: "06_retrieval"} if explorer.is_file() else {}
    for page, notebook in pages.items():
        text = page.read_text(encoding="utf-8")
        problem = _problem(study, notebook, text)
        note = NOTE.format(html.escape(problem)) if problem else NO_NOTE
        new_text = _NOTE.sub(lambda match, note=note: note, text, count=1)
        if new_text != text:
            with atomic_write(page) as aside:
                aside.write_text(new_text, encoding="utf-8")


def shows(study: Study, notebook: str) -> bool:
    """Return whether a notebook's page exists and was made from its present record."""
    page = study.reports / f"{notebook}.html"
    exists = page.is_file() and page.with_suffix(".ipynb").is_file()
    return exists and record_of(page.read_text(encoding="utf-8")) == _record_digest(study, notebook)


def record_of(page: str) -> str:
    """Return the digest of the record that a page was made from, "" if the page names none."""
    match = _RECORD.search(page)
    return match[1] if match else ""


def head_of(study: Study, page: Path) -> str:
    """Return the HTML by which a new page names the record that it is made from."""
    return RECORD.format(_record_digest(study, page.stem))


def _problem(study: Study, notebook: str, page: str) -> str:
    """Return in one sentence why a page no longer shows the study as it is, "" if it does."""
    if record_of(page) != _record_digest(study, notebook):
        return f"This page is older than the last run of {notebook}; run the study to make it again."
    problem = study.problem(notebook)
    return f"This page shows an earlier state: {problem}" if problem else ""


def _record_digest(study: Study, notebook: str) -> str:
    """Return the digest of a notebook's record, "" if it has none."""
    record = study.find(notebook)
    return record.digest if record else ""
