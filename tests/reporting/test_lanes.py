"""What every method retrieves, as HTML."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from searle_lib.data import benchmarks
from searle_lib.evaluation.own_query import Query, Ranking
from searle_lib.reporting import lanes
from searle_lib.reporting.lanes import Lanes

METHODS = ["Text-only", "SEARLE"]


@pytest.fixture
def state(world):
    """Two methods of three; the second target is the third image of SEARLE."""
    (circo,) = benchmarks.load("circo", world, "val")
    images = list(circo.gallery["image"])
    query = Query(circo, images[0], circo.gallery["path"][0], {}, (images[5], images[3]))
    rankings = {"Text-only": Ranking(images[10:13], [0.5, 0.4, 0.3], 41), "SEARLE": Ranking(images[1:4], [0.9] * 3, 2)}
    return Lanes(query, METHODS, {"is red": rankings}, "is red")


def lane_of(html, method):
    (lane,) = (part for part in html.split('<div class="lane"')[1:] if f'<div class="method">{method}' in part)
    return lane.split("<table>")[0]


def test_a_lane_numbers_its_images_marks_the_targets_and_says_where_the_first_one_is(state):
    lane = lane_of(lanes.html(state), "SEARLE")
    assert re.findall(r"<figcaption>(\d)</figcaption>", lane) == ["1", "2", "3"]
    assert [bool(re.search("hit", figure)) for figure in re.findall("<figure[^>]*>", lane)] == [False, False, True]
    assert "<small>target at 3</small>" in lane
    assert f'title="SEARLE, rank 3\nhit\nscore 0.900\n{state.query.targets[1]}"' in lane


def test_the_ranks_of_every_wording_stand_side_by_side(state):
    rankings = state.rankings | {"is blue": {"Text-only": Ranking([], [], 1234), "SEARLE": Ranking([], [], 0)}}
    rows = re.findall("<tr.*?</tr>", lanes.html(replace(state, rankings=rankings)), re.S)[1:]
    cells = [re.findall(r">([^<>\n]+)</t[hd]>", row) for row in rows]
    assert cells == [["is red", "42", "3"], ["is blue", "1,235", "1"]]
    assert ["shown" in row for row in rows] == [True, False]
    assert [row.count('"near"') for row in rows] == [1, 1]


def test_a_method_at_work_has_its_note_and_no_rank(state):
    rankings = {"is red": {"SEARLE": state.rankings["is red"]["SEARLE"]}}
    html = lanes.html(replace(state, rankings=rankings, notes={"Text-only": "is <i>at work</i>"}))
    assert "is &lt;i&gt;at work&lt;/i&gt;" in lane_of(html, "Text-only")
    assert "<figure" not in lane_of(html, "Text-only") and "<td>–</td>" in html


def test_without_known_targets_nothing_is_marked_and_there_is_no_table(state):
    rankings = {
        "is red": {method: Ranking(one.best, one.scores, -1) for method, one in state.rankings["is red"].items()}
    }
    html = lanes.html(replace(state, query=replace(state.query, targets=()), rankings=rankings))
    assert 'class="hit"' not in html and "target" not in html.split("</style>")[1] and "<table" not in html


def test_without_a_caption_only_the_reference_is_shown(state):
    html = lanes.html(replace(state, wording="", rankings={}, query=replace(state.query, targets=())))
    assert html.count("<figure") == 1 and "Type a caption." in html


def test_text_of_users_and_data_sets_is_never_markup(state):
    hostile = "<img src=x onerror=alert(1)>"
    query = replace(state.query, reference=f'"{hostile}')
    html = lanes.html(replace(state, query=query, rankings={hostile: state.rankings["is red"]}, wording=hostile))
    assert hostile not in html and html.count("&lt;img src=x onerror=alert(1)&gt;") == 5  # caption, row, id three times
    assert 'title="reference &#34;&lt;img' in html


def test_a_thumbnail_is_read_again_after_its_file_has_changed(tmp_path):
    file, thumbnails = tmp_path / "own.png", []
    for size, colour in ((20, "red"), (30, "blue")):
        Image.new("RGB", (size, size), colour).save(file)
        thumbnails.append(lanes.thumbnail(file))
    assert thumbnails[0] != thumbnails[1] == lanes.thumbnail(file)
