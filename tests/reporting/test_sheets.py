import re

import pandas as pd
import pytest
from PIL import Image

from searle_lib.data import benchmarks
from searle_lib.evaluation.metrics import UNLISTED
from searle_lib.reporting import sheets


@pytest.fixture
def circo(world):
    (benchmark,) = benchmarks.load("circo", world, "val")
    return benchmark


def rankings_of(benchmark, best, method="SEARLE", rank=0):
    """Rankings in which every query has the same best images, and its target at the same rank."""
    names = {name: getattr(benchmark, name) for name in ("dataset", "split", "category")}
    names |= {"method": method, "best": best, "scores": [0.9 - i / 1000 for i in range(len(best))], "rank": rank}
    return pd.DataFrame([names | {"query": query} for query in benchmark.queries["query"]])


def test_a_sheet_marks_hits_and_misses(circo):
    targets = circo.queries["ground_truths"][0]
    others = [image for image in circo.gallery["image"] if image not in targets]
    html = sheets.sheet(circo, rankings_of(circo, [targets[0], *others]), len(circo.queries), depth=5).data
    first = html.split('<div class="query">')[1]
    assert re.findall(r'<figure class="(hit|miss)">', first) == ["hit", "miss", "miss", "miss", "miss"]
    assert first.count('<figure class="reference">') == 1
    assert first.count('<figure class="target">') == min(len(targets), sheets.MAX_TARGETS)


def test_an_image_names_its_method_rank_score_and_id(circo):
    target, other = circo.queries["ground_truths"][0][0], "000000<1>"
    circo.gallery.loc[circo.gallery["image"] != target, "image"] = other
    circo.queries.at[0, "reference"] = other
    circo.queries.at[0, "ground_truths"] = [target]
    html = sheets.retrieved(benchmarks.Example(circo, 0), rankings_of(circo, [other, target])).data
    assert re.findall("<title>(.*?)</title>", html, re.S) == [
        "reference\n000000&lt;1&gt;",
        f"target\n{target}",
        "SEARLE, rank 1, miss\nscore 0.900\n000000&lt;1&gt;",
        f"SEARLE, rank 2, hit\nscore 0.899\n{target}",
    ]


def test_a_list_without_scores_shows_none(circo):
    best = list(circo.gallery["image"][:3])
    table = rankings_of(circo, best).assign(scores=[[]] * len(circo.queries))
    html = sheets.retrieved(benchmarks.Example(circo, 0), table).data
    assert [title for title in re.findall("<title>(.*?)</title>", html, re.S) if title.startswith("SEARLE")] == [
        f"SEARLE, rank {rank}, {'hit' if image in circo.queries['ground_truths'][0] else 'miss'}\n{image}"
        for rank, image in enumerate(best, 1)
    ]


@pytest.mark.parametrize(
    ("rank", "note"),
    [
        (4, ""),
        (5, "target at 6"),
        (1999, "target at 2,000"),
        (-1, ""),
        (UNLISTED, "target not among the first 5"),
    ],
)
def test_a_row_without_a_hit_ends_with_the_rank_of_the_target(circo, rank, note):
    html = sheets.retrieved(
        benchmarks.Example(circo, 0), rankings_of(circo, circo.gallery["image"][:5], rank=rank)
    ).data
    assert re.findall('<div class="note">(.*?)</div>', html) == [note]


def test_targets_beyond_the_first_five_are_counted(circo):
    circo.queries.at[0, "ground_truths"] = list(circo.gallery["image"][:7])
    html = sheets.query(benchmarks.Example(circo, 0)).data
    assert html.count('<figure class="target">') == 5 and ">+2<" in html


def test_secret_targets_leave_the_best_images_unmarked(world):
    (test,) = benchmarks.load("circo", world, "test")
    best = rankings_of(test, list(test.gallery["image"][:3]))
    html = sheets.retrieved(benchmarks.Example(test, 0), best).data
    assert html.count("<figure") == 4 and not re.search('class="(hit|miss|target)"', html)


def test_text_from_a_data_set_is_never_markup(circo):
    circo.queries.at[0, "sentences"] = ["<script>alert('hi')</script> & more"]
    best = rankings_of(circo, list(circo.gallery["image"][:3]), method="<i>mine</i>")
    html = sheets.retrieved(benchmarks.Example(circo, 0), best).data
    assert "“&lt;script&gt;alert(&#39;hi&#39;)&lt;/script&gt; &amp; more”" in html
    assert "<script" not in html and "<i>" not in html


def test_an_image_is_embedded_once_however_often_it_is_shown(circo):
    images = list(circo.gallery["image"][:3])
    best = pd.concat([rankings_of(circo, images, method) for method in ("Image-only", "SEARLE")])
    html = sheets.sheet(circo, best, queries=4).data
    ids = re.findall(r'<image id="([\w-]+)".* href="data:image/webp;base64,', html)
    assert len(ids) == len(set(ids)) and set(ids) == set(re.findall('<use href="#([^"]+)"', html))
    assert html.count("<use ") > 4 * 2 * 3


def test_a_thumbnail_is_small_and_its_caption_is_escaped(tmp_path):
    Image.new("RGB", (900, 300), "red").save(tmp_path / "wide.png")
    html = sheets.strip([tmp_path / "wide.png"], ["a <b>caption</b>"]).data
    assert "a &lt;b&gt;caption&lt;/b&gt;" in html and str(tmp_path) not in html
    assert len(sheets.data_uri(tmp_path / "wide.png")) < 1000


def test_a_strip_shows_images_as_well_as_files(tmp_path):
    image = Image.new("RGB", (40, 40), "red")
    image.save(tmp_path / "red.png")
    (from_image, from_file) = (sheets.strip([source], ["red"]).data for source in (image, tmp_path / "red.png"))
    assert from_image == from_file


def test_a_strip_of_nothing_says_so():
    assert "Nothing to show" in sheets.strip([], []).data
