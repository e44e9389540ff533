import re
import subprocess

import nbformat
import pandas as pd
import pytest
from conftest import leave_record, study_of
from nbformat.v4 import new_markdown_cell, new_notebook

from searle_lib.evaluation import intervals
from searle_lib.evaluation.scores import SCORES
from searle_lib.reporting import answer, front, run_facts
from searle_lib.store.artefacts import write_json

HOSTILE = "<img src=x onerror=alert(1)>"
QUERIES = 40
HITS = {
    "Image-only": 4,
    "Text-only": 4,
    "SEARLE": 36,
    "FTI4CIR": 38,
}  # queries with a hit; SEARLE and FTI4CIR are close
PUBLISHED = {"clip_model": "ViT-B/32", "language_model": "gpt-neo-2.7B", "oti_steps": 350, "seed": 42}
RUN = {"date": "2026-02-03T04:05:06+00:00", "peak_memory": 1_500_000_000, "machine": "abacus, 2 cores"}


def scores_and_rankings(hits=HITS):
    """CIRCO queries; a method's hits are its first queries, those of Text-only the last ones."""
    scores, rankings = [], []
    for method, count in hits.items():
        solved = [q >= QUERIES - count if method == "Text-only" else q < count for q in range(QUERIES)]
        for q, hit in enumerate(solved):
            for metric in ("mAP@5", "mAP@10"):
                scores.append(("CIRCO", "val", "all", method, str(q), metric, float(hit)))
            rankings.append(("circo", "val", "all", method, str(q), 0 if hit else 30))
    columns = ["dataset", "split", "category", "method", "query", "rank"]
    return pd.DataFrame(scores, columns=SCORES), pd.DataFrame(rankings, columns=columns)


def leave(folder, notebook, reads=(), execution=RUN, **parameters):
    """Leave the record of a notebook that has read others."""
    study = study_of(folder, notebook, **parameters)
    for name in reads:
        study.read(name)
    if notebook == "02_concepts":
        clip = {"name": "tiny-clip", "sha256": "abc123" * 10}
        study.keep("clip", clip, lambda made: write_json(made / "clip.json", clip))
    if notebook == "06_retrieval":
        tables = dict(zip(("scores", "rankings"), scores_and_rankings(), strict=True))
        study.keep("scores", {}, lambda made: [table.to_parquet(made / f"{n}.parquet") for n, table in tables.items()])
    record = leave_record(study, seconds=90.0, device="cpu")
    record.execution.update(execution)
    study.write(record)


def leave_results(folder, hits=HITS):
    scores, _ = scores_and_rankings(hits)
    provenance = {"backbone": "tiny-clip", "sizes": {"circo/val": {"evaluated_on": "40 of 40 queries over 99 images"}}}
    results = intervals.summarise(scores, "tiny", provenance, resamples=200)
    return intervals.write_csv(results, study_of(folder).reports / "results.csv")


def leave_whole_study(folder, world="miniature", model="data/tiny.pt"):
    leave(folder, "01_phrases", language_model="EleutherAI/gpt-neo-2.7B", seed=42)
    leave(folder, "02_concepts", ["01_phrases"], world=world, clip_model=model, evaluate=["validation"])
    leave(folder, "03_oti", ["02_concepts"], oti_steps=60)
    leave(folder, "06_retrieval", ["03_oti"], methods=list(HITS))
    leave(folder, "07_results", ["06_retrieval"], seed=42, bootstrap_resamples=200)
    leave_results(folder)


@pytest.fixture
def notebooks(tmp_path):
    paths = []
    for name in ("01_phrases", "03_oti", "07_results"):
        cell = new_markdown_cell(
            f"# {name} {HOSTILE}\n\nWhy *is* a [word](https://example.org) a word? Because.\n\nMore."
        )
        paths.append(tmp_path / "notebooks" / f"{name}.ipynb")
        paths[-1].parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[cell]), paths[-1])
    return paths


@pytest.fixture
def html_of(tmp_path, notebooks):
    """The front page of the study in this test's folder."""
    return lambda published=PUBLISHED: front.write(study_of(tmp_path), notebooks, published).read_text()


def text_of(html):
    text = re.sub("<[^>]+>", " ", re.sub("<(style|script)>.*?</\\1>", "", html, flags=re.S))
    return " ".join(text.split())


def section(html, name):
    return html.partition(f'<h2 id="{name}">')[2].partition("<h2")[0]


def test_the_page_answers_in_one_sentence_before_anything_else(tmp_path, html_of):
    leave_whole_study(tmp_path)
    html = html_of()
    (sentence,) = re.findall('<p class="answer">(.*?)</p>', html)
    assert "FTI4CIR (95.0) and SEARLE (90.0) cannot be told apart" in sentence and sentence.count(".") == 3
    assert html.index(sentence) < html.index('<table class="main">')


def test_the_best_method_and_those_that_cannot_be_told_from_it_are_marked(tmp_path, html_of):
    leave_whole_study(tmp_path)
    table = html_of().partition('<table class="main">')[2].partition("</table>")[0]
    marks = {}
    for row in table.split("<tr>")[3:]:
        method = re.search(r"</span>([^<]+)</th>", row)[1]
        marks[method] = re.findall(r'<td(?: class="(\w+)")?>.*?([\d.]+)<', row)
    assert marks == {
        "Image-only": [("", "10.0")] * 2,
        "Text-only": [("", "10.0")] * 2,
        "SEARLE": [("tied", "90.0")] * 2,
        "FTI4CIR": [("best", "95.0")] * 2,
    }
    assert "certainly ahead of all others" not in table


def test_a_method_that_is_certainly_ahead_of_all_others_has_a_mark_of_its_own():
    scores, rankings = scores_and_rankings(HITS | {"SEARLE": 10})
    results = intervals.summarise(scores, "tiny", {"backbone": "", "sizes": {}}, resamples=200)
    compared = answer.compare(scores, rankings, results, 200, 42)
    marks = {row["method"]: [cell["mark"] for cell in row["cells"]] for row in compared["table"]["rows"]}
    assert marks == {"Image-only": [""] * 2, "Text-only": [""] * 2, "SEARLE": [""] * 2, "FTI4CIR": ["certain"] * 2}


def test_a_study_of_one_method_marks_nothing():
    scores, rankings = scores_and_rankings({"SEARLE": 10})
    results = intervals.summarise(scores, "tiny", {"backbone": "", "sizes": {}}, resamples=200)
    compared = answer.compare(scores, rankings, results, 200, 42)
    assert compared["table"]["rows"][0]["cells"][0]["mark"] == "" and compared["matrices"] == []
    assert compared["composition"] == []


def test_the_matrix_holds_each_pair_once_seen_from_the_row(tmp_path, html_of):
    leave_whole_study(tmp_path)
    first, second = html_of().split('<table class="pairs">')[1:]
    rows = {re.search('row">([^<]+)', row)[1]: row for row in first.split("<tr>")[2:]}
    assert list(rows) == ["Text-only", "SEARLE", "FTI4CIR"]
    cells = re.findall(
        r'<td(?: class="([\w ]+)")? title="[^"]*won (\d+), tied (\d+), lost (\d+)[^"]*">([^<]+)<', rows["SEARLE"]
    )
    assert cells == [("certain ahead", "32", "8", "0", "+80.0 ●"), ("certain ahead", "36", "0", "4", "+80.0 ●")]
    assert re.findall(r'<td title="[^"]*won (\d+), tied (\d+), lost (\d+)[^"]*">([^<]+)<', rows["FTI4CIR"]) == [
        ("2", "38", "0", "+5.0")
    ]
    assert "<details><summary>The other metrics (1)</summary>" in html_of().partition('<table class="pairs">')[2]
    assert "mAP@10" in second


def test_the_page_counts_the_queries_that_need_both_image_and_caption(tmp_path, html_of):
    leave_whole_study(tmp_path)
    # Image-only solves queries 0 to 3, Text-only 36 to 39, the best composer 0 to 37
    text = text_of(section(html_of(), "composition"))
    assert "80 % solved only by composing (32)" in text
    assert "20 % solved by one part alone (8)" in text and "0 % solved by no method (0)" in text


def test_parameters_that_differ_from_the_published_ones_are_listed_and_equal_ones_are_not(tmp_path, html_of):
    leave_whole_study(tmp_path)
    rows = section(html_of(), "run").partition("<details>")[0]
    listed = re.findall(r'<th scope="row">(\w+)</th><td>(.*?)</td><td>(.*?)</td>', rows)
    assert listed == [("clip_model", "data/tiny.pt", "ViT-B/32"), ("oti_steps", "60", "350")]
    assert "published values: 2." in rows


def test_a_study_as_published_says_so(tmp_path, html_of):
    leave_whole_study(tmp_path, model="ViT-B/32")
    html = html_of(PUBLISHED | {"oti_steps": 60})
    assert "Every parameter with a published value has this value." in section(html, "run")


@pytest.mark.parametrize(
    "notebook, parameters",
    [
        ("04_phi", {"phi_checkpoint": "SEARLE_ViT-B32", "phi_epochs": 60}),
        ("05_fti4cir", {"fti_weights": "theirs.pth", "fti_epochs": 8}),
        ("01_phrases", {"phrases_file": "published", "phrases_per_concept": 64}),
    ],
)
def test_a_parameter_without_effect_is_no_departure(tmp_path, notebook, parameters):
    leave(tmp_path, notebook, **parameters)
    published = {"phi_epochs": 100, "fti_epochs": 60, "phrases_per_concept": 256}
    records = run_facts.read_records(study_of(tmp_path))
    assert run_facts.departures(records, published) == []


def test_the_page_says_with_what_it_was_made(tmp_path, html_of):
    leave_whole_study(tmp_path)
    html = html_of()
    text = text_of(section(html, "made-with"))
    for fact in ("2026-02-03 04:05 UTC", "abacus, 2 cores", "cpu", f"sha256 {'abc123' * 10}", "7 min 30 s"):
        assert fact in text
    assert "Commit" not in text  # the folder is no git checkout
    assert text_of(section(html, "run")).count("1 min 30 s 1.5 GB") == 5


def test_the_commit_says_whether_the_code_has_changed(tmp_path):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)

    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "mini.yaml").write_text("seed: 1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = run_facts.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{10}", clean)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "index.html").touch()
    assert run_facts.commit(tmp_path) == clean  # a report is no code
    (tmp_path / "params" / "mini.yaml").write_text("seed: 2")
    assert run_facts.commit(tmp_path) == f"{clean}, with uncommitted changes"


@pytest.mark.parametrize("world, banners", [("miniature", 1), ("real", 0)])
def test_a_banner_says_that_the_numbers_are_a_drawn_worlds(tmp_path, html_of, world, banners):
    leave_whole_study(tmp_path, world)
    assert html_of().count("These numbers are a drawn world's.") == banners


def test_a_study_that_has_run_in_part_says_what_is_missing_and_lists_its_pages(tmp_path, html_of):
    leave(tmp_path, "01_phrases", seed=1)
    (study_of(tmp_path).reports / "01_phrases.html").touch()
    html = html_of()
    assert "There is no answer yet: 07_results has no record in this study" in html
    assert '<p class="answer">' not in html and '<table class="main">' not in html
    chapters = section(html, "pages")
    assert re.findall('href="([^"]+)"', chapters) == ["01_phrases.html"]
    assert chapters.count("Not run in this study.") == 2


def test_a_study_without_any_record_has_a_page(html_of):
    assert "Nothing has run yet." in html_of()


def test_a_study_of_test_splits_alone_says_that_nothing_is_scored_here(tmp_path, html_of):
    leave(tmp_path, "02_concepts", world="real", evaluate=["test"])
    assert "Nothing is scored here: this study evaluates test splits only" in html_of()


def test_stale_results_are_shown_as_such_and_are_not_compared(tmp_path, html_of):
    leave_whole_study(tmp_path)
    leave(tmp_path, "03_oti", ["02_concepts"], oti_steps=10)
    html = html_of()
    (note,) = re.findall('<p class="note" role="note">(.*?)</p>', html)
    assert note.startswith("The numbers below are of an earlier state, and the methods are not compared")
    assert "oti_steps 60, but 03_oti now has 10" in note
    assert '<p class="answer">' not in html and 'class="tied"' not in html and "95.0" in html
    assert "oti_steps 60, but 03_oti now has 10" in section(html, "pages")


def test_results_without_a_record_are_not_taken_for_an_answer(tmp_path, html_of):
    leave_results(tmp_path)
    html = html_of()
    assert "The numbers below are of an earlier state" in html and '<p class="answer">' not in html


def test_files_are_linked_by_kind_each_once(tmp_path, html_of):
    leave_whole_study(tmp_path)
    folder = study_of(tmp_path).reports
    for name in ("phi_log.csv", "submissions/a+b #1.json", "tables/circo.tex", "figures/results.png", "explorer.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    html = html_of()
    kinds = dict(re.findall("<dt>([^<]+)</dt><dd>(.*?)</dd>", section(html, "files")))
    links = {kind: re.findall('href="([^"]+)"', names) for kind, names in kinds.items()}
    assert links["Tables"] == ["results.csv", "tables/circo.tex"] and links["Logs of the trainings"] == ["phi_log.csv"]
    assert links["Files for the test servers"] == ["submissions/a%2Bb%20%231.json"]
    assert len(links["Records"]) == 5 and links["Figures"] == ["figures/results.png"]
    assert '<li class="first"><a href="explorer.html">' in html


def test_the_chart_tells_the_first_metric_of_each_data_set_also_in_words(tmp_path, html_of):
    leave_whole_study(tmp_path)
    (text,) = re.findall('<figure role="img" aria-label="([^"]+)"', html_of())
    assert text.startswith("CIRCO val, mAP@5, %: Image-only 10.0") and "FTI4CIR 95.0 [" in text


def test_two_studies_are_listed_with_what_differs_and_their_best_numbers(tmp_path):
    for name, steps in (("first", 60), ("second", 10)):
        leave_whole_study(tmp_path / name)
        leave(tmp_path / name, "03_oti", ["02_concepts"], oti_steps=steps, seed=1)
        (tmp_path / name / "reports" / "tiny").rename(tmp_path / f"{name} & co")
    (tmp_path / "bench").mkdir()
    html = front.write_list(tmp_path).read_text()
    rows = html.split("<tr>")[2:]
    assert [re.search('href="([^"]+)"', row)[1] for row in rows] == [
        "first%20%26%20co/index.html",
        "second%20%26%20co/index.html",
    ]
    for row, steps in zip(rows, (60, 10), strict=True):
        assert f"oti_steps {steps}" in row and "clip_model" not in row and "2026-02-03" in row
        assert re.findall(r"<td>([\d.]+)<small>FTI4CIR</small>", row) == ["95.0", "95.0"]
    assert html.count("These numbers are a drawn world's.") == 1 and "bench" not in html


def test_a_study_without_results_is_listed(tmp_path):
    leave(tmp_path, "02_concepts", world="real", evaluate=["validation"])
    html = front.write_list(tmp_path / "reports").read_text()
    text = text_of(html)
    assert "href" not in html  # it has no front page
    assert "The real data sets" in text and "no results yet; notebooks that have run: 1" in text


def test_a_report_root_without_studies_says_how_to_run_one(tmp_path):
    assert "make study" in front.write_list(tmp_path).read_text()


@pytest.fixture
def hostile_study(tmp_path, notebooks):
    """The front page of a study whose name, parameters and notebooks are markup."""
    leave_whole_study(tmp_path, model=HOSTILE)
    study = study_of(tmp_path)
    study.name = HOSTILE
    (study.reports / "01_phrases.html").touch()  # one title is a link, the others are not
    return front.write(study, notebooks, PUBLISHED)


def test_the_pages_stand_alone_and_never_scroll_sideways(visit, hostile_study):
    for file in (hostile_study, front.write_list(hostile_study.parents[1])):
        page = visit(file)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("img").count() == 0


def test_hostile_text_is_shown_as_text(visit, hostile_study):
    page = visit(hostile_study)
    assert page.inner_text("h1") == f"Study {HOSTILE}"
    assert page.locator(".chapters li").first.inner_text().startswith(f"01_phrases {HOSTILE}\n\nWhy is a word a word?")
    assert page.get_by_role("cell", name=HOSTILE).is_visible()


def test_the_citation_is_copied_by_keyboard(browser, tmp_path, html_of):
    leave_whole_study(tmp_path)
    html_of()
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"file://{study_of(tmp_path).reports / 'index.html'}")
    page.locator("#copy").focus()
    page.keyboard.press("Enter")
    page.get_by_text("copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(
        r"Study tiny, 2026-02-03, miniature world: CIRCO mAP@5 FTI4CIR 95\.0 \[[\d.]+, [\d.]+\]\.", copied
    )
    context.close()
