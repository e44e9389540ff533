import pandas as pd
from bs4 import BeautifulSoup

from searle_lib.reporting import group_tables

UGLY = "<img src=x onerror=alert(1)>"


def marked(html):
    """The cells of a table by row and column, and the bold ones among them; small print left out."""
    page = BeautifulSoup(html.data, "html.parser")
    columns = [cell.text for cell in page.select("thead th")][1:]
    cells, bold = {}, set()
    for row in page.select("tbody tr"):
        for column, cell in zip(columns, row.select("td"), strict=True):
            key = (row.th.text, column)
            cells[key] = cell.span.text
            if "best" in cell.get("class", []):
                bold.add(key)
    return cells, bold


def test_the_best_printed_mean_of_a_group_is_bold():
    columns = ["dataset", "group", "queries", "method", "metric", "value", "ci_low", "ci_high"]
    rows = [
        ("CIRCO", "2 to 5", 30, "SEARLE", "mAP@5", 20.04, 15.0, 25.0),
        ("CIRCO", "2 to 5", 30, UGLY, "mAP@5", 20.01, 15.0, 25.0),
        ("CIRCO", "6 to 9", 1200, "SEARLE", "mAP@5", 31.0, 25.0, 35.0),
        ("CIRCO", "6 to 9", 1200, UGLY, "mAP@5", 30.0, 25.0, 35.0),
    ]
    cells, bold = marked(group_tables.by_group(pd.DataFrame(rows, columns=columns), "words in the caption"))
    first, second = "CIRCO mAP@5, 2 to 5 (30)", "CIRCO mAP@5, 6 to 9 (1,200)"
    assert cells[first, "SEARLE"] == cells[first, UGLY] == "20.0" and cells[second, UGLY] == "30.0"
    assert bold == {(first, "SEARLE"), (first, UGLY), (second, "SEARLE")}


def test_a_model_that_lacks_a_data_set_has_a_dot_there_and_not_a_number():
    columns = ["dataset", "group", "queries", "method", "metric", "value", "ci_low", "ci_high"]
    rows = [("CIRCO", "2 to 5", 30, "SEARLE", "mAP@5", 20.0, 15.0, 25.0)]
    rows += [("CIRR", "2 to 5", 30, method, "R@1", 10.0, 5.0, 15.0) for method in ("SEARLE", "Mine")]
    html = group_tables.by_group(pd.DataFrame(rows, columns=columns), "words in the caption")
    cells, bold = marked(html)
    assert cells["CIRCO mAP@5, 2 to 5 (30)", "Mine"] == "·" and "nan" not in html.data
    assert ("CIRCO mAP@5, 2 to 5 (30)", "SEARLE") in bold and ("CIRCO mAP@5, 2 to 5 (30)", "Mine") not in bold
    columns = ["dataset", "kind", "queries", "method", "metric", "part", "difference", "low", "high"]
    rows = [("CIRCO", "all", 9, "SEARLE", "hit@10", "Text-only", 4.0, 0.1, 8.0)]
    rows += [("CIRR", "all", 9, method, "hit@10", "Text-only", 4.0, -0.1, 8.0) for method in ("SEARLE", "Mine")]
    html = group_tables.gaps(pd.DataFrame(rows, columns=columns))
    assert marked(html)[0]["CIRCO hit@10, all (9)", "Mine"] == "·" and "nan" not in html.data


def test_a_lead_is_bold_if_its_interval_lies_above_zero():
    columns = ["dataset", "kind", "queries", "method", "metric", "part", "difference", "low", "high"]
    rows = [
        ("CIRR", "all", 9, "SEARLE", "hit@10", "Text-only", 4.0, 0.1, 8.0),
        ("CIRR", "all", 9, "FTI4CIR", "hit@10", "Text-only", 4.0, -0.1, 8.0),
        ("CIRR", "all", 9, "SEARLE", "R@1", "Text-only", 1.0, 0.5, 2.0),  # another metric is left out
    ]
    cells, bold = marked(group_tables.gaps(pd.DataFrame(rows, columns=columns)))
    assert cells == {("CIRR hit@10, all (9)", "SEARLE"): "+4.0", ("CIRR hit@10, all (9)", "FTI4CIR"): "+4.0"}
    assert bold == {("CIRR hit@10, all (9)", "SEARLE")}
    assert "first 10 images" in group_tables.gaps(pd.DataFrame(rows, columns=columns)).data


def test_a_study_without_the_parts_says_so():
    assert group_tables.NOTHING in group_tables.gaps(pd.DataFrame(columns=["metric"], dtype=str)).data
