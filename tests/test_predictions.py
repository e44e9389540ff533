"""Predictions files on small annotations made here, and on the real ones where they are at hand."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from searle_lib.servers import predictions, scoring

REAL = Path(os.environ.get("REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the benchmarks' annotations in {REAL}")
KINDS = [
    ("cirr", "val", "recall"),
    ("cirr", "val", "recall_subset"),
    ("cirr", "test1", "recall"),
    ("cirr", "test1", "recall_subset"),
    ("circo", "val", ""),
    ("circo", "test", ""),
]
RECALL, SUBSET, CIRCO = KINDS[2], KINDS[3], KINDS[5]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotations without pictures: CIRR with 10 groups of six a split, CIRCO and FashionIQ with 90 images each."""
    root, draw = tmp_path_factory.mktemp("predictions") / "data", random.Random(0)
    for split, prefix, first in (("val", "dev", 100), ("test1", "test1", 200)):
        groups = [[f"{prefix}-{number}-{i}-img0" for i in range(6)] for number in range(10)]
        entries = []
        for pair, members in enumerate(groups, start=first):
            reference, target = draw.sample(members, 2)
            entry = {"pairid": pair, "reference": reference, "caption": "c", "img_set": {"members": members}}
            entries.append(entry | ({"target_hard": target} if split == "val" else {}))
        write(root / "CIRR" / "cirr" / "captions" / f"cap.rc2.{split}.json", entries)
        names = {name: f"./{prefix}/{name}.png" for members in groups for name in members}
        write(root / "CIRR" / "cirr" / "image_splits" / f"split.rc2.{split}.json", names)
    ids = draw.sample(range(1, 600_000), 90)
    for split, queries in (("val", 8), ("test", 20)):
        entries = []
        for query in range(queries):
            reference, *truths = draw.sample(ids, draw.randint(2, 15))
            entry = {"id": query, "reference_img_id": reference, "relative_caption": "c"}
            truth = {"target_img_id": truths[0], "gt_img_ids": truths}
            truth["semantic_aspects"] = draw.sample(["negation", "cardinality", "viewpoint"], draw.randint(0, 2))
            entries.append(entry | (truth if split == "val" else {}))
        write(root / "CIRCO" / "annotations" / f"{split}.json", entries)
    info = {"images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]}
    write(root / "CIRCO" / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json", info)
    for category in ("dress", "shirt", "toptee"):
        names = [f"{category}{i}" for i in range(90)]
        entries = []
        for row in range(9):
            candidate, target = draw.sample(names, 2)
            entries.append({"candidate": candidate, "target": target, "captions": [f"is {row}?", "is not"]})
        write(root / "FashionIQ" / "captions" / f"cap.{category}.val.json", entries)
        write(root / "FashionIQ" / "image_splits" / f"split.{category}.val.json", names)
    return root


def cirr_entries(data, split):
    return json.loads((data / "CIRR" / "cirr" / "captions" / f"cap.rc2.{split}.json").read_text())


def circo_entries(data, split):
    return json.loads((data / "CIRCO" / "annotations" / f"{split}.json").read_text())


def fashioniq_entries(data, category):
    return json.loads((data / "FashionIQ" / "captions" / f"cap.{category}.val.json").read_text())


def cirr_images(data, split):
    return list(json.loads((data / "CIRR" / "cirr" / "image_splits" / f"split.rc2.{split}.json").read_text()))


def coco_ids(data):
    info = data / "CIRCO" / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    return [image["id"] for image in json.loads(info.read_text())["images"]]


def random_predictions(data, dataset, split, metric, length=50, seed=0):
    """What a server takes: random images in random order, for every query of the split."""
    draw = random.Random(seed)
    if dataset == "circo":
        ids = coco_ids(data)
        return {str(entry["id"]): draw.sample(ids, length) for entry in circo_entries(data, split)}
    found, images = {"version": "rc2", "metric": metric}, cirr_images(data, split)
    for entry in cirr_entries(data, split):
        of = entry["img_set"]["members"] if metric == "recall_subset" else images
        allowed = [image for image in of if image != entry["reference"]]
        found[str(entry["pairid"])] = draw.sample(allowed, 3 if metric == "recall_subset" else length)
    return found


def random_fashioniq(data, category, length=60, seed=0):
    draw = random.Random(seed)
    names = json.loads((data / "FashionIQ" / "image_splits" / f"split.{category}.val.json").read_text())
    entries = fashioniq_entries(data, category)
    keep = ("candidate", "captions")
    return [{key: entry[key] for key in keep} | {"ranking": draw.sample(names, length)} for entry in entries]


def verdict_after(edit, kind, data, tmp_path):
    content = random_predictions(data, *kind)
    changed = edit(content)
    return predictions.validate(write(tmp_path / "mine.json", content if changed is None else changed), data)


# What a file is


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_recognised_by_its_content_and_passes(kind, data, tmp_path):
    dataset, split, metric = kind
    content = random_predictions(data, *kind)
    verdict = predictions.validate(write(tmp_path / "mine.json", content), data)
    assert verdict.what == {"cirr": f"CIRR {split}, {metric}", "circo": f"CIRCO {split}"}[dataset]
    assert verdict.queries == len(content.keys() - {"version", "metric"})
    assert verdict.problems == ()
    assert bool(verdict.notes) == (split == "val")  # which is scored, and no server's
    if kind == ("circo", "val", ""):
        assert verdict.notes[1] == "should it be meant for test, it lacks 12 queries."


def test_a_circo_file_that_lacks_a_query_of_val_is_still_of_val(data, tmp_path):
    verdict = verdict_after(lambda content: content.pop("3") and None, ("circo", "val", ""), data, tmp_path)
    assert verdict.what == "CIRCO val"
    assert verdict.problems == ("query 3 of CIRCO val is not in mine.json; add its 50 images.",)


def test_half_of_a_circo_test_file_is_of_test(data, tmp_path):
    verdict = verdict_after(lambda content: {q: content[q] for q in list(content)[:12]}, CIRCO, data, tmp_path)
    assert verdict.what == "CIRCO test"
    assert [problem.split()[1] for problem in verdict.problems] == [str(query) for query in range(12, 20)]


@pytest.mark.parametrize("kind", [RECALL, SUBSET])
def test_a_cirr_file_without_header_is_refused_for_it_and_checked_all_the_same(kind, data, tmp_path):
    def edit(content):
        del content["version"], content["metric"]
        content["203"][0] = content["203"][1]

    verdict = verdict_after(edit, kind, data, tmp_path)
    assert verdict.what == f"CIRR test1, {kind[2]}"
    assert [problem.partition(",")[0] for problem in verdict.problems[:2]] == [
        "mine.json has no key version",
        "mine.json has no key metric",
    ]
    assert len(verdict.problems) == 3
    assert "query 203 of mine.json" in verdict.problems[2]


def test_a_file_without_header_and_names_is_cirrs_by_its_pair_ids(data, tmp_path):
    content = {str(pair): [1, 2, 3] for pair in range(200, 210)}
    verdict = predictions.validate(write(tmp_path / "mine.json", content), data)
    assert verdict.what == "CIRR test1, recall_subset"
    assert "no key version" in verdict.problems[0]


# What a server would refuse


def put(query, place, image):
    def edit(content):
        content[query][place] = image(content, query) if callable(image) else image

    return edit


def change(query, make):
    def edit(content):
        content[query] = make(content[query])

    return edit


BROKEN = {
    "a name twice": (RECALL, put("204", 7, lambda c, q: c[q][3]), "query 204 of mine.json lists", "more than once"),
    "49 names": (RECALL, change("204", lambda v: v[:49]), "query 204 of mine.json lists 49 images", "exactly 50"),
    "2 of a group": (SUBSET, change("204", lambda v: v[:2]), "query 204 of mine.json lists 2 images", "exactly 3"),
    "an unknown name": (
        RECALL,
        put("204", 7, "test1-9"),
        "query 204 of mine.json lists test1-9, not",
        "split.rc2.test1",
    ),
    "a name of val": (RECALL, put("204", 7, "dev-1-0-img0"), "query 204 of mine.json lists dev-1-0-img0", "gallery"),
    "a number": (RECALL, put("204", 7, 12), "query 204 of mine.json lists 12", "write names in quotes"),
    "no list": (RECALL, change("204", lambda v: "x" * 99), 'query 204 of mine.json has "xxx', "instead of a list"),
    "a missing query": (RECALL, lambda c: c.pop("204") and None, "query 204 of CIRR test1 is not in mine.json", "50"),
    "an extra query": (RECALL, lambda c: c.update({"999": c["204"]}), "query 999 of mine.json is none", "CIRR test1"),
    "a query of val": (RECALL, lambda c: c.update({"101": c["204"]}), "query 101 of mine.json is none", "CIRR test1"),
    "a wrong version": (RECALL, lambda c: c.update(version="rc1"), 'version of mine.json is "rc1"', '"rc2"'),
    "a wrong metric": (RECALL, lambda c: c.update(metric="R@1"), 'metric of mine.json is "R@1"', '"recall_subset"'),
    "no version": (SUBSET, lambda c: c.pop("version") and None, "mine.json has no key version", '"rc2"'),
    "no metric": (SUBSET, lambda c: c.pop("metric") and None, "mine.json has no key metric", '"recall_subset"'),
    "an outsider": (SUBSET, put("204", 1, "test1-5-0-img0"), "query 204 of mine.json lists test1-5-0-img0", "img_set"),
    "an unknown in a subset": (SUBSET, put("204", 1, "x"), "query 204 of mine.json lists x, not of the gallery", ""),
    "an id twice": (CIRCO, put("12", 7, lambda c, q: c[q][3]), "query 12 of mine.json lists", "more than once"),
    "an id and its string": (CIRCO, put("12", 7, lambda c, q: str(c[q][3])), "query 12 of mine.json", "more than once"),
    "51 ids": (CIRCO, change("12", lambda v: [*v, v[0]]), "query 12 of mine.json lists 51 images", "exactly 50"),
    "an unknown id": (
        CIRCO,
        put("12", 7, 600_001),
        "query 12 of mine.json lists 600001, not of the gallery",
        "image_info",
    ),
    "a float": (CIRCO, put("12", 7, 12.0), "query 12 of mine.json lists 12.0, which cannot", "write integers"),
    "a bool": (CIRCO, put("12", 7, True), "query 12 of mine.json lists true, which cannot", "write integers"),
    "null": (CIRCO, put("12", 7, None), "query 12 of mine.json lists null, which cannot", "write integers"),
    "a list in a list": (CIRCO, put("12", 7, [1]), "query 12 of mine.json lists [1], which cannot", "write integers"),
    "a negative id": (CIRCO, put("12", 7, -5), "query 12 of mine.json lists -5, which cannot", "write integers"),
    "a file's name": (CIRCO, put("12", 7, "5.jpg"), 'query 12 of mine.json lists "5.jpg", which', "write integers"),
    "no query 12": (CIRCO, lambda c: c.pop("12") and None, "query 12 of CIRCO test is not in mine.json", "add its 50"),
    "a query 20": (CIRCO, lambda c: c.update({"20": c["12"]}), "query 20 of mine.json is none", "CIRCO test"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_a_sentence_that_names_the_query(case, data, tmp_path):
    kind, edit, start, rest = BROKEN[case]
    verdict = verdict_after(edit, kind, data, tmp_path)
    assert len(verdict.problems) == (2 if case == "51 ids" else 1)  # its one more is a repeat as well
    assert verdict.problems[0].startswith(start)
    assert rest in verdict.problems[0]
    assert verdict.problems[0].endswith(".")


@pytest.mark.parametrize("kind", [RECALL, SUBSET])
def test_the_reference_may_not_be_in_its_own_list(kind, data, tmp_path):
    reference = cirr_entries(data, "test1")[4]["reference"]
    verdict = verdict_after(put("204", 0, reference), kind, data, tmp_path)
    assert verdict.problems == (f"query 204 of mine.json lists {reference}, its own reference; leave it out.",)


def test_circo_leaves_the_reference_in_the_ranking(data, tmp_path):
    reference = circo_entries(data, "test")[12]["reference_img_id"]

    def edit(content):
        content["12"] = [reference, *(image for image in content["12"] if image != reference)][:50]

    assert verdict_after(edit, CIRCO, data, tmp_path).problems == ()


def test_strings_of_digits_are_accepted_for_circo_with_a_note(data, tmp_path):
    verdict = verdict_after(change("12", lambda v: [f"{image:012d}" for image in v]), CIRCO, data, tmp_path)
    assert verdict.problems == ()
    assert verdict.notes == ("some ids are strings; the server casts them, and its examples have integers.",)


def test_a_cirr_file_of_more_than_5_mb_is_refused(data, tmp_path):
    written = json.dumps(random_predictions(data, *RECALL))
    fits = write(tmp_path / "fits.json", written + " " * (5_000_000 - len(written)))
    large = write(tmp_path / "large.json", written + " " * (5_000_001 - len(written)))
    assert predictions.validate(fits, data).problems == ()
    (problem,) = predictions.validate(large, data).problems
    assert problem.startswith("large.json has 5,000,001 bytes and the server takes at most 5,000,000")


def test_a_query_that_stands_twice_is_named(data, tmp_path):
    content = random_predictions(data, *RECALL)
    twice = json.dumps(content)[:-1] + f', "204": {json.dumps(content["204"])}, "metric": "recall"}}'
    assert predictions.validate(write(tmp_path / "mine.json", twice), data).problems == (
        "key metric stands more than once in mine.json; keep one.",
        "query 204 of mine.json stands there more than once; keep one of its lists.",
    )


def test_all_problems_are_told_in_the_files_order(data, tmp_path):
    def edit(content):
        shuffled = dict(sorted(content.items(), reverse=True))
        shuffled["205"] = shuffled["205"][:1] * 3
        shuffled["202"][:5] = ["a", "b", "c", "d", "e"]
        shuffled["version"] = 2
        del shuffled["208"]
        return shuffled

    problems = verdict_after(edit, RECALL, data, tmp_path).problems
    starts = ["version", "query 205", "query 205", "query 202", "query 208"]
    assert [problem[: len(start)] for problem, start in zip(problems, starts, strict=True)] == starts
    assert "lists a, b, c and 2 more, not of the gallery" in problems[3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"version": "rc2", "200": ["test1-0', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('"rc2"', 'is "rc2" and no predictions'),
        ("[1, 2]", "is a list"),
        ("{}", "holds no predictions"),
        ('{"version": "rc2", "metric": "recall"}', "holds no predictions"),
        ('{"version": "rc2", "metric": "recall", "7": []}', "has no query of CIRR val or test1"),
        ('{"12063": [1]}', "has no query of CIRCO val or test"),
    ],
)
def test_what_is_no_predictions_file_is_refused_by_name(content, said, data, tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said) as refused:
        predictions.validate(file, data)
    assert str(file) in str(refused.value)


def test_a_file_that_is_not_there_is_named(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        predictions.validate(tmp_path / "mine.json", data)


# Data roots that hold only a part


def copied(data, tmp_path, *left_out):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns(*left_out))
    return tmp_path / "data"


def test_without_cocos_list_a_note_says_that_ids_were_not_checked_and_the_rest_is(data, tmp_path):
    content = random_predictions(data, *CIRCO)
    content["3"][0], content["5"][0] = 600_001, 1.5
    verdict = predictions.validate(write(tmp_path / "mine.json", content), copied(data, tmp_path, "COCO2017_unlabeled"))
    assert verdict.notes == (
        "ids were not checked against the gallery, as image_info_unlabeled2017.json is not there.",
    )
    assert [problem.partition(" of ")[0] for problem in verdict.problems] == ["query 5"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_root_with_one_data_set_or_one_split_is_enough_for_its_files(kind, data, tmp_path):
    dataset, split, _ = kind
    file = write(tmp_path / "mine.json", random_predictions(data, *kind))
    other = {"cirr": "CIRCO", "circo": "CIRR"}[dataset]
    others_split = {"val": "*test*.json", "test1": "*val.json", "test": "val.json"}[split]
    part = copied(data, tmp_path, other, others_split, "FashionIQ")
    assert predictions.validate(file, part).problems == ()


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        (RECALL, "cap.rc2.test1.json"),
        (KINDS[0], "cap.rc2.val.json"),
        (RECALL, "split.rc2.test1.json"),
        (SUBSET, "split.rc2.test1.json"),
        (CIRCO, "test.json"),
        (RECALL, "CIRR"),
        (CIRCO, "CIRCO"),
    ],
)
def test_annotations_that_are_needed_and_absent_are_named(kind, absent, data, tmp_path):
    file = write(tmp_path / "mine.json", random_predictions(data, *kind))
    with pytest.raises(FileNotFoundError, match=re.escape(absent)):
        predictions.validate(file, copied(data, tmp_path, absent))


def test_a_cirr_file_without_header_asks_for_cirr_where_only_circo_is(data, tmp_path):
    content = random_predictions(data, *RECALL)
    del content["version"], content["metric"]
    with pytest.raises(FileNotFoundError, match="CIRR"):
        predictions.validate(write(tmp_path / "mine.json", content), copied(data, tmp_path, "CIRR"))


# Scores


def found_at(images, target, k):
    """Whether a walk of k steps down the list meets the target."""
    return any(place < k and image == target for place, image in enumerate(images))


def average_precision(images, truths, k):
    """Walks down the list, as CIRCO's evaluation does."""
    hits, total = 0, 0.0
    for place, image in enumerate(images[:k]):
        if image in truths:
            hits += 1
            total += hits / (place + 1)
    return total / min(len(truths), k)


def percent(values):
    return pytest.approx(100 * sum(values) / len(values), abs=1e-4)


def circo_expected(data, content):
    rows = [([int(i) for i in content[str(e["id"])]], e) for e in circo_entries(data, "val")]
    metrics = {
        f"mAP@{k}": percent([average_precision(images, e["gt_img_ids"], k) for images, e in rows])
        for k in (5, 10, 25, 50)
    }
    metrics |= {
        f"R@{k}": percent([found_at(images, e["target_img_id"], k) for images, e in rows]) for k in (5, 10, 25, 50)
    }
    aspects = {}
    for images, entry in rows:
        for aspect in entry["semantic_aspects"]:
            aspects.setdefault(aspect, []).append(average_precision(images, entry["gt_img_ids"], 10))
    return {
        "dataset": "CIRCO",
        "split": "val",
        "queries": len(rows),
        "metrics": metrics,
        "mAP@10 by aspect": {aspect: percent(values) for aspect, values in aspects.items()},
    }


def cirr_expected(data, content, recall, subset):
    metrics, rows = {}, [(content[str(e["pairid"])], e) for e in cirr_entries(data, "val")]
    for k in (1, 5, 10, 50) if recall else ():
        metrics[f"R@{k}"] = percent([found_at(images, e["target_hard"], k) for images, e in rows])
    for k in (1, 2, 3) if subset else ():
        of_group = [([image for image in images if image in e["img_set"]["members"]], e) for images, e in rows]
        metrics[f"Rsubset@{k}"] = percent([found_at(images, e["target_hard"], k) for images, e in of_group])
    return {"dataset": "CIRR", "split": "val", "queries": len(rows), "metrics": metrics}


def fashioniq_expected(data, content, category):
    targets = [entry["target"] for entry in fashioniq_entries(data, category)]
    rows = [(entry["ranking"], target) for entry, target in zip(content, targets, strict=True)]
    metrics = {f"R@{k}": percent([found_at(images, target, k) for images, target in rows]) for k in (10, 50)}
    metrics |= {
        f"mAP@{k}": percent([average_precision(images, [target], k) for images, target in rows]) for k in (10, 50)
    }
    found = {"dataset": "FashionIQ", "split": "val", "category": category, "queries": len(rows)}
    return found | {"metrics": metrics}


def score_of(content, tmp_path, *asked):
    """Scores as JSON gives them back."""
    return json.loads(json.dumps(scoring.score(write(tmp_path / "mine.json", content), *asked)))


@pytest.mark.parametrize("length", [50, 90])
@pytest.mark.parametrize("form", [int, str])
def test_circo_scores_equal_a_walk_down_the_lists(length, form, data, tmp_path):
    content = random_predictions(data, "circo", "val", "", length)
    content = {query: [form(image) for image in images] for query, images in content.items()}
    assert score_of(content, tmp_path, "circo", data) == circo_expected(data, content)


def test_circo_is_scored_without_cocos_list(data, tmp_path):
    content = random_predictions(data, "circo", "val", "")
    part = copied(data, tmp_path, "COCO2017_unlabeled")
    assert score_of(content, tmp_path, "circo", part) == circo_expected(data, content)


def test_the_order_of_the_files_queries_does_not_matter(data, tmp_path):
    content = random_predictions(data, "circo", "val", "")
    turned = dict(reversed(content.items()))
    assert score_of(turned, tmp_path, "circo", data) == circo_expected(data, content)


def test_ground_truths_beyond_the_list_count_among_the_ground_truths(data, tmp_path):
    ids, content = coco_ids(data), {}
    for entry in circo_entries(data, "val"):
        truths = entry["gt_img_ids"]
        content[str(entry["id"])] = [truths[0], *(image for image in ids if image not in truths)][:50]
    expected = [1 / min(len(entry["gt_img_ids"]), 10) for entry in circo_entries(data, "val")]
    assert max(len(entry["gt_img_ids"]) for entry in circo_entries(data, "val")) > 5
    assert score_of(content, tmp_path, "circo", data)["metrics"]["mAP@10"] == percent(expected)


@pytest.mark.parametrize("seed", range(3))
def test_cirr_scores_equal_a_walk_down_the_lists(seed, data, tmp_path):
    recall = random_predictions(data, "cirr", "val", "recall", seed=seed)
    subset = random_predictions(data, "cirr", "val", "recall_subset", seed=seed)
    assert score_of(recall, tmp_path, "cirr", data) == cirr_expected(data, recall, recall=True, subset=False)
    assert score_of(subset, tmp_path, "cirr", data) == cirr_expected(data, subset, recall=False, subset=True)


def test_cirr_lists_that_hold_every_whole_group_give_the_subsets_metrics_too(data, tmp_path):
    content = random_predictions(data, "cirr", "val", "recall", length=59)
    assert score_of(content, tmp_path, "cirr", data) == cirr_expected(data, content, recall=True, subset=True)
    entry = cirr_entries(data, "val")[3]
    lost = next(name for name in entry["img_set"]["members"] if name != entry["reference"])
    content[str(entry["pairid"])].remove(lost)
    assert score_of(content, tmp_path, "cirr", data) == cirr_expected(data, content, recall=True, subset=False)


@pytest.mark.parametrize("category", ["dress", "shirt", "toptee"])
def test_fashioniq_scores_equal_a_walk_down_the_lists(category, data, tmp_path):
    content = random_fashioniq(data, category)
    expected = fashioniq_expected(data, content, category)
    assert score_of(content, tmp_path, "fashioniq", data, category) == expected


def test_a_test_file_cannot_be_scored_and_is_sent_to_its_server(data, tmp_path):
    with pytest.raises(ValueError, match=r"CIRR test1, whose targets are secret; submit it to https://cirr\.cecs"):
        score_of(random_predictions(data, *RECALL), tmp_path, "cirr", data)
    with pytest.raises(ValueError, match=r"CIRCO test, whose targets are secret; submit it to https://circo\.micc"):
        score_of(random_predictions(data, *CIRCO), tmp_path, "circo", data)


def test_a_file_of_another_data_set_is_not_scored(data, tmp_path):
    cirr, circo = random_predictions(data, "cirr", "val", "recall"), random_predictions(data, "circo", "val", "")
    with pytest.raises(ValueError, match="is of CIRR val, not of CIRCO; score it as cirr"):
        score_of(cirr, tmp_path, "circo", data)
    with pytest.raises(ValueError, match="is of CIRCO val, not of CIRR; score it as circo"):
        score_of(circo, tmp_path, "cirr", data)
    with pytest.raises(ValueError, match="is no list, and FashionIQ's predictions are one"):
        score_of(circo, tmp_path, "fashioniq", data, "dress")
    with pytest.raises(ValueError, match="there is no dataset coco"):
        score_of(circo, tmp_path, "coco", data)


def test_categories_are_fashioniqs_and_needed_there(data, tmp_path):
    for category in (None, "skirt"):
        with pytest.raises(ValueError, match=f"is {category}; name one of dress, shirt, toptee"):
            score_of(random_fashioniq(data, "dress"), tmp_path, "fashioniq", data, category)
    with pytest.raises(ValueError, match="CIRCO has no categories"):
        score_of(random_predictions(data, "circo", "val", ""), tmp_path, "circo", data, "dress")


def test_a_file_with_problems_is_not_scored_and_the_first_is_told(data, tmp_path):
    content = random_predictions(data, "cirr", "val", "recall")
    content["104"] = content["104"][:49]
    with pytest.raises(ValueError, match=r"query 104 of mine.json lists 49 images; list at least 50 .*images\.$"):
        score_of(content, tmp_path, "cirr", data)
    content["106"][0] = content["106"][1]
    del content["103"], content["metric"]
    with pytest.raises(ValueError, match=r"mine.json has no key metric.* \(and 3 more\)$"):
        score_of(content, tmp_path, "cirr", data)


FASHIONIQ_BROKEN = {
    "another order": (lambda c: [c[1], c[0], *c[2:]], "entry 0 of mine.json has not the candidate of"),
    "stripped captions": (
        lambda c: c[4].update(captions=["is 4", "is not"]),
        "entry 4 of mine.json has not the captions",
    ),
    "an entry short": (lambda c: c[:-1], "mine.json has 8 entries, the caption file 9"),
    "an entry too many": (lambda c: [*c, c[0]], "mine.json has 10 entries, the caption file 9"),
    "no ranking": (lambda c: c[4].pop("ranking") and None, "entry 4 of mine.json has no key ranking"),
    "no object": (lambda c: [*c[:8], ["dress1"]], 'entry 8 of mine.json is \\["dress1"\\]; write an object'),
    "49 names": (lambda c: c[4].update(ranking=c[4]["ranking"][:49]), "entry 4 of mine.json lists 49 images"),
    "a name twice": (
        lambda c: c[4]["ranking"].append(c[4]["ranking"][0]),
        "entry 4 of mine.json lists .* more than once",
    ),
    "an unknown name": (lambda c: c[4]["ranking"].append("shirt1"), "entry 4 of mine.json lists shirt1, not of the"),
    "a number": (lambda c: c[4]["ranking"].append(5), "entry 4 of mine.json lists 5, which cannot be an image"),
}


@pytest.mark.parametrize("case", FASHIONIQ_BROKEN)
def test_a_broken_fashioniq_file_is_refused_with_its_entry(case, data, tmp_path):
    edit, said = FASHIONIQ_BROKEN[case]
    content = random_fashioniq(data, "dress")
    changed = edit(content)
    with pytest.raises(ValueError, match=said):
        score_of(content if changed is None else changed, tmp_path, "fashioniq", data, "dress")


def test_a_fashioniq_entry_with_a_key_twice_is_refused(data, tmp_path):
    written = json.dumps(random_fashioniq(data, "dress")).replace("{", '{"ranking": [], ', 1)
    with pytest.raises(ValueError, match="key ranking stands twice in an entry of mine"):
        score_of(written, tmp_path, "fashioniq", data, "dress")


def test_files_on_the_miniature_world_are_recognised(world, tmp_path):
    content = random_predictions(world, "circo", "val", "", seed=5)
    assert score_of(content, tmp_path, "circo", world) == circo_expected(world, content)
    for split in ("val", "test1"):
        content = random_predictions(world, "cirr", split, "recall_subset")
        verdict = predictions.validate(write(tmp_path / "mine.json", content), world)
        assert (verdict.what, verdict.problems) == (f"CIRR {split}, recall_subset", ())


# The real annotations


@real
@pytest.mark.parametrize(
    ("file", "what", "queries"),
    [
        ("CIRCO/submission_examples/submission_val.json", "CIRCO val", 220),
        ("CIRCO/submission_examples/submission_test.json", "CIRCO test", 800),
        ("CIRR/demo_files/test1_pred_ranks_recall.json", "CIRR test1, recall", 4148),
        ("CIRR/demo_files/test1_pred_ranks_recall_subset.json", "CIRR test1, recall_subset", 4148),
    ],
)
def test_the_organisers_own_examples_pass(file, what, queries):
    verdict = predictions.validate(REAL / file, REAL)
    assert (verdict.what, verdict.queries, verdict.problems) == (what, queries, ())


@real
def test_circos_example_for_val_scores_as_a_walk_down_its_lists():
    file = REAL / "CIRCO" / "submission_examples" / "submission_val.json"
    assert scoring.score(file, "circo", REAL) == circo_expected(REAL, json.loads(file.read_text()))


@real
@pytest.mark.parametrize("metric", ["recall", "recall_subset"])
def test_random_rankings_of_cirr_val_score_as_a_walk_down_the_lists(metric, tmp_path):
    content = random_predictions(REAL, "cirr", "val", metric)
    expected = cirr_expected(REAL, content, recall=metric == "recall", subset=metric == "recall_subset")
    assert score_of(content, tmp_path, "cirr", REAL) == expected


@real
def test_rankings_of_cirr_val_with_every_group_in_them_give_all_metrics(tmp_path):
    content, draw = random_predictions(REAL, "cirr", "val", "recall"), random.Random(2)
    for entry in cirr_entries(REAL, "val"):
        pair, group = str(entry["pairid"]), [name for name in entry["img_set"]["members"] if name != entry["reference"]]
        content[pair] = list(dict.fromkeys([*content[pair][:9], *draw.sample(group, 5), *content[pair]]))
    assert score_of(content, tmp_path, "cirr", REAL) == cirr_expected(REAL, content, recall=True, subset=True)


@real
@pytest.mark.parametrize("category", ["dress", "shirt", "toptee"])
def test_random_rankings_of_fashioniq_score_as_a_walk_down_the_lists(category, tmp_path):
    content = random_fashioniq(REAL, category, seed=1)
    for entry, asked in list(zip(content, fashioniq_entries(REAL, category), strict=True))[::7]:
        entry["ranking"] = list(dict.fromkeys([*entry["ranking"][:7], asked["target"], *entry["ranking"]]))
    expected = fashioniq_expected(REAL, content, category)
    assert score_of(content, tmp_path, "fashioniq", REAL, category) == expected
