import re

import pandas as pd
import pytest

from searle_lib.data import benchmarks
from searle_lib.evaluation import intervals
from searle_lib.reporting import sheets, tables


def test_a_sheet_marks_hits_and_escapes_what_data_sets_say(world):
    (circo,) = benchmarks.load("circo", world, "val")
    circo.queries.at[0, "sentences"] = ["<script>alert('hi')</script> & more"]
    wanted = circo.queries["ground_truths"][0]
    others = [image for image in circo.gallery["image"] if image not in wanted]
    rows = [
        {
            "dataset": "circo",
            "split": "val",
            "category": "all",
            "method": "SEARLE",
            "query": q,
            "best": [wanted[0], *others[:9]],
        }
        for q in circo.queries["query"]
    ]
    html = sheets.sheet(circo, pd.DataFrame(rows), len(circo.queries), shown=5).data
    assert "<script>" not in html and "&lt;script&gt;alert(&#x27;hi&#x27;)&lt;/script&gt; &amp; more" in html
    first = html.split('<div class="query">')[1]
    marks = re.findall(r'<figure class="(hit|miss)">', first)
    assert marks == ["hit", "miss", "miss", "miss", "miss"]
    assert first.count('<figure class="given">') == 1 + min(len(wanted), 2)
    assert (f">+{len(wanted) - 2}<" in first) == (len(wanted) > 2)


def test_pictures_are_embedded_and_small(tmp_path):
    from PIL import Image

    Image.new("RGB", (900, 300), "red").save(tmp_path / "wide.png")
    assert sheets.embedded(tmp_path / "wide.png").startswith("data:image/webp;base64,")
    html = sheets.strip([tmp_path / "wide.png"], ["a <b>caption</b>"]).data
    assert "a &lt;b&gt;caption&lt;/b&gt;" in html and str(tmp_path) not in html


@pytest.fixture
def summary():
    rows = [
        ("mini", "CIRCO", "val", category, method, "tiny", metric, value, value - 1, value + 1, 20)
        for method, value in (("Text-only", 3.0), ("SEARLE", 9.5))
        for category, metric in (("all", "mAP@5"), ("all", "mAP@10"), ("negation", "mAP@10"))
    ]
    return pd.DataFrame(rows, columns=[*intervals.COLUMNS, "queries"])


def made_with(world):
    sizes = {"circo/val": {"gallery": "circo/unlabeled", "there": [20, 900], "whole": [22, 1000]}}
    return {"world": world, "sizes": sizes, "backbone": "tiny", "clip_sha256": "abcdef0123"}


def test_a_table_marks_the_best_and_shows_published_numbers_as_another_worlds(summary):
    html = tables.table(summary, "CIRCO", "val", made_with("miniature")).data
    assert '<td class="best">9.50<small>8.5–10.5</small></td>' in html
    assert "<td>3.00<small>2.0–4.0</small></td>" in html
    assert (
        "published on the real CIRCO test; this study&#x27;s pictures are another world&#x27;s, do not compare" in html
    )
    assert "SEARLE-OTI (ViT-B/32)" in html and "negation" not in html


def test_every_table_says_how_much_was_there_and_of_which_weights_it_is(summary):
    for html in (
        tables.table(summary, "CIRCO", "val", made_with("real")).data,
        tables.aspect_table(summary, "CIRCO", "val", made_with("real")).data,
    ):
        assert "20 of 22 queries over 900 of 1,000 images" in html and "sha256 of its weights abcdef01…" in html


def test_a_real_study_has_published_numbers_without_that_mark(summary):
    html = tables.table(summary, "CIRCO", "val", made_with("real")).data
    assert "published on the real CIRCO test" in html and "another world" not in html


def test_the_aspect_table_has_a_row_an_aspect(summary):
    html = tables.aspect_table(summary, "CIRCO", "val", made_with("real")).data
    assert html.count("<tr>") == 2 and "negation" in html
