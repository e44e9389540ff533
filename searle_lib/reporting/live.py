"""Explore a finished study in a notebook: choose or make a query, and see what every method retrieves at once.

    from searle_lib import load_study
    from searle_lib.reporting.live import explore

    explore(load_study("mini"))

The widgets hold the choice, `own_query` ranks, and `lanes` draws. Needs ipywidgets, which nothing else here needs.
"""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

from searle_lib.data import benchmarks
from searle_lib.evaluation import own_query
from searle_lib.evaluation.own_query import Query, Ranking, Retriever
from searle_lib.reporting import lanes
from searle_lib.reporting.lanes import Lanes
from searle_lib.store.records import Study

DEPTH = 8  # images per method
LISTED = 300  # queries that the list shows at most; a browser is slow with thousands


def explore(study: Study):
    """Return a widget that explores a study: its queries, other captions for them, and images of one's own.

    Raises:
        ModuleNotFoundError: if ipywidgets is not installed.
        MissingInput, StaleInput: if the study has not run, or must run again.
    """
    try:
        import ipywidgets
    except ImportError:
        raise ModuleNotFoundError(
            "explore needs ipywidgets, which is not installed; run: pip install 'ipywidgets>=7.7.1,<9'"
        ) from None
    return _Explorer(ipywidgets, own_query.load_retriever(study)).box


def uploaded_file(value: dict | tuple) -> tuple[str, bytes]:
    """Return the name and content of the file in a FileUpload's value, in the form of ipywidgets 7 or 8."""
    file = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return file.get("metadata", file)["name"], bytes(file["content"])


class _Explorer:
    """The widgets, and what they show: one query, and every wording of its caption that was tried."""

    def __init__(self, widgets, retriever: Retriever):
        self.retriever = retriever
        self.folder, self.uploads = tempfile.TemporaryDirectory(), itertools.count()
        self.query: Query | None = None
        self.row: int | None = None  # of the query in its benchmark; None for an image of the user
        self.sentences: list[str] = []  # the forms of its annotated caption
        self.rankings: dict[str, dict[str, Ranking]] = {}  # by wording and method
        self.notes: dict[str, str] = {}  # why a method has no ranking
        self.quiet = False  # whether a value changes by our doing and not by the user's
        full, style = widgets.Layout(width="auto"), {"description_width": "4.5rem"}
        rest = widgets.Layout(width="auto", flex="1 1 14rem")
        example = benchmarks.example(retriever.benchmarks.values())
        self.gallery = widgets.Dropdown(
            options=list(retriever.benchmarks), value=example.benchmark.name, description="Gallery", style=style
        )
        self.part = widgets.Text(placeholder="part of a caption", description="Search", layout=rest, style=style)
        self.list = widgets.Select(rows=6, description="Query", layout=full, style=style)
        self.upload = widgets.FileUpload(
            accept="image/*", description="Your image", layout=widgets.Layout(margin="2px 2px 2px calc(4.5rem + 10px)")
        )
        self.path = widgets.Text(placeholder="or its path; press Enter", continuous_update=False, layout=rest)
        self.caption = widgets.Text(
            placeholder="how the target differs from the reference; press Enter",
            continuous_update=False,
            description="Caption",
            layout=full,
            style=style,
        )
        self.progress = widgets.FloatProgress(max=1, layout=widgets.Layout(width="auto", display="none"))
        self.message, self.output = widgets.HTML(), widgets.HTML()
        wrap = widgets.Layout(flex_flow="row wrap")
        rows = [widgets.HBox([self.gallery, self.part], layout=wrap), self.list]
        rows += [widgets.HBox([self.upload, self.path], layout=wrap), self.caption]
        self.box = widgets.VBox([*rows, self.message, self.progress, self.output])
        self._on(self.gallery, self._choose_gallery)
        self._on(self.part, lambda part: self._list_queries())
        self._on(self.list, self._choose_query)
        self._on(self.upload, self._take_upload)
        self._on(self.path, self._take_path)
        self._on(self.caption, lambda caption: self._show())
        self._list_queries()
        self._choose_query(example.row)

    def _on(self, widget, handle: Callable) -> None:
        widget.observe(lambda change: None if self.quiet else handle(change["new"]), "value")

    def _set(self, widget, **values) -> None:
        self.quiet = True
        for name, value in values.items():
            setattr(widget, name, value)
        self.quiet = False

    def _say(self, sentence: str = "") -> None:
        self.message.value = escape(sentence)

    def _choose_gallery(self, name: str) -> None:
        """Rank another gallery: for the same image if it is the user's own, else for the benchmark's first query."""
        self._set(self.part, value="")
        self._list_queries()
        if self.row is None:
            self.query, self.rankings = replace(self.query, benchmark=self.retriever.benchmarks[name]), {}
            self._show()
        else:
            self._choose_query(0)

    def _list_queries(self) -> None:
        """List the queries of the benchmark whose caption holds what the user searches for."""
        captions = self.retriever.benchmarks[self.gallery.value].queries["sentences"].str[0]
        hits = captions[captions.str.contains(self.part.value.strip(), case=False, regex=False)]
        options = [(f"{row + 1}: {caption}", row) for row, caption in hits.head(LISTED).items()]
        self._set(self.list, options=options, value=self.row if self.row in hits.index[:LISTED] else None)
        self._say(f"{len(hits):,} captions match; the list shows {LISTED}." if len(hits) > LISTED else "")
        if hits.empty:
            self._say(f"No caption of {self.gallery.value} has “{self.part.value}”.")

    def _choose_query(self, row: int | None) -> None:
        if row is not None:
            query = own_query.query_of_study(self.retriever, self.gallery.value, row)
            self._start(query, row, query.benchmark.queries["sentences"].iloc[row])

    def _take_upload(self, value: dict | tuple) -> None:
        if value:
            name, content = uploaded_file(value)
            file = Path(self.folder.name, str(next(self.uploads)))
            file.write_bytes(content)
            self._take_image(file, name)

    def _take_path(self, path: str) -> None:
        if path.strip():
            self._take_image(Path(path.strip()).expanduser(), path)

    def _take_image(self, file: Path, name: str) -> None:
        """Make an image file the reference; keep the caption."""
        try:
            query = own_query.query_of_image(self.retriever, self.gallery.value, file, Path(name).stem)
        except (FileNotFoundError, ValueError):
            self._say(f"{name} cannot be read as an image; choose an image file.")
            return
        self._start(query, None, [])

    def _start(self, query: Query, row: int | None, sentences: list[str]) -> None:
        """Show a query, with its annotated caption if it has one."""
        self.query, self.row, self.sentences = query, row, sentences
        self.rankings, self.notes = {}, dict(self.retriever.reasons)
        self._set(self.list, value=row)
        if sentences:
            self._set(self.caption, value=sentences[0])
        self._show()

    def _show(self) -> None:
        """Draw what the methods retrieve for the caption in its field; methods that invert an image come last."""
        self._say()
        slow = [one for one in own_query.slow_methods(self.retriever, self.query) if one not in self.notes]
        if not slow or not self._wording():
            self._draw()
            return
        self.notes |= dict.fromkeys(slow, "optimising a pseudo-word for this image ...")
        self._draw()
        self.notes |= dict.fromkeys(slow, "stopped; choose the image again.")
        self.progress.value, self.progress.layout.display = 0, ""
        try:
            self.notes |= own_query.invert(self.retriever, self.query, self._advance)
        finally:
            self.progress.layout.display = "none"
            self._draw()

    def _advance(self, share: float) -> None:
        self.progress.value = share

    def _wording(self) -> str:
        return self.caption.value.strip()

    def _draw(self) -> None:
        """Rank by each method that has no ranking for this wording yet, and show all rankings."""
        wording = self._wording()
        sentences = self.sentences if wording == "".join(self.sentences[:1]).strip() else [wording]
        if wording:
            rankings = self.rankings.setdefault(wording, {})
            for method in self.query.composers:
                if method not in rankings:
                    rankings[method] = own_query.rank(self.retriever, self.query, method, sentences, DEPTH)
        state = Lanes(self.query, self.retriever.methods, self.rankings, wording, self.notes)
        self.output.value = lanes.html(state)
