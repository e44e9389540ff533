import io
import re
import shutil
import subprocess
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.evaluation import intervals
from searle_lib.reporting import formats, tables

UGLY = ("a_b & 50% #1 $x$ ~^\\{}", "<img src=x onerror=alert(1)>")
METHODS = ("Text-only", "SEARLE", "FTI4CIR")
GROUPS = {("CIRCO", "mAP@5"): ["SEARLE", "Image+Text", "Text-only"], ("CIRR", "R@1"): ["SEARLE"]}


@pytest.fixture
def summary():
    rows = [
        ("mini", "CIRCO", "val", category, method, "tiny", metric, value, value - 1, value + 1, 20)
        for method, value in (("Text-only", 3.0), ("SEARLE", 9.5), ("Image+Text", 9.5), ("Image-only", 2.0))
        for category, metric in (("all", "mAP@5"), ("all", "mAP@10"), ("direct_addressing", "mAP@10"))
    ]
    return pd.DataFrame(rows, columns=[*intervals.COLUMNS, "queries"])


def study_results(methods=METHODS, backbone="tiny"):
    """Results of every metric of every data set, with four decimals; a third of the values end in an exact half."""
    random, rows = np.random.default_rng(0), []
    for protocol in PROTOCOLS.values():
        categories = [*protocol.categories, intervals.AVERAGE] if len(protocol.categories) > 1 else ["all"]
        for category, metric in [(under or c, m) for m, under in protocol.metrics for c in categories]:
            for method in methods:
                value = random.choice([random.integers(0, 200) / 2 + 0.25, random.uniform(0, 99), 37.0])
                panel = (backbone, metric, round(value, 4), round(value * 0.9, 4), round(value * 1.01, 4), 20)
                rows.append(("mini", protocol.title, "val", category, method, *panel))
    return pd.DataFrame(rows, columns=[*intervals.COLUMNS, "queries"])


def provenance(world="real", backbone="tiny", gallery=""):
    words = f"20 of 22 queries over 900 of 1,000 images{gallery}"
    sizes = {name: {"evaluated_on": words} for name in ("circo/val", "cirr/val", "fashioniq/val/dress")}
    return {"world": world, "sizes": sizes, "backbone": backbone, "clip_sha256": "abcdef0123"}


@pytest.fixture(scope="module")
def whole():
    """Every table of a study."""
    return tables.of_study(study_results(), provenance() | {"preprocess": "targetpad"})


def test_a_table_says_which_setting_a_method_has_and_where_it_was_chosen():
    chosen = {"setting": [0.7], "values": [10.0, 20.0]}
    settings = {"fashioniq/val/SEARLE": chosen, "cirr/val/SEARLE": chosen | {"setting": [0.0, 1.0, 0.5]}}
    settings["fashioniq/val/Text-only"] = {"setting": [0.5], "values": []}
    pages = [
        tables.table(study_results(), title, "val", provenance() | {"settings": settings}).data
        for title in ("CIRCO", "FashionIQ")
    ]
    assert "Text-only with 0.5, unchosen, for the study lacks fashioniq/val; SEARLE with 0.7, chosen on" in pages[0]
    assert "SEARLE with 0, 1, 0.5, chosen on cirr/val" in pages[1] and "Text-only with" not in pages[1]


def kind(page, name):
    """The part of a table's HTML that holds one kind of numbers."""
    return BeautifulSoup(page, "html.parser").select_one(f".part.{name}")


def cells(page, row, name="study"):
    """Classes and content of the cells of a table's row, which is named by its whole text."""
    (line,) = [line for line in kind(page, name).select("tbody tr") if line.th.get_text() == row]
    return [(cell["class"][3:], cell.decode_contents()) for cell in line.select("td")]


def texts(page):
    """The texts that the buttons of a page copy, by format."""
    return {button.text: button["data-text"] for button in BeautifulSoup(page, "html.parser").select("button")}


def half_even(value):
    return str(Decimal(value).quantize(Decimal("0.1"), ROUND_HALF_EVEN))


def latex_rows(text):
    """The rows of values in a LaTeX table, each with the row of intervals below it."""
    body = re.sub(r"\\\\\[-?0\.6ex\]", r"\\\\", text).split("\\bottomrule")[0]
    lines = [line.removesuffix(" \\\\").split(" & ") for line in body.splitlines() if " & " in line]
    return [(line, bounds) for line, bounds in pairwise(lines) if bounds[0].strip() == ""]


def markdown_rows(text):
    """The rows of all tables in a Markdown text as a reader sees them."""
    page = BeautifulSoup(MarkdownIt().enable("table").render(text), "html.parser")
    return [[cell.get_text() for cell in row.select("th, td")] for row in page.select("tr")]


def test_the_best_values_are_marked_and_so_are_the_second_best(summary):
    page = tables.table(summary, "CIRCO", "val", provenance()).data
    assert cells(page, "SEARLE") == [(["best"], "<span>9.5</span><small>8.5–10.5</small>")] * 2
    assert cells(page, "Image+Text") == cells(page, "SEARLE")
    assert cells(page, "Text-only") == [(["second"], "<span>3.0</span><small>2.0–4.0</small>")] * 2
    assert cells(page, "Image-only") == [([], "<span>2.0</span><small>1.0–3.0</small>")] * 2


def test_values_that_print_alike_have_the_same_mark(summary):
    summary.loc[summary["method"] == "Image+Text", "value"] = 9.46
    page = tables.table(summary, "CIRCO", "val", provenance()).data
    assert [marks for marks, _ in cells(page, "Image+Text") + cells(page, "SEARLE")] == [["best"]] * 4


def test_methods_that_tie_with_the_best_are_marked_in_every_format_and_only_in_tested_columns(summary):
    page = tables.table(summary, "CIRCO", "val", provenance(), groups=GROUPS).data
    tie = "<span>3.0</span><sup>†</sup><small>2.0–4.0</small>"
    assert cells(page, "Text-only") == [(["second"], tie), (["second"], tie.replace("<sup>†</sup>", ""))]
    assert "†" not in str(cells(page, "SEARLE") + cells(page, "Image-only"))
    latex, markdown, csv = texts(page).values()
    assert "Text-only & \\underline{3.0\\rlap{$^{\\dagger}$}} & \\underline{3.0} \\\\" in latex
    assert "| Text-only | <ins>3.0</ins>† <small>2.0–4.0</small> | <ins>3.0</ins> <small>" in markdown
    assert "| Image+Text | **9.5**† <small>8.5–10.5</small> | **9.5** <small>" in markdown
    table = pd.read_csv(io.StringIO(csv)).query("numbers == 'study'").set_index("method")
    assert table.loc[["Text-only", "Image+Text"], "mAP@5 mark"].tolist() == ["second tied", "best tied"]
    assert table.loc["Text-only", "mAP@10 mark"] == "second" and table.loc["SEARLE", "mAP@5 mark"] == "best"


def test_the_note_explains_the_sign_of_a_tie_and_names_the_tested_metrics(summary):
    page = tables.table(summary, "CIRCO", "val", provenance(), groups=GROUPS).data
    assert "† These queries cannot tell it from the best of its column" in page and "Tested: mAP@5." in page
    assert "†" not in tables.table(summary, "CIRCO", "val", provenance()).data


def test_a_tie_on_the_average_is_not_marked_in_single_categories():
    groups = {("FashionIQ", "R@10"): ["FTI4CIR", "SEARLE"]}
    page = tables.table(study_results(), "FashionIQ", "val", provenance(), "R", groups).data
    columns = pd.read_csv(io.StringIO(texts(page)["CSV"])).query("numbers == 'study'").astype(str)
    tied = [name for name in columns if name.endswith(" mark") and columns[name].str.contains("tied").any()]
    assert tied == ["average R@10 mark"] and "Tested: average R@10." in page


def test_published_numbers_stand_apart_without_marks(summary):
    page = tables.table(summary, "CIRCO", "val", provenance()).data
    assert cells(page, "SEARLE-OTI (ViT-B/32) [1, 2]", "published") == [
        ([], "<span>7.1</span>"),
        ([], "<span>7.8</span>"),
    ]
    assert cells(page, "Captioning (ViT-B/32) [1]", "published") == [([], "·"), ([], "<span>5.8</span>")]
    assert kind(page, "published").name == "details" and not kind(page, "published").has_attr("open")
    assert kind(page, "study").name == "div" and "ViT-B/32" not in kind(page, "study").text


def test_the_sources_of_published_numbers_are_named_with_their_tables(summary):
    page = tables.table(summary, "CIRCO", "val", provenance()).data
    note = kind(page, "published").select("small")[-1].text
    assert "[1] SEARLE ICCV 2023 poster. [2] AutoCIR paper Tables 1-2." in note
    row = pd.read_csv(io.StringIO(texts(page)["CSV"])).query("numbers == 'published' and method == 'SEARLE-OTI'")
    assert row["source"].tolist() == ["AutoCIR paper Tables 1-2; SEARLE ICCV 2023 poster"]


def test_numbers_that_sources_disagree_on_are_named():
    page = tables.table(study_results(), "FashionIQ", "val", provenance(), "R").data
    assert "Context-I2W (ViT-L/14) average R@50: another source prints 48.90." in kind(page, "published").text


def test_the_reproduction_of_the_design_document_is_a_kind_of_its_own():
    page = tables.table(study_results(), "FashionIQ", "val", provenance(), "R").data
    assert cells(page, "FTI4CIR (backbone unstated) [7]", "reproduced")[0] == ([], "<span>23.9</span>")
    assert "[7] design document, 'experiments' table." in kind(page, "reproduced").text
    assert "unstated" not in kind(page, "published").text and "[7]" not in kind(page, "published").text


@pytest.mark.parametrize("world, warning", [("real", ""), ("miniature", "; do not compare with drawn images")])
def test_published_numbers_carry_a_warning_where_the_images_are_drawn(summary, world, warning):
    page = tables.table(summary, "CIRCO", "val", provenance(world)).data
    assert f"<summary>Published, on the real CIRCO test{warning}</summary>" in page
    assert ("on the drawn images of a miniature world" in kind(page, "study").text) == (world == "miniature")
    for text in (texts(page)["LaTeX"], texts(page)["Markdown"]):
        assert f"Published, on the real CIRCO test{warning}" in text


def test_a_real_study_shows_its_difference_to_the_published_value_of_method_and_backbone():
    results = study_results(["SEARLE", "Text-only", "Image-only"], "ViT-L/14")
    rows = (results["dataset"] == "FashionIQ") & (results["method"] == "SEARLE") & (results["metric"] == "R@10")
    results.loc[rows & (results["category"] == "dress"), ["value", "ci_low", "ci_high"]] = [19.45, 17.5, 21.5]
    page = tables.table(results, "FashionIQ", "val", provenance(backbone="ViT-L/14"), "R").data
    assert cells(page, "SEARLE", "difference")[0][1] == "<span>−1.0</span><small>[−3.0, 1.0]</small>"  # SEARLE-XL 20.48
    assert len(kind(page, "difference").select("tbody tr")) == 1  # no Text-only, no Image-only of ViT-L/14
    assert pd.read_csv(io.StringIO(texts(page)["CSV"])).query("numbers == 'difference'")["dress R@10"].item() == -1.03
    other = tables.table(results, "FashionIQ", "val", provenance(backbone="open_clip:ViT-L-14/openai"), "R").data
    assert kind(other, "difference") is None  # published numbers are of OpenAI's own package


def test_another_model_has_no_backbone_and_no_difference_to_a_paper_in_its_name():
    results = study_results(methods=("SEARLE", "SEARLE-OTI"), backbone="ViT-L/14")
    facts = provenance(backbone="ViT-L/14") | {"ranked": {"SEARLE"}}
    page = tables.table(results, "CIRCO", "val", facts).data
    assert "scored from files, backbone unstated: SEARLE-OTI" in page
    assert "scored from files" not in tables.table(results, "CIRCO", "val", provenance()).data
    page = tables.table(results, "FashionIQ", "val", facts, "R").data
    own = tables.table(results, "FashionIQ", "val", facts | {"ranked": {"SEARLE", "SEARLE-OTI"}}, "R").data
    rows = [[row.th.text for row in kind(one, "difference").select("tbody tr")] for one in (page, own)]
    assert rows == [["SEARLE"], ["SEARLE", "SEARLE-OTI"]]


def test_a_difference_of_nothing_has_no_minus():
    assert [formats.printed(value, is_signed=True) for value in (-0.04, 0.04, -0.06)] == ["+0.0", "+0.0", "−0.1"]


@pytest.mark.parametrize(
    "dataset, facts, says_why",
    [
        ("FashionIQ", provenance("miniature", "ViT-B/32"), False),
        ("FashionIQ", provenance("real", "tiny"), True),
        ("FashionIQ", provenance("real", "ViT-B/32", " (union gallery)"), True),
        ("CIRCO", provenance("real", "ViT-B/32"), True),  # papers print the test split
    ],
)
def test_there_is_no_difference_to_numbers_of_other_images_galleries_splits_or_backbones(dataset, facts, says_why):
    page = tables.table(study_results(), dataset, "val", facts, "R" if dataset == "FashionIQ" else "mAP").data
    assert not kind(page, "difference") and ("No difference is shown" in page) == says_why


def test_a_table_of_one_kind_has_only_its_metrics(summary):
    summary.loc[summary["metric"] == "mAP@5", "metric"] = "R@5"
    page = tables.table(summary, "CIRCO", "val", provenance(), kind="R").data
    assert "R@5" in page and "mAP@10" not in page


def test_the_aspect_table_marks_the_best_method_of_each_aspect(summary):
    page = tables.aspect_table(summary, "CIRCO", "val", provenance()).data
    assert [marks for marks, _ in cells(page, "direct addressing (20 queries)")] == [["second"], ["best"], ["best"], []]


def test_every_table_says_how_much_is_evaluated_and_with_which_weights_in_every_format(whole):
    for table in whole:
        page = BeautifulSoup(table.data, "html.parser").text
        for text in (page, texts(table.data)["Markdown"], texts(table.data)["LaTeX"], texts(table.data)["CSV"]):
            assert re.search(r"val, n = 20: 20 of 22 queries over 900 of 1,000 images; .*the reference", text)
            assert re.search(r"sha256 of its weights abcdef01(…|\\ldots\{\}|\\…)\)", text)
            assert "images preprocessed by targetpad" in text


def test_all_formats_agree_with_the_results_to_the_digit(whole, tmp_path):
    written = pd.read_csv(intervals.write_csv(study_results(), tmp_path / "results.csv"), dtype=str)
    key, numbers = ["dataset", "category", "metric", "method"], ["value", "ci_low", "ci_high"]
    expected = {tuple(row[:4]): row[4:] for row in written[key + numbers].to_numpy().tolist()}
    for table in whole:
        dataset = BeautifulSoup(table.data, "html.parser").h3.text.split()[0]
        forms = texts(table.data)
        csv = pd.read_csv(io.StringIO(forms["CSV"]), dtype=str).query("numbers == 'study'")
        names = [name for name in csv if re.fullmatch(r"(\w+ )?\w+@\d+", name)]
        latex, markdown = latex_rows(forms["LaTeX"]), markdown_rows(forms["Markdown"])[1:]
        for place, method in enumerate(METHODS):
            row = [BeautifulSoup(text, "html.parser") for _, text in cells(table.data, method)]
            line, bounds = latex[place]
            for column, name in enumerate(names):
                category, _, metric = name.rpartition(" ")
                category = category or ("subset" if metric.startswith("Rsubset") else "all")
                exact = expected.pop((dataset, category, metric, method))
                assert list(csv.iloc[place][[name, f"{name} low", f"{name} high"]]) == exact
                value, low, high = (half_even(float(number)) for number in exact)
                assert re.findall(r"[\d.]+", line[column + 1]) == [value]
                assert bounds[column + 1] == f"{{\\tiny {low}--{high}}}"
                assert markdown[place][column + 1] == f"{value} {low}–{high}"
                assert (row[column].span.text, row[column].small.text) == (value, f"{low}–{high}")
    assert not expected  # every number is in a table


def test_names_of_methods_and_aspects_are_never_markup(summary):
    summary = summary.replace({"SEARLE": "<b>S</b>", "direct_addressing": "<i>d</i>", "tiny": "<u>t</u>"})
    for table in tables.of_study(summary, provenance() | {"backbone": "<u>t</u>"}):
        assert "&lt;b&gt;S&lt;/b&gt;" in table.data and not BeautifulSoup(table.data, "html.parser").select("b, i, u")


def test_details_headings_and_notes_are_text_in_html():
    rows = pd.MultiIndex.from_tuples([("SEARLE", "<b>detail</b>", "<b>[1]</b>")])
    numbers = pd.DataFrame([[formats.Cell(1.0)]], rows, pd.MultiIndex.from_tuples([("<b>group</b>", "<b>R@1</b>")]))
    section = formats.Section("study", "<b>heading</b>", numbers, ["<b>source</b>"], "<b>section</b>")
    page = formats.to_html(formats.Table("<b>name</b>", "<b>title</b>", "<b>rows</b>", [section], "<b>note</b>"))
    assert not BeautifulSoup(page, "html.parser").select("b")


def test_names_are_text_in_markdown_and_csv():
    for table in tables.of_study(study_results([*UGLY, "|x|"]), provenance()):
        rows = markdown_rows(texts(table.data)["Markdown"])
        names = [row[0] for row in rows] + rows[0]
        csv = pd.read_csv(io.StringIO(texts(table.data)["CSV"]))
        assert {*UGLY, "|x|"} <= set(names) and {*UGLY, "|x|"} <= {*csv["method"]}
        assert len({len(row) for row in rows}) == 1


def test_names_are_text_in_latex():
    page = tables.table(study_results([*UGLY, "[x]"]), "CIRR", "val", provenance()).data
    labels = [line[0] for line, _ in latex_rows(texts(page)["LaTeX"])]
    assert labels == [
        r"a\_b \& 50\% \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}",
        r"\textless{}img src=x onerror=alert(1)\textgreater{}",
        "{[}x{]}",
    ]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex with booktabs")
def test_every_latex_table_compiles(tmp_path):
    facts = provenance(backbone="ViT-B/32") | {"preprocess": UGLY[0]}
    results = study_results([*UGLY, "SEARLE"], "ViT-B/32")
    results = pd.concat([results, results.query("metric == 'mAP@10'").assign(category="a_b", dataset="CIRCO")])
    results = results.drop_duplicates(["dataset", "category", "method", "metric"])
    groups = {key: ["SEARLE", *UGLY] for key in [("FashionIQ", "R@10"), ("CIRR", "R@1"), ("CIRCO", "mAP@5")]}
    files = [path for path in tables.write_files(results, facts, groups, tmp_path) if path.suffix == ".tex"]
    inputs = "\n".join(f"\\input{{{path.name}}}" for path in files)
    document = (
        f"\\documentclass[twocolumn]{{article}}\\usepackage{{booktabs}}\\begin{{document}}{inputs}\\end{{document}}"
    )
    (tmp_path / "all.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0 and "Missing character" not in finished.stdout, finished.stdout[-2000:]
    assert len(files) == 6


def test_write_files_writes_each_table_in_four_formats_and_the_same_bytes_again(tmp_path):
    first = tables.write_files(study_results(), provenance(), GROUPS, tmp_path / "tables")
    content = [path.read_bytes() for path in first]
    names = ("FashionIQ", "FashionIQ-mAP", "CIRR", "CIRCO", "CIRCO-R")
    assert [path.name for path in first] == [f"{name}.{end}" for name in names for end in ("tex", "md", "csv", "html")]
    assert sorted((tmp_path / "tables").iterdir()) == sorted(first)
    circo = study_results().query("dataset == 'CIRCO'")
    assert tables.write_files(circo, provenance(), GROUPS, tmp_path / "tables") == first[12:]
    assert [path.read_bytes() for path in first] == content


def test_sentences_are_escaped():
    assert "<li>R@1 &lt; R@5</li>" in tables.sentences(["R@1 < R@5"]).data


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    groups, folder = {("FashionIQ", "R@50"): UGLY}, tmp_path_factory.mktemp("tables")
    results = study_results(UGLY).query("dataset == 'FashionIQ'")
    tables.write_files(results, provenance(), groups, folder)
    return folder / "FashionIQ.html"


@pytest.mark.parametrize("clipboard", ["allowed", "refused", "absent"])
def test_the_buttons_copy_exactly_what_the_files_hold(browser, page_file, clipboard):
    page = browser.new_page()
    if clipboard == "refused":
        page.add_init_script("navigator.clipboard.writeText = async () => { throw new Error('refused') }")
    if clipboard == "absent":
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.goto(page_file.as_uri())
    page.evaluate("document.body.append(document.createElement('textarea'))")
    for name, ending in (("LaTeX", ".tex"), ("Markdown", ".md"), ("CSV", ".csv")):
        page.get_by_role("button", name=name, exact=True).click()
        page.get_by_text(f"{name} copied").wait_for()
        page.locator("textarea").fill("")
        page.locator("textarea").press("Control+v")
        assert page.locator("textarea").input_value() == page_file.with_suffix(ending).read_text()
    page.close()


def test_names_are_text_in_a_browser(visit, page_file):
    page = visit(page_file)
    assert page.locator(".study tbody th").all_inner_texts() == list(UGLY)
    assert page.get_by_role("button", name="LaTeX").is_visible()


def test_without_scripts_the_table_is_shown_and_no_button(browser, page_file):
    page = browser.new_page(java_script_enabled=False)
    page.goto(page_file.as_uri())
    assert page.locator(".study td").first.is_visible()
    assert not page.get_by_role("button", name="LaTeX").is_visible()
    page.close()


def test_two_tables_on_a_page_copy_their_own_text_and_only_once(visit, whole, tmp_path):
    parts = [table.data for table in whole[:2]]
    (tmp_path / "page.html").write_text("<meta charset=utf-8><body>" + "".join(parts))
    page = visit(tmp_path / "page.html")
    page.evaluate("() => {window.copied = []; navigator.clipboard.writeText = async (text) => copied.push(text)}")
    for number in range(2):
        page.locator(".numbers").nth(number).get_by_role("button", name="CSV").click()
    assert page.evaluate("copied") == [texts(part)["CSV"] for part in parts]


def test_on_a_phone_a_table_scrolls_in_its_frame_and_its_first_column_stands(visit, page_file):
    page = visit(page_file, 390)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for frame in page.locator(".wide").all():
        assert frame.evaluate("frame => frame.scrollWidth > frame.clientWidth && (frame.scrollLeft = 150) > 0")
        left, width = frame.locator("tbody th").first.evaluate("h => [h.getBoundingClientRect().x, h.offsetWidth]")
        outer = frame.evaluate("frame => frame.getBoundingClientRect().x")
        assert abs(left - outer) < 1 and 80 < width < 200
