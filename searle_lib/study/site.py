"""Everything of a study that people open in a browser: pages of notebooks, front page, explorer, list of studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from searle_lib.reporting import explorer, front, pages, stale_pages
from searle_lib.store.records import Study
from searle_lib.study.parameters import Declaration, published_values


def write(study: Study, notebooks: Sequence[Path], declarations: Mapping[str, Declaration]) -> Path:
    """Write the front page, the explorer, and the list of studies; return the front page.

    Pages of notebooks exist already; those that show an earlier state say so from now on.

    Args:
        study: the study, as a command sees it.
        notebooks: the sources of the notebooks, in order.
        declarations: every parameter that a notebook declares.
    """
    stale_pages.mark_stale(study)
    if study.has("06_retrieval") and not study.problem("06_retrieval"):
        explorer.write(study)
    front.write_list(study.reports.parent)
    return front.write(study, notebooks, published_values(declarations))


def render(study: Study, notebooks: Sequence[Path], declarations: Mapping[str, Declaration]) -> Path:
    """Render every executed notebook again, and write the rest as `write` does; run nothing."""
    for notebook in notebooks:
        executed, page = study.reports / notebook.name, study.reports / f"{notebook.stem}.html"
        if executed.is_file():
            pages.page(pages.read(executed), page, stale_pages.head_of(study, page))
    return write(study, notebooks, declarations)
