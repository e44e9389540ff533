import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageColor

from searle_lib.evaluation import intervals, methods
from searle_lib.fti4cir.network import Words
from searle_lib.reporting import figures, templates

# Linear RGB as readers with a colour blindness see it (Machado, Oliveira and Fernandes 2009, full severity).
SIGHT = {
    "all cones": np.eye(3),
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]])  # white is (1, 1, 1)


def linear(colour):
    values = np.array(ImageColor.getrgb(colour)) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(first, second):
    """The ratio of WCAG 2."""
    dark, light = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


def lab(colour, sight):
    """CIE L*a*b* of a colour as a reader sees it."""
    x, y, z = np.cbrt(np.clip(TO_XYZ @ (np.array(SIGHT[sight]) @ linear(colour)), 0.009, 1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def papers():
    """The light and the dark colour of a page."""
    css = templates._ENVIRONMENT.loader.get_source(templates._ENVIRONMENT, "page.css")[0]
    return re.findall("--page-paper: (#[0-9a-f]{6})", css)


def results(methods=("Image-only", "FTI4CIR"), categories=("all",)):
    rows = [
        ("CIRCO", "val", category, method, "mAP@10", 10.0 + 20 * i, 8.0 + 20 * i, 13.0 + 20 * i, 40)
        for category in categories
        for i, method in enumerate(methods)
    ]
    columns = ["dataset", "split", "category", "method", "metric", "value", "ci_low", "ci_high", "queries"]
    return pd.DataFrame(rows, columns=columns)


PANEL = ("CIRCO", "val", "all", "mAP@10")


COLOURS = methods.colours(["a method of one's own"])  # and those of the library


@pytest.mark.parametrize("colour", [*COLOURS.values(), *methods.FURTHER_COLOURS, *figures.KINDS.values()])
def test_a_colour_stands_out_from_the_light_and_the_dark_page(colour):
    assert len(papers()) == 2 and all(contrast(colour, paper) >= 3 for paper in papers())


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_methods_differ_for_every_reader(sight):
    for first, second in itertools.combinations(COLOURS, 2):
        distance = np.linalg.norm(lab(COLOURS[first], sight) - lab(COLOURS[second], sight))
        assert distance > 15, (first, second)


def test_every_method_has_a_colour_of_its_own():
    own = methods.colours(["SEARLE", "Mine", "Yours"])
    assert len(set(own.values())) == len(own) == len(methods.METHODS) + 2


def test_bars_are_as_long_as_the_values_and_are_labelled_with_them():
    (figure,) = figures.chart(results(), [PANEL]).figures
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [10, 30]
    assert [text.get_text() for text in axes.texts] == ["10.0", "30.0"]
    (lines,) = axes.collections
    assert [[x for x, _ in ends] for ends in lines.get_segments()] == [[8, 13], [28, 33]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Image-only", "FTI4CIR"]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [
        tuple(np.array(ImageColor.getrgb(COLOURS[method])) / 255) for method in ("Image-only", "FTI4CIR")
    ]


def test_a_chart_has_a_text_with_every_number():
    html = figures.chart(results(), [PANEL]).data
    assert 'aria-label="CIRCO val, mAP@10, %: Image-only 10.0 [8.0, 13.0]; FTI4CIR 30.0 [28.0, 33.0]."' in html


def test_names_are_never_markup():
    chart = figures.chart(results(methods=["<img src=x>", 'a" b $x_1$']), [PANEL])
    assert "<img" not in chart.data and "&lt;img src=x&gt;" in chart.data and "$x_1$" in chart.data
    assert 'a" b' not in chart.data.replace('>a" b $x_1$<', "")  # in an element's text, but in no attribute


def test_a_chart_takes_the_colours_of_the_page_and_has_no_ids_of_groups():
    html = figures.chart(results(), [PANEL, PANEL]).data
    assert html.count("<svg") == 2 and "var(--ink, #1d2433)" in html and not re.search('id="(?!m|p)', html)
    assert not re.search("fill: #1d2433|stroke: #1d2433", html)


def test_the_same_results_give_the_same_chart():
    assert figures.chart(results(), [PANEL]).data == figures.chart(results(), [PANEL]).data


def test_a_chart_is_saved_as_one_image(tmp_path):
    one, five = (figures.chart(results(), [PANEL] * count) for count in (1, 5))
    assert figures.save(five, tmp_path / "figures" / "five.png") is five
    figures.save(one, tmp_path / "one.png")
    single, whole = (Image.open(tmp_path / name) for name in ("one.png", "figures/five.png"))
    assert whole.size == (4 * single.width, 2 * single.height)
    assert np.array_equal(whole.crop((0, single.height, *(single.width, 2 * single.height))), single)


def test_a_group_of_queries_has_its_figure_on_the_axis_of_its_data_set():
    table = results(categories=["few_words", "many_words"]).rename(columns={"category": "group"})
    table.loc[table["group"] == "many_words", ["value", "ci_low", "ci_high"]] /= 2
    chart = figures.groups(table)
    assert [text.partition(":")[0] for text in chart.texts] == [
        "CIRCO, few words, mAP@10, %, 40 queries",
        "CIRCO, many words, mAP@10, %, 40 queries",
    ]
    assert len({figure.axes[0].get_xlim() for figure in chart.figures}) == 1


def test_aspects_are_those_of_circo():
    table = results(categories=["all", "negation", "addition"])
    other = table.assign(dataset="FashionIQ", category=intervals.AVERAGE)
    chart = figures.aspects(pd.concat([table, other]))
    assert [text.partition(",")[2].partition(",")[0] for text in chart.texts] == [" negation", " addition"]


def test_a_model_keeps_its_colour_in_every_chart_though_others_lack_a_data_set():
    circo = results(methods=["SEARLE", "Mine"], categories=["all", "negation"])
    cirr = results(methods=["SEARLE", "Mine", "Another"]).assign(dataset="CIRR", metric="R@1")
    both = pd.concat([circo, cirr])
    colour = np.array(ImageColor.getrgb(methods.colours(both["method"])["Mine"])) / 255
    panels = [PANEL, ("CIRR", "val", "all", "R@1")]
    for figure in (*figures.chart(both, panels).figures, *figures.aspects(both).figures):
        assert figure.axes[0].patches[1].get_facecolor()[:3] == tuple(colour)
    curves = pd.concat([both[both["category"] == "all"].assign(k=k) for k in (1, 5)])
    for figure in figures.recall_curves(curves).figures:
        assert ImageColor.getrgb(figure.axes[0].lines[1].get_color()) == ImageColor.getrgb(
            methods.colours(both["method"])["Mine"]
        )
    assert methods.colours(both["method"]) == methods.colours(both["method"][::-1])


def test_shares_of_queries_add_up_to_whole_bars():
    kinds = ["shortcut"] * 5 + ["composed"] * 4 + ["unsolved"]
    classes = pd.DataFrame({"dataset": "CIRR", "category": "all", "query": range(10), "kind": kinds})
    chart = figures.composition(pd.concat([classes, classes.assign(dataset="CIRCO", kind="composed")]))
    (axes, *_) = chart.figures[0].axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[50, 0], [40, 100], [10, 0]]
    assert "CIRR: shortcut 50 %, composed 40 %, unsolved 10 %; CIRCO: shortcut 0 %, composed 100 %" in chart.texts[0]


def test_recall_is_a_curve_for_each_method():
    table = pd.DataFrame(
        [("CIRR", "SEARLE", k, 10.0 * k) for k in (1, 2, 5)], columns=["dataset", "method", "k", "value"]
    )
    chart = figures.recall_curves(pd.concat([table, table.assign(method="FTI4CIR", value=table["value"] + 1)]))
    assert [list(line.get_ydata()) for line in chart.figures[0].axes[0].lines] == [[10, 20, 50], [11, 21, 51]]
    assert chart.texts == (
        "CIRR, recall at k in percent for k from 1 to 5: SEARLE from 10.0 to 50.0; FTI4CIR from 11.0 to 51.0.",
    )


def test_curves_show_the_columns_that_exist():
    history = pd.DataFrame({"step": [0, 1, 0, 1], "cos": [1.0, 0.5, 3.0, 0.1]})
    chart = figures.loss_curves(history, {"cos": "image loss", "gpt": "phrase loss"})
    assert [list(line.get_ydata()) for line in chart.figures[0].axes[0].lines] == [[2.0, 0.3]]
    assert chart.texts == ("Curves over step: image loss from 2 to 0.3.",)
    assert "Nothing to show" in figures.loss_curves(history, {"gpt": "phrase loss"}).data


def test_attention_shows_the_kept_attributes_with_their_scores(tmp_path):
    for name in "ab":
        Image.new("RGB", (30, 20), "white").save(tmp_path / f"{name}.png")
    shares = torch.zeros(2, 4, 10)
    shares[:, :, 9] = 1  # the last patch of 3 x 3, below on the right
    words = Words(
        *[None] * 2, torch.tensor([2, 1]), None, torch.tensor([[3, 0], [1, 0]]), torch.arange(8.0).view(2, 4) / 10
    )
    html = figures.attention([tmp_path / "a.png", tmp_path / "b.png"], shares, words).data
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == [
        "image",
        "score 0.30",
        "score 0.00",
        "image",
        "score 0.50",
    ]


def test_heat_is_bright_where_an_attribute_looks():
    heat = np.zeros((3, 3), dtype=np.float32)
    heat[2, 2] = 1
    grey = np.asarray(figures._overlay(Image.new("RGB", (90, 60), "white"), heat).convert("L"))
    assert grey.shape == (60, 90) and grey[55, 85] > grey[5, 5] + 50
