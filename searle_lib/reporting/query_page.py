"""A page for one query of one's own: an image file, a sentence, and what every method of a study retrieves."""

from pathlib import Path

import pandas as pd

from searle_lib.data import images
from searle_lib.evaluation import own_query
from searle_lib.evaluation.own_query import Answer
from searle_lib.reporting import lanes, pages, templates
from searle_lib.reporting.lanes import Lanes
from searle_lib.store.records import Study

DEPTH = 8  # images per method
PRINTED = 3  # images per method in a table of text


def ask(study: Study, image: Path, caption: str, benchmark: str = "", device: str = "auto") -> Answer:
    """Return what every method of a finished study retrieves for an image file and a sentence.

    Args:
        study: the study.
        image: the image file.
        caption: how the target differs from the image.
        benchmark: the name of the benchmark whose gallery is ranked; by default that of the running example.
        device: cpu, cuda, mps or auto.

    Raises:
        ValueError: if the image cannot be read, or the study has no such benchmark.
        MissingInput, StaleInput: if the study has not run, or must run again.
    """
    try:
        images.read(image)  # before CLIP is loaded
    except (FileNotFoundError, ValueError) as problem:
        fault = "cannot be decoded as an image" if image.is_file() else "does not exist"
        raise ValueError(f"{image} {fault}; name an image file.") from problem
    return own_query.answer(own_query.load_retriever(study, device), image, caption, benchmark, depth=DEPTH)


def write(answer: Answer, caption: str, target: Path) -> Path:
    """Write the page of an answer, which needs no network, and return its path."""
    methods = [*answer.rankings, *(method for method in answer.reasons if method not in answer.rankings)]
    state = Lanes(answer.query, methods, {caption: answer.rankings}, caption, answer.reasons)
    body = templates.render("query", lanes=lanes.html(state), picture=answer.query.path.name)
    pages.write(target, f"{answer.query.path.name}: {caption}", [("index.html", "All pages of this study")], body)
    return target


def text_table(answer: Answer) -> str:
    """Return the PRINTED best images of each method as text, each with its score."""
    columns = [f"{place}." for place in range(1, PRINTED + 1)]
    rows = {
        method: [f"{image} ({score:.3f})" for image, score in zip(ranking.best, ranking.scores, strict=True)][:PRINTED]
        for method, ranking in answer.rankings.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").set_axis(columns, axis=1).fillna("")
    notes = [f"{method} is left out: {reason}" for method, reason in answer.reasons.items()]
    return "\n".join([table.to_string(), *notes])
