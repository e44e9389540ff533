"""The query explorer: a page on which a reader looks at single queries and at what each method retrieves for them.

`data` turns benchmarks, scores, rankings and names into plain lists. `render` puts them into a page that needs no
network. `write` does both for a study. Only splits with public targets are shown.

The address of the page keeps its state, so that another page can link to a view:
`explorer.html#dataset=CIRCO&a=FTI4CIR&b=SEARLE&outcome=first` shows the queries of CIRCO that FTI4CIR finds and SEARLE
does not. The keys are the names of the controls in explorer.html.j2, and `query`, the key of the open query.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from searle_lib.data import benchmarks as benchmark_tables
from searle_lib.data import images
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation import composition, query_words
from searle_lib.evaluation import methods as all_methods
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.evaluation.rankings import index_notes
from searle_lib.evaluation.scores import ASPECT_METRIC, read_scores
from searle_lib.reporting import stale_pages, templates
from searle_lib.store import randomness
from searle_lib.store.artefacts import atomic_write
from searle_lib.store.records import Study

SHOWN = 6  # images per query and method
SIDE = 96  # pixels of a thumbnail's longer side
QUALITY = 50  # of WebP; keeps the page of the mini study below 6 MB
KINDS = {
    "shortcut": "image or sentence alone finds it",
    "composed": "only composing finds it",
    "unsolved": "no method finds it",
}


def write(study: Study) -> Path:
    """Write explorer.html into a study's reports and return its path. Raises as `Study.artefact` does."""
    table = data(benchmark_tables.read(study), *read_scores(study), query_words.read_names(study))
    is_miniature = study.read("02_concepts").parameters["world"] == "miniature"
    record = stale_pages.RECORD.format(study.read("06_retrieval").digest)
    page = study.reports / "explorer.html"
    with atomic_write(page) as temporary:
        temporary.write_text(render(table, study.name, is_miniature, record), encoding="utf-8")
    return page


def data(
    benchmarks: Sequence[Benchmark],
    scores: pd.DataFrame,
    rankings: pd.DataFrame,
    names: pd.DataFrame,
    limit: int = 2000,
    seed: int = 42,
) -> dict:
    """Return what the page shows, as plain lists: methods, images (id and path, each once) and queries.

    A query names an image by its place in `images`. Its lists over methods are in the order of `methods`. Ranks start
    at 1; scores are in thousandths. The rank is None if a method has no ranking of a query, or a list or an index no
    rank of it. A model without scores has an empty list of them.

    Args:
        benchmarks: those of the study; splits with secret targets are left out.
        scores: as `read_scores` returns them.
        rankings: as `read_scores` returns them.
        names: as `read_names` returns them.
        limit: the largest number of queries; a part of them is drawn as `draw` does.
        seed: decides which queries are drawn.
    """
    scored = [benchmark for benchmark in benchmarks if benchmark.is_scored]
    rows = draw(scored, limit, seed)
    methods = list(dict.fromkeys(rankings["method"]))
    colours = all_methods.colours([*methods, *scores["method"].unique()])
    queries = _queries(scored, rows, rankings)
    answers = _answers(queries, scores, rankings, names)
    places: dict[tuple[str, str], int] = {}  # by data set and image id, in order of first use
    entries = []
    for query in queries:
        by_method = [answers.get((query["key"], method), {}) for method in methods]
        entries.append(_entry(query, by_method, places))
    notes = [f"{name} is {note}." for name, note in index_notes(rankings).items() if name in rows]
    paths = {(b.dataset, image): path for b in scored for image, path in b.gallery[["image", "path"]].to_numpy()}
    return {
        "selection": " ".join([_selection(scored, rows, seed), *notes]),
        "example": _example_key(scored),
        "methods": [{"name": method, "colour": colours[method]} for method in methods],
        "images": [{"id": image, "path": paths[dataset, image]} for dataset, image in places],
        "queries": entries,
    }


def draw(benchmarks: Sequence[Benchmark], limit: int, seed: int) -> dict[str, list[int]]:
    """Draw at most `limit` queries, and return their rows by the benchmark's name.

    Each benchmark gives an equal share, or all its queries if it has fewer; what it leaves over goes to the others. The
    running example is always among the queries.
    """
    shares, rest = {}, limit
    for place, benchmark in enumerate(sorted(benchmarks, key=lambda one: len(one.queries))):
        shares[benchmark.name] = min(len(benchmark.queries), rest // (len(benchmarks) - place))
        rest -= shares[benchmark.name]
    rows = {}
    for benchmark in benchmarks:
        keys = randomness.keys(seed, f"explorer/{benchmark.name}", benchmark.queries["query"])
        rows[benchmark.name] = np.argsort(keys).tolist()
    if benchmarks:
        example = benchmark_tables.example(benchmarks)
        rows[example.benchmark.name].remove(example.row)
        rows[example.benchmark.name].insert(0, example.row)
    return {name: sorted(order[: shares[name]]) for name, order in rows.items()}


def render(table: dict, study: str, is_miniature: bool, record: str = "") -> str:
    """Return the page as HTML.

    Args:
        table: what `data` returns.
        study: the study's name.
        is_miniature: whether the images are drawn, which the page then says.
        record: HTML that names the record of the page (`stale_pages.RECORD`).
    """
    with ThreadPoolExecutor() as pool:
        thumbnails = list(pool.map(_thumbnail, [image["path"] for image in table["images"]]))
    listed = [{"id": image["id"], "webp": webp} for image, webp in zip(table["images"], thumbnails, strict=True)]
    queries = table["queries"]
    choices = {
        "dataset": _options(query["dataset"] for query in queries),
        "category": _options(query["category"] for query in queries if query["category"] != "all"),
        "aspect": _options(aspect for query in queries for aspect in query["aspects"]),
        "kind": _options(query["kind"] for query in queries if query["kind"]),
    }
    content = {**table, "images": listed, "kinds": KINDS}
    methods = [method["name"] for method in table["methods"]]
    compared = [*methods[:-3:-1], *methods, ""][:2]  # the last two
    values = {"study": study, "is_miniature": is_miniature, "record": record, "note": stale_pages.NO_NOTE}
    values |= {"table": table, "choices": choices, "compared": compared, "json": _json(content)}
    return templates.render("explorer", **values)


def _options(values: Iterable[str]) -> list[tuple[str, str]]:
    """Return each value with its label and its count, classes of composition in the order of KINDS."""
    counts, order = Counter(values), list(KINDS)
    ordered = sorted(counts, key=lambda value: order.index(value) if value in order else 0)  # the sort is stable
    return [(value, f"{KINDS.get(value, value.replace('_', ' '))} ({counts[value]:,})") for value in ordered]


def _queries(benchmarks: Sequence[Benchmark], rows: dict[str, list[int]], rankings: pd.DataFrame) -> list[dict]:
    """Return the drawn queries, each with its benchmark's names, its key, and its class of composition as `kind`."""
    tables = []
    for benchmark in benchmarks:
        facts = {name: getattr(benchmark, name) for name in ("dataset", "split", "category")}
        table = benchmark.queries.iloc[rows[benchmark.name]].assign(**facts, title=benchmark.protocol.title)
        tables.append(table.assign(key=[_key(benchmark, query) for query in table["query"]]))
    if not tables:
        return []
    kinds = composition.classes(rankings).rename(columns={"dataset": "title"})
    queries = pd.concat(tables).merge(kinds, on=["title", "category", "query"], how="left")
    return queries.fillna({"kind": ""}).to_dict("records")  # a study without both single parts has no classes


def _answers(
    queries: list[dict], scores: pd.DataFrame, rankings: pd.DataFrame, names: pd.DataFrame
) -> dict[tuple[str, str], dict]:
    """Return what a method answers to a query, by the query's key and the method."""
    query_of = {tuple(query[name] for name in ("dataset", "split", "category", "query")): query for query in queries}
    precisions = _by_row(scores[scores["metric"] == ASPECT_METRIC], "dataset split category query method", "value")
    words = _by_row(names, "dataset method reference", "names")
    answers = {}
    for row in rankings.itertuples():
        query = query_of.get((row.dataset, row.split, row.category, row.query))
        if query:
            title, method = query["title"], row.method
            answers[query["key"], method] = {
                "rank": row.rank + 1 if 0 <= row.rank < UNLISTED else None,
                "best": list(row.best[:SHOWN]),
                "scores": [round(1000 * float(score)) for score in row.scores[:SHOWN]],
                "precision": precisions.get((title, row.split, row.category, row.query, method)),
                "names": list(words.get((title, method, query["reference"]), [])),
            }
    return answers


def _by_row(table: pd.DataFrame, keys: str, value: str) -> dict[tuple, object]:
    """Return a column's values by the values of the columns `keys`."""
    return dict(zip(table[keys.split()].itertuples(index=False, name=None), table[value], strict=True))


def _entry(query: dict, answers: list[dict], places: dict[tuple[str, str], int]) -> dict:
    """Return what the page shows of a query, and add its images to `places`."""

    def place(image: str) -> int:
        return places.setdefault((query["dataset"], image), len(places))

    truths = [place(image) for image in query["ground_truths"]]
    return {
        "key": query["key"],
        "dataset": query["title"],
        "category": query["category"],
        "aspects": list(query["aspects"]),
        "kind": query["kind"],
        "captions": list(query["sentences"]),
        "reference": place(query["reference"]),
        "truths": truths,
        "ranks": [answer.get("rank") for answer in answers],
        "best": [[place(image) for image in answer.get("best", [])] for answer in answers],
        "scores": [answer.get("scores", []) for answer in answers],
        "precision": [answer.get("precision") if len(truths) > 1 else None for answer in answers],
        "names": [answer.get("names", []) for answer in answers],
    }


def _key(benchmark: Benchmark, query: str) -> str:
    return f"{benchmark.name}/{query}"


def _example_key(benchmarks: Sequence[Benchmark]) -> str:
    """Return the key of the running example, "" without benchmarks."""
    if not benchmarks:
        return ""
    example = benchmark_tables.example(benchmarks)
    return _key(example.benchmark, example.query["query"])


def _selection(benchmarks: Sequence[Benchmark], rows: dict[str, list[int]], seed: int) -> str:
    """Return in a sentence which queries the page shows."""
    total, count = sum(len(benchmark.queries) for benchmark in benchmarks), sum(map(len, rows.values()))
    if count == total:
        return f"The page shows all {total:,} validation queries of the study."
    shares = ", ".join(f"{len(rows[benchmark.name]):,} of {benchmark.name}" for benchmark in benchmarks)
    return (
        f"The page shows {count:,} of {total:,} validation queries of the study: {shares}. They are drawn at random "
        f"with seed {seed}, an equal share of each benchmark or all of its queries; the running example is always in."
    )


def _thumbnail(path: str) -> str:
    """Return an image as WebP in base64, scaled down to SIDE pixels."""
    image = images.read(Path(path)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    with io.BytesIO() as buffer:
        image.save(buffer, "WEBP", quality=QUALITY)
        return base64.b64encode(buffer.getvalue()).decode()


def _json(content: dict) -> str:
    """Return JSON for a script element of a page; a string in it cannot end the element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
