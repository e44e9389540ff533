import re

import pandas as pd
import pytest

from searle_lib.evaluation import intervals
from searle_lib.reporting import tables


@pytest.fixture
def summary():
    rows = [
        ("mini", "CIRCO", "val", category, method, "tiny", metric, value, value - 1, value + 1, 20)
        for method, value in (("Text-only", 3.0), ("SEARLE", 9.5), ("Image+Text", 9.5), ("Image-only", 2.0))
        for category, metric in (("all", "mAP@5"), ("all", "mAP@10"), ("direct_addressing", "mAP@10"))
    ]
    return pd.DataFrame(rows, columns=[*intervals.COLUMNS, "queries"])


def provenance(world="real"):
    sizes = {"circo/val": {"evaluated_on": "20 of 22 queries over 900 of 1,000 images"}}
    return {"world": world, "sizes": sizes, "backbone": "tiny", "clip_sha256": "abcdef0123"}


def cells(html, row):
    """Classes and content of the cells of a table's row."""
    (line,) = [line for line in re.findall("<tr>.*?</tr>", html, re.S) if re.search(rf"<th[^>]*>{row}</th>", line)]
    return [(names.split()[3:], text) for names, text in re.findall('<td class="([^"]*)"[^>]*>(.*?)</td>', line)]


def test_the_best_values_are_marked_and_so_are_the_second_best(summary):
    html = tables.table(summary, "CIRCO", "val", provenance()).data
    assert cells(html, "SEARLE") == [(["best"], "<span>9.50</span><small>8.5–10.5</small>")] * 2
    assert cells(html, "Image\\+Text") == cells(html, "SEARLE")
    assert cells(html, "Text-only") == [(["second"], "<span>3.00</span><small>2.0–4.0</small>")] * 2
    assert cells(html, "Image-only") == [([], "<span>2.00</span><small>1.0–3.0</small>")] * 2


def test_published_numbers_stand_below_without_marks(summary):
    html = tables.table(summary, "CIRCO", "val", provenance()).data
    assert cells(html, r"SEARLE-OTI <small>\(ViT-B/32\)</small>") == [
        ([], "<span>7.14</span>"),
        ([], "<span>7.83</span>"),
    ]
    assert cells(html, r"Captioning <small>\(ViT-B/32\)</small>") == [([], "·"), ([], "<span>5.77</span>")]


@pytest.mark.parametrize("world, warning", [("real", ""), ("miniature", "; do not compare with drawn images")])
def test_published_numbers_carry_a_warning_where_the_images_are_drawn(summary, world, warning):
    html = tables.table(summary, "CIRCO", "val", provenance(world)).data
    assert f'<span class="group">published on the real CIRCO test{warning}</span>' in html


def test_a_table_of_one_kind_has_only_its_metrics(summary):
    summary.loc[summary["metric"] == "mAP@5", "metric"] = "R@5"
    html = tables.table(summary, "CIRCO", "val", provenance(), kind="R").data
    assert "R@5" in html and "mAP@10" not in html


def test_the_aspect_table_marks_the_best_method_of_each_aspect(summary):
    html = tables.aspect_table(summary, "CIRCO", "val", provenance()).data
    classes, texts = zip(*cells(html, "direct addressing"), strict=True)
    assert list(classes) == [[], ["second"], ["best"], ["best"], []] and texts[0] == "20"


def test_every_table_says_how_much_is_evaluated_and_with_which_weights(summary):
    for html in tables.of_study(summary, provenance()):
        assert "20 of 22 queries over 900 of 1,000 images" in html.data
        assert "sha256 of its weights abcdef01…" in html.data


def test_names_of_methods_and_aspects_are_never_markup(summary):
    summary = summary.replace({"SEARLE": "<b>S</b>", "direct_addressing": "<i>d</i>", "tiny": "<u>t</u>"})
    for html in tables.of_study(summary, provenance() | {"backbone": "<u>t</u>"}):
        assert "&lt;b&gt;S&lt;/b&gt;" in html.data and not re.search("<[biu]>", html.data)


def test_sentences_are_escaped():
    assert "<li>R@1 &lt; R@5</li>" in tables.sentences(["R@1 < R@5"]).data
