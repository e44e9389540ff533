"""The page of two studies, opened in a browser, and the command that writes it."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from searle_lib import __main__ as command_line
from searle_lib.evaluation import comparisons, intervals
from searle_lib.evaluation.comparisons import Numbers
from searle_lib.reporting import comparison
from searle_lib.store.records import Record

PROVENANCE = {"backbone": "tiny", "sizes": {"circo/val": {"evaluated_on": "200 of 200 queries over 9 of 9 images"}}}
HOSTILE = "<img src=x onerror=alert(1)>"


def record(notebook, code="code", **parameters):
    execution = {"date": "2026-11-28T00:36:00+00:00", "seconds": 90.0, "machine": "x86_64", "versions": {"torch": "2"}}
    return Record(notebook, parameters, {}, {}, code, execution)


def records(code="code", **oti):
    return {
        "01_phrases": record("01_phrases", seed=42, vocabulary=HOSTILE),
        "02_concepts": record("02_concepts", code, seed=42, world="miniature"),
        "03_oti": record("03_oti", seed=42, **oti),
    }


def numbers(name, gain=0):
    """A study of 200 queries; SEARLE has so many hits more."""
    hits = np.arange(200) < 60
    tables = []
    for method, values in (("Text-only", hits), ("SEARLE", np.arange(200) < 80 + gain)):
        facts = {"dataset": "CIRCO", "split": "val", "category": "all", "metric": "mAP@5", "method": method}
        queries = [str(query) for query in range(200)]
        tables.append(pd.DataFrame({"query": queries, "value": values.astype(float)}).assign(**facts))
    scores = pd.concat(tables, ignore_index=True)
    return Numbers(name, intervals.summarise(scores, name, PROVENANCE, resamples=50), scores)


def write(folder, first, second, *of_records):
    table = comparisons.compare(first, second, resamples=300)
    return comparison.write(first, second, table, folder / "page.html", *of_records)


def test_parameters_differ_by_name_and_notebook():
    assert comparison.parameters(records(oti_steps=60), records(oti_steps=10)) == [
        {"name": "oti_steps", "notebook": "03_oti", "first": 60, "second": 10}
    ]
    other_seed = {name: replace(one, parameters=one.parameters | {"seed": 1}) for name, one in records().items()}
    assert comparison.parameters(records(), other_seed) == [
        {"name": "seed", "notebook": "01_phrases", "first": 42, "second": 1}
    ]
    assert comparison.parameters(records(oti_steps=60), records())[0]["second"] is None
    only_one = {"01_phrases": records()["01_phrases"]}
    assert comparison.parameters(records(oti_steps=60), only_one) == []
    assert comparison.code(records(), records("newer")) == ["02_concepts"]


def test_plots_have_one_scale_with_zero_in_the_middle():
    table = comparisons.compare(numbers("mini"), numbers("whatif", 20), resamples=300)
    (panel,) = comparison.panels(table)
    text_only, searle = panel["rows"]
    assert panel["title"] == "CIRCO mAP@5"
    assert text_only["at"] == 50 and text_only["same"] and text_only["ends"] is None
    low, high = searle["ends"]
    assert 50 < low < searle["at"] < high < 100
    row = table[table["method"] == "SEARLE"].iloc[0]
    assert (searle["at"] - 50) / (high - 50) == pytest.approx(row["difference"] / row["high"], abs=0.01)
    assert high == pytest.approx(50 + 50 / 1.08, abs=0.01)  # the widest interval nearly fills its half
    assert (searle["mark"], searle["side"], searle["difference"]) == ("●", "higher", "+10.0")


def test_the_page_opens_from_disk_and_fits_the_screen(tmp_path, visit):
    both = (records(oti_steps=60), records("newer", oti_steps=10))
    page = visit(write(tmp_path, numbers("mini"), numbers("a-study-with-a-rather-long-name", 20), both))
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    text = page.inner_text("main")
    assert "oti_steps\t60\t10\t03_oti" in text and "The code differs in 02_concepts" in text
    assert re.search(r"SEARLE\t40.0\t50.0\t\+10.0 ●\t\s*\[\+\d", text)
    assert "every query scores the same" in text
    assert page.locator("svg.plot").count() == 2


def test_a_study_with_markup_in_its_name_shows_it_as_text(tmp_path, visit):
    other = records(oti_steps=10)
    other["01_phrases"].parameters["vocabulary"] = "\"'&<script>alert(1)</script>"
    page = visit(write(tmp_path, numbers(HOSTILE), numbers("<b>other</b>", 3), (records(), other)))
    assert page.locator("main img, main b, main script").count() == 0
    text = page.inner_text("main")
    assert HOSTILE in text and "<b>other</b> against" in text and "\"'&<script>alert(1)</script>" in text


def test_a_table_alone_has_a_page_without_intervals_that_says_why(tmp_path):
    files = [
        intervals.write_csv(numbers(name, gain).results, tmp_path / f"{name}.csv")
        for name, gain in (("mini", 0), ("whatif", 20))
    ]
    text = write(tmp_path, *map(comparisons.read_csv, files)).read_text()
    assert "whatif.csv holds no scores of single queries" in text
    assert "The parameters are not known" in text and "95 %" not in text


def command(*arguments):
    return command_line.main(["compare", *map(str, arguments)])


def test_the_command_holds_two_tables_to_a_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results = numbers("mini").results
    first = intervals.write_csv(results, tmp_path / "first.csv")
    close = intervals.write_csv(results.assign(value=results["value"] + 0.04, study="close"), tmp_path / "close.csv")
    far = intervals.write_csv(results.assign(value=results["value"] + 0.06, study="far"), tmp_path / "far.csv")
    assert command(first, close) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("every number agrees to 0.05 points.\n")
    assert str(tmp_path / "reports" / "compare-mini-close.html") in printed
    assert (tmp_path / "reports" / "compare-mini-close.html").is_file()
    assert command(first, far) == 1
    assert capsys.readouterr().out.endswith("some numbers differ by more than 0.05 points.\n")
    assert command(first, far, "--tolerance", "0.1", "--to", tmp_path / "own.html") == 0
    assert (tmp_path / "own.html").is_file()


def test_the_command_names_two_tables_of_one_study_by_their_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = intervals.write_csv(numbers("mini").results, tmp_path / "before.csv")
    second = intervals.write_csv(numbers("mini", 20).results, tmp_path / "after.csv")
    assert command(first, second, "--tolerance", "20") == 0
    assert f"The largest difference of {second} to {first} is +10.0 points" in capsys.readouterr().out


def test_the_command_says_what_it_cannot_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(tmp_path / "none.csv", tmp_path / "none.csv") == 1
    assert "none.csv" in capsys.readouterr().err
