"""The query explorer on hand-made benchmarks of 30 images: its data, its page, and the page in a real Chromium."""

import base64
import io
import json
import math
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import leave_record, study_of
from PIL import Image

from searle_lib.data import benchmarks as benchmark_tables
from searle_lib.data.benchmarks import Benchmark
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.reporting import explorer

MARKUP = "<img src=x onerror=alert(1)>"
ODD_NAME = "a \"b\" 'c' _&%#$~^\\{}</script>"
IMAGES = 30
RANKS = {  # of the first target, from 0, by method; one number a query of BENCHMARKS
    "Image-only": [0, 12, 15, 20, 25, 3, 14, 11],
    "Text-only": [11, 4, 18, 22, 12, 21, 13, 11],
    "SEARLE": [2, 3, 12, 0, 24, 1, 9, 12],
    "FTI4CIR": [1, 17, 5, 9, 10, 0, 10, 11],
}
QUERIES = {  # captions, aspects, number of targets
    "circo": [
        (["is red"], ["addition"], 1),
        (["is Red and next to a boat"], ["addition", "cardinality"], 3),
        ([MARKUP], ["cardinality"], 1),
        (["sails on a lake"], [], 2),
        (["has a dotted pattern"], ["direct_addressing"], 1),
    ],
    "fashioniq": [
        (["is longer", "is blue"], [], 1),
        (["has sleeves", "is red"], [], 1),
        (["is shorter", "is a boat"], [], 1),
    ],
}


def benchmark(folder, dataset, category, split="val"):
    """A benchmark of QUERIES on 30 images, each of its own colour; the first image of CIRCO has an odd name."""
    ids = [f"{dataset}-{row}" for row in range(IMAGES)]
    ids[0] = ODD_NAME if dataset == "circo" else ids[0]
    for row in range(IMAGES):
        colour = (8 * row, 100 if dataset == "circo" else 0, 50)
        Image.new("RGB", (120, 60), colour).save(folder / f"{dataset}{row}.png")
    paths = [str(folder / f"{dataset}{row}.png") for row in range(IMAGES)]
    rows = []
    for number, (captions, aspects, count) in enumerate(QUERIES[dataset]):
        truths = ids[10 + number : 10 + number + count] if split == "val" else []
        facts = {"query": str(number), "reference": ids[number], "sentences": captions, "target": (truths or [""])[0]}
        rows.append(facts | {"ground_truths": truths, "group": [], "aspects": aspects})
    gallery = pd.DataFrame({"image": ids, "path": paths})
    return Benchmark(dataset, split, category, f"{dataset}/{split}", gallery, pd.DataFrame(rows), (len(rows), IMAGES))


def ranking(benchmark, row, rank):
    """All images of a gallery, the first target at `rank`, the other targets last."""
    truths = benchmark.queries["ground_truths"][row]
    images = [image for image in benchmark.gallery["image"] if image not in truths]
    return [*images[:rank], *truths[:1], *images[rank:], *truths[1:]]


def tables(folder):
    """The arguments of `explorer.data`: two scored benchmarks, and one with secret targets."""
    scored = [benchmark(folder, "circo", "all"), benchmark(folder, "fashioniq", "dress")]
    secret = benchmark(folder, "circo", "all", split="test")
    rankings, scores = [], []
    for one in (*scored, secret):
        start = len(QUERIES["circo"]) if one.dataset == "fashioniq" else 0
        names = {"dataset": one.dataset, "split": one.split, "category": one.category}
        titles = names | {"dataset": one.protocol.title}
        for method, ranks in RANKS.items():
            for row, query in enumerate(one.queries["query"]):
                rank = ranks[start + row] if one.is_scored else -1
                best = ranking(one, row, max(rank, 0))
                cosines = np.linspace(0.9, 0.1, IMAGES, dtype=np.float32)
                answer = {"query": query, "method": method, "best": best, "scores": cosines, "rank": rank}
                rankings.append(names | answer)
                value = {"method": method, "query": query, "metric": "mAP@10", "value": 1 / (rank + 2)}
                scores += [titles | value, titles | value | {"category": "an aspect", "value": 9.0}]
    words = [
        {"dataset": "CIRCO", "method": "SEARLE", "reference": reference, "names": [f"name {reference}", "Boat"]}
        for reference in scored[0].queries["reference"]
    ]
    return [*scored, secret], pd.DataFrame(scores), pd.DataFrame(rankings), pd.DataFrame(words)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return explorer.data(*tables(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def file(table, tmp_path_factory):
    """The rendered page."""
    page = tmp_path_factory.mktemp("page") / "explorer.html"
    page.write_text(explorer.render(table, "a <b>study</b>", is_miniature=True), encoding="utf-8")
    return page


@pytest.fixture
def look(visit, file):
    """Open the page at a state of its address."""
    return lambda state="": visit(file, state=state)


def matches(page):
    return page.evaluate("matches.map((query) => query.key)")


def opened(page):
    return page.locator("#open h2").inner_text()


def state(page):
    """What the reader sees: the values of all controls, the matching queries, and the open one."""
    return page.evaluate("[wanted(), matches.map((query) => query.key), open?.key]")


def choose(page, name, value):
    page.locator(f"[name='{name}']").select_option(value)


def keys(*numbers):
    return [f"circo/val/{n}" if n < 5 else f"fashioniq/val/dress/{n - 5}" for n in numbers]


# The data


def test_the_data_of_a_query_equal_a_look_into_each_table(tmp_path):
    arguments = tables(tmp_path)
    table = explorer.data(*arguments)
    (circo, *_), _, rankings, _ = arguments
    query, row = table["queries"][1], circo.queries.iloc[1]
    images = [image["id"] for image in table["images"]]
    assert [images[place] for place in query["truths"]] == row["ground_truths"]
    assert images[query["reference"]] == row["reference"] and query["captions"] == row["sentences"]
    assert (query["dataset"], query["category"], query["aspects"]) == ("CIRCO", "all", ["addition", "cardinality"])
    for place, method in enumerate(RANKS):
        same = (rankings["method"] == method) & (rankings["query"] == "1") & (rankings["dataset"] == "circo")
        answer = rankings[same & (rankings["split"] == "val")].iloc[0]
        assert [images[image] for image in query["best"][place]] == answer["best"][:6]
        assert query["scores"][place] == [round(1000 * score) for score in answer["scores"][:6].tolist()]
        assert query["ranks"][place] == RANKS[method][1] + 1
        assert query["precision"][place] == pytest.approx(1 / (RANKS[method][1] + 2))
        assert query["names"][place] == (["name circo-1", "Boat"] if method == "SEARLE" else [])


def test_average_precision_is_left_out_where_the_rank_says_it(table):
    shown = {query["key"]: query["precision"][0] is not None for query in table["queries"]}
    assert [key for key, is_shown in shown.items() if is_shown] == keys(1, 3)


def test_the_class_of_a_query_comes_from_the_methods_that_find_it(table):
    kinds = [query["kind"] for query in table["queries"]]
    expected = []
    for query in range(8):
        ranks = {method: of_method[query] for method, of_method in RANKS.items()}
        is_shortcut = min(ranks["Image-only"], ranks["Text-only"]) < 10
        expected.append("shortcut" if is_shortcut else "composed" if min(ranks.values()) < 10 else "unsolved")
    assert kinds == expected and set(kinds) == {"shortcut", "composed", "unsolved"}


def test_queries_with_secret_targets_are_left_out(table):
    assert [query["key"] for query in table["queries"]] == keys(*range(8))


def test_an_image_is_listed_once_and_only_if_it_is_shown(table):
    ids = [image["id"] for image in table["images"]]
    shown = set()
    for query in table["queries"]:
        shown.update([query["reference"]], query["truths"], *query["best"])
    assert len(ids) == len(set(ids)) and shown == set(range(len(ids)))


def test_a_method_without_a_ranking_of_a_query_has_no_rank_there(tmp_path):
    benchmarks, scores, rankings, words = tables(tmp_path)
    gone = (rankings["method"] == "SEARLE") & (rankings["dataset"] == "fashioniq")
    table = explorer.data(benchmarks, scores, rankings[~gone], words)
    place = [method["name"] for method in table["methods"]].index("SEARLE")
    assert [query["ranks"][place] is None for query in table["queries"]] == [False] * 5 + [True] * 3


def test_a_target_that_an_index_does_not_list_is_missed_at_an_unknown_rank(tmp_path, visit):
    benchmarks, scores, rankings, words = tables(tmp_path)
    rankings.loc[(rankings["method"] == "SEARLE") & (rankings["rank"] >= 0), "rank"] = UNLISTED
    page = tmp_path / "explorer.html"
    page.write_text(explorer.render(explorer.data(benchmarks, scores, rankings, words), "study", False))
    text = visit(page, state="query=circo/val/1").locator(".answer").nth(2).inner_text()
    assert text.startswith("SEARLE") and "missed: rank unknown" in text


def test_without_a_single_part_there_are_no_classes(tmp_path):
    benchmarks, scores, rankings, words = tables(tmp_path)
    table = explorer.data(benchmarks, scores, rankings[rankings["method"] != "Text-only"], words)
    assert {query["kind"] for query in table["queries"]} == {""}
    assert 'name="kind"' not in explorer.render(table, "study", is_miniature=False)


def sized(name, queries):
    """What `draw` reads of a benchmark, with so many queries."""
    table = pd.DataFrame({"query": [f"{name}-{row}" for row in range(queries)]})
    return SimpleNamespace(name=name, dataset=name, is_scored=True, queries=table)


@pytest.mark.parametrize(
    "limit, shares",
    [(1000, {"circo": 20, "cirr": 90, "fashioniq": 200}), (100, {"circo": 20, "cirr": 40, "fashioniq": 40})]
    + [(32, {"circo": 10, "cirr": 11, "fashioniq": 11}), (3, {"circo": 1, "cirr": 1, "fashioniq": 1})],
)
def test_each_benchmark_gives_an_equal_share_or_all_it_has(limit, shares):
    benchmarks = [sized("fashioniq", 200), sized("cirr", 90), sized("circo", 20)]
    rows = explorer.draw(benchmarks, limit, seed=42)
    assert {name: len(set(drawn)) for name, drawn in rows.items()} == shares
    assert all(drawn == sorted(drawn) for drawn in rows.values())


def test_the_running_example_is_drawn_whatever_the_seed():
    benchmarks = [sized("cirr", 90), sized("circo", 220)]
    example = benchmark_tables.example(benchmarks)
    draws = [explorer.draw(benchmarks, 20, seed) for seed in range(20)]
    assert all(example.row in rows["circo"] for rows in draws)
    assert explorer.draw(benchmarks, 20, 7) == draws[7] and draws[7] != draws[8]


def test_each_query_is_drawn_as_often_as_another():
    benchmarks = [sized("circo", 40)]
    counts = Counter(row for seed in range(600) for row in explorer.draw(benchmarks, 10, seed)["circo"])
    others = np.array([counts[row] for row in range(40) if row != benchmark_tables.EXAMPLE_ROW])
    expected = 600 * 9 / 39  # the example takes one place of ten
    assert abs(others - expected).max() < 5 * math.sqrt(expected)


def test_the_page_says_which_queries_it_shows(tmp_path):
    arguments = tables(tmp_path)
    assert "all 8 validation queries" in explorer.data(*arguments)["selection"]
    part = explorer.data(*arguments, limit=4, seed=9)
    assert len(part["queries"]) == 4 and part["example"] in [query["key"] for query in part["queries"]]
    assert "4 of 8 validation queries of the study: 2 of circo/val, 2 of fashioniq/val/dress." in part["selection"]
    assert "seed 9" in part["selection"]


# The page as a file


def test_every_image_is_embedded_once_as_a_small_webp(table):
    page = explorer.render(table, "study", is_miniature=False)
    content = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    sizes = set()
    for image in content["images"]:
        decoded = Image.open(io.BytesIO(base64.b64decode(image["webp"])))
        sizes.add((decoded.format, decoded.size))
    assert sizes == {("WEBP", (96, 48))} and len(content["images"]) == len(table["images"])
    assert "path" not in content["images"][0] and ODD_NAME in [image["id"] for image in content["images"]]


def test_only_the_miniature_world_has_the_banner(table):
    pages = [explorer.render(table, "study", is_miniature=answer) for answer in (True, False)]
    assert ["These images are drawn; the numbers are a drawn world’s." in page for page in pages] == [True, False]


def test_the_page_of_a_study_is_written_from_its_records(tmp_path):
    benchmarks, *rest = tables(tmp_path)
    study = study_of(tmp_path, "02_concepts", world="miniature")
    benchmark_tables.keep(study, benchmarks, tmp_path)
    leave_record(study, data_root=".")
    study = study_of(tmp_path, "06_retrieval")
    study.read("02_concepts")
    frames = dict(zip(("scores", "rankings", "names"), rest, strict=True))

    def make(folder):
        for name, frame in frames.items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)

    for name in ("scores", "nearest-names"):
        study.keep(name, {}, make)
    record = leave_record(study)
    page = explorer.write(study_of(tmp_path))
    text = page.read_text(encoding="utf-8")
    assert page == study.reports / "explorer.html" and list(page.parent.glob("explorer*")) == [page]
    assert f'<meta name="record" content="{record.digest}">' in text and "a drawn world’s" in text
    assert '"key":"circo/val/3"' in text and str(tmp_path) not in text


# The page in a browser


@pytest.mark.parametrize(
    "address_state, expected",
    [
        ("", range(8)),
        ("dataset=FashionIQ", [5, 6, 7]),
        ("category=dress&text=RED", [6]),
        ("aspect=addition", [0, 1]),
        ("aspect=direct_addressing", [4]),
        ("text=red+boat", [1]),
        ("text=%3Cimg", [2]),
        ("kind=unsolved", [4, 7]),
        ("kind=composed&dataset=CIRCO", [2, 3]),
        ("a=FTI4CIR&b=SEARLE&outcome=first", [2]),
        ("a=FTI4CIR&b=SEARLE&outcome=second", [1, 6]),
        ("a=FTI4CIR&b=SEARLE&outcome=both", [0, 3, 5]),
        ("a=FTI4CIR&b=SEARLE&outcome=neither", [4, 7]),
        ("method.SEARLE=hit&method.Image-only=miss", [1, 3, 6]),
        ("method.SEARLE=hit&method.Text-only=hit", [1]),
        ("dataset=nothing&a=nobody&kind=%22%5D", range(8)),
    ],
)
def test_the_address_filters_the_queries(look, address_state, expected):
    page = look(address_state)
    assert matches(page) == keys(*expected)
    assert page.get_by_role("status").inner_text() == f"{len(expected)} of 8 queries"


def test_a_choice_of_the_reader_filters_and_the_count_says_so(look):
    page = look()
    choose(page, "dataset", "CIRCO")
    choose(page, "kind", "shortcut")
    assert page.get_by_role("status").inner_text() == "2 of 8 queries" and matches(page) == keys(0, 1)
    page.get_by_label("Search in captions").fill("boat")
    assert matches(page) == keys(1) and opened(page) == "circo/val/1"
    page.get_by_role("button", name="Clear all").click()
    page.wait_for_function("matches.length === 8")
    assert opened(page) == "circo/val/1"


def test_the_running_example_opens_first(look):
    assert opened(look()) == "circo/val/3"


@pytest.mark.parametrize("sort, sign", [("first", -1), ("second", 1)])
def test_queries_are_sorted_by_the_difference_of_ranks(look, sort, sign):
    page = look(f"a=FTI4CIR&b=Text-only&sort={sort}")
    gaps = [second - first for first, second in zip(RANKS["FTI4CIR"], RANKS["Text-only"], strict=True)]
    assert matches(page) == keys(*sorted(range(8), key=lambda query: sign * gaps[query]))
    assert page.locator('[name="sort"] option').all_inner_texts()[1:] == [
        "FTI4CIR furthest ahead",
        "Text-only furthest ahead",
    ]


def test_queries_without_a_match_leave_a_sentence_and_a_way_back(look):
    page = look("text=no+such+word")
    assert page.get_by_role("status").inner_text() == "0 of 8 queries"
    assert "No query matches these choices." in page.locator("#open").inner_text()
    page.keyboard.press("j")
    page.locator("#open").get_by_role("button", name="Clear all").click()
    page.wait_for_function("matches.length === 8")
    assert opened(page) == "circo/val/0"


def test_the_keyboard_steps_through_the_matches_and_stops_at_the_ends(look):
    page = look("dataset=CIRCO&query=circo/val/3")
    steps = []
    for key in ("j", "ArrowRight", "k", "ArrowLeft", "k", "ArrowLeft", "k"):
        page.keyboard.press(key)
        steps.append(opened(page))
    assert steps == keys(4, 4, 3, 2, 1, 0, 0)
    assert page.locator("#place").inner_text() == "1 / 5" and page.url.endswith("query=circo%2Fval%2F0")


def test_keys_that_are_typed_into_the_search_do_not_step(look):
    page = look("query=circo/val/3")
    search = page.get_by_label("Search in captions")
    search.press_sequentially("k")
    search.press("ArrowLeft")
    assert opened(page) == "circo/val/3" and matches(page) == keys(3)
    search.press("Delete")
    search.press("ArrowLeft")
    assert opened(page) == "circo/val/3" and len(matches(page)) == 8


def test_the_buttons_step_too(look):
    page = look("query=circo/val/3")
    page.locator("#next").click()
    assert opened(page) == "circo/val/4"
    page.locator("#previous").click()
    assert opened(page) == "circo/val/3"


def test_the_address_carries_the_whole_state_to_another_window_and_through_a_reload(look):
    page = look()
    page.get_by_label("Search in captions").fill("is & #")
    page.get_by_label("Search in captions").fill("is")
    for name, value in (("a", "SEARLE"), ("b", "Image-only"), ("sort", "second"), ("method.FTI4CIR", "hit")):
        choose(page, name, value)
    page.keyboard.press("Escape")
    page.locator("#next").click()
    before = state(page)
    assert before[0]["a"] == "SEARLE" and before[0]["method.FTI4CIR"] == "hit" and before[2] != before[1][0]
    assert state(look(page.url.partition("#")[2])) == before
    page.reload()
    assert state(page) == before


def test_back_and_forward_go_through_the_choices(look):
    page = look()
    states, choices = [state(page)], ["", "CIRCO", "cardinalityCIRCO"]
    for name, value in (("dataset", "CIRCO"), ("aspect", "cardinality")):
        choose(page, name, value)
        states.append(state(page))
    for move, expected in ((page.go_back, 1), (page.go_back, 0), (page.go_forward, 1), (page.go_forward, 2)):
        move()
        page.wait_for_function("expected => wanted().aspect + wanted().dataset === expected", arg=choices[expected])
        assert state(page) == states[expected]


def test_a_point_of_the_scatter_opens_its_query(look):
    page = look("a=FTI4CIR&b=SEARLE&dataset=CIRCO")
    assert page.locator("#plot circle:not(.other):not(.open)").count() == 5
    box = page.locator("#plot").bounding_box()
    x, y = page.evaluate("(({x, y}) => [x, y])(points.find(({query}) => query.key === 'circo/val/4'))")
    unit = box["width"] / 340
    page.locator("#plot").click(position={"x": x * unit, "y": y * unit})
    assert opened(page) == "circo/val/4" and "query=circo%2Fval%2F4" in page.url


def test_the_scatter_has_each_query_at_its_ranks_on_logarithmic_axes(look):
    page = look("a=FTI4CIR&b=SEARLE")
    points = {key: (x, y) for key, x, y in page.evaluate("points.map(({query, x, y}) => [query.key, x, y])")}
    worst = max(max(ranks) for ranks in RANKS.values()) + 1
    for number, key in enumerate(keys(*range(8))):
        first, second = (math.log(RANKS[method][number] + 1, worst) for method in ("FTI4CIR", "SEARLE"))
        assert points[key] == pytest.approx((44 + 286 * first, 340 - 44 - 286 * second), abs=4)  # points are spread


def test_a_match_in_the_list_opens_its_query_and_keeps_the_focus(look):
    page = look("dataset=FashionIQ&a=SEARLE&b=FTI4CIR")
    assert "SEARLE 10 · FTI4CIR 11" in page.locator("#matches li").nth(1).inner_text()
    page.locator("#matches button").nth(2).press("Enter")
    assert opened(page) == keys(7)[0] and page.locator("#matches button").nth(2).get_attribute("aria-current") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"


def test_methods_show_their_best_images_with_marks_ranks_and_words(look):
    page = look("query=circo/val/1")
    answers = page.locator(".answer")
    assert answers.count() == 4 and answers.locator(".image").count() == 4 * 6
    searle, fti = answers.nth(2), answers.nth(3)
    assert "✓ found at rank 4" in searle.inner_text() and "AP@10 20.0 %" in searle.inner_text()
    assert "pseudo-word near: name circo-1, Boat" in searle.inner_text() and "pseudo-word" not in fti.inner_text()
    assert "missed: rank 18" in fti.inner_text()
    titles = searle.locator(".image").evaluate_all("images => images.map((image) => image.title)")
    assert titles[3] == "rank 4 of SEARLE, score 0.817, a target, image circo-11"
    assert titles[1] == "rank 2 of SEARLE, score 0.872, the reference itself, image circo-1"
    assert searle.locator(".hit").count() == 1 and fti.locator(".hit").count() == 0
    assert page.locator(".question .hit").count() == 3


def test_a_list_without_scores_shows_none_and_no_rank_beyond_its_end(tmp_path, visit):
    benchmarks, scores, rankings, names = tables(tmp_path)
    lists = rankings[(rankings["method"] == "SEARLE") & (rankings["dataset"] == "circo")].assign(method="Lists")
    lists["rank"], lists["best"] = UNLISTED, [best[:4] for best in lists["best"]]
    lists["scores"] = [np.zeros(0, np.float32)] * len(lists)
    table = explorer.data(benchmarks, scores, pd.concat([rankings, lists]), names)
    page = tmp_path / "explorer.html"
    page.write_text(explorer.render(table, "study", is_miniature=True), encoding="utf-8")
    shown = visit(page, state="query=circo/val/1")
    answer = shown.locator(".answer").last
    titles = answer.locator(".image").evaluate_all("images => images.map((image) => image.title)")
    assert titles[2] == f"rank 3 of Lists, image {lists['best'].iloc[1][2]}" and len(titles) == 4
    assert "missed: rank unknown" in answer.inner_text()
    shown = visit(page, state="query=fashioniq/val/dress/1")
    assert "no ranking of this query" in shown.locator(".answer").last.inner_text()


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_an_image_enlarges_and_closes_with_escape(look, how):
    page = look("query=circo/val/1")
    image = page.locator(".answer .image").nth(1)
    image.click() if how == "click" else image.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible() and "rank 2 of Image-only, score 0.872" in dialog.inner_text()
    assert dialog.locator("img").bounding_box()["width"] > 300
    page.keyboard.press("j")
    assert opened(page) == "circo/val/1"  # keys do not step behind the enlarged image
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_text_from_data_is_shown_as_text(look):
    page = look("query=circo/val/2")
    assert page.locator(".caption").inner_text() == f"“{MARKUP}”"
    assert page.locator("h1").inner_text() == "Queries of study a <b>study</b>"
    assert page.locator('[src="x"]').count() == 0
    page = look("query=circo/val/0")
    page.locator(".question .image").first.click()
    assert page.get_by_role("dialog").locator("p").inner_text() == f"reference, image {ODD_NAME}"


def test_the_page_never_scrolls_sideways_and_folds_its_choices_on_a_phone(look):
    page = look("query=circo/val/1")
    for width in (1280, 820, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.reload()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("summary").is_visible() == (width == 390)


def test_the_page_follows_the_colour_scheme(look):
    page = look()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", colour))) < 60) == (scheme == "dark")


def test_a_study_without_public_targets_has_an_empty_page(visit, tmp_path):
    (*_, secret), scores, rankings, words = tables(tmp_path)
    table = explorer.data([secret], scores, rankings, words)
    (tmp_path / "page.html").write_text(explorer.render(table, "study", is_miniature=False), encoding="utf-8")
    assert visit(tmp_path / "page.html").get_by_role("status").inner_text() == "0 of 0 queries"
