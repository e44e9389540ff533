"""Files of predictions on small annotations made here, and on the real ones where they are at hand."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from searle_lib.servers import predictions, scoring

REAL = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the benchmarks' annotations in {REAL}")
RECALL_VAL, RECALL = ("cirr", "val", "recall"), ("cirr", "test1", "recall")
SUBSET_VAL, SUBSET = ("cirr", "val", "recall_subset"), ("cirr", "test1", "recall_subset")
CIRCO_VAL, CIRCO = ("circo", "val", ""), ("circo", "test", "")
KINDS = [RECALL_VAL, SUBSET_VAL, RECALL, SUBSET, CIRCO_VAL, CIRCO]
CAPTIONS = {
    "cirr": "CIRR/cirr/captions/cap.rc2.{}.json",
    "circo": "CIRCO/annotations/{}.json",
    "fashioniq": "FashionIQ/captions/cap.{}.val.json",
}
IMAGES = {
    "cirr": "CIRR/cirr/image_splits/split.rc2.{}.json",
    "circo": "CIRCO/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
    "fashioniq": "FashionIQ/image_splits/split.{}.val.json",
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entries_of(root, dataset, part):
    """The entries of a caption file; `part` is a split, or FashionIQ's category."""
    return json.loads((root / CAPTIONS[dataset].format(part)).read_text())


def images_of(root, dataset, part):
    images = json.loads((root / IMAGES[dataset].format(part)).read_text())
    return [image["id"] for image in images["images"]] if dataset == "circo" else list(images)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotations without images: CIRR with 10 groups of six per split, CIRCO and FashionIQ with 90 images each."""
    root, draw = tmp_path_factory.mktemp("predictions") / "data", random.Random(0)
    for split, prefix, first in (("val", "dev", 100), ("test1", "test1", 200)):
        groups = [[f"{prefix}-{number}-{i}-img0" for i in range(6)] for number in range(10)]
        entries = []
        for pair, members in enumerate(groups, start=first):
            reference, target = draw.sample(members, 2)
            entry = {"pairid": pair, "reference": reference, "caption": "c", "img_set": {"members": members}}
            entries.append(entry | ({"target_hard": target} if split == "val" else {}))
        write(root / CAPTIONS["cirr"].format(split), entries)
        names = {name: f"./{prefix}/{name}.png" for members in groups for name in members}
        write(root / IMAGES["cirr"].format(split), names)
    ids = draw.sample(range(1, 600_000), 90)
    for split, queries in (("val", 8), ("test", 20)):
        entries = []
        for query in range(queries):
            reference, *truths = draw.sample(ids, draw.randint(2, 15))
            entry = {"id": query, "reference_img_id": reference, "relative_caption": "c"}
            truth = {"target_img_id": truths[0], "gt_img_ids": truths}
            truth["semantic_aspects"] = draw.sample(["negation", "cardinality", "viewpoint"], draw.randint(0, 2))
            entries.append(entry | (truth if split == "val" else {}))
        write(root / CAPTIONS["circo"].format(split), entries)
    write(root / IMAGES["circo"], {"images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]})
    for category in ("dress", "shirt", "toptee"):
        names = [f"{category}{i}" for i in range(90)]
        pairs = [draw.sample(names, 2) for _ in range(9)]
        entries = [{"candidate": c, "target": t, "captions": [f"is {i}?", "is not"]} for i, (c, t) in enumerate(pairs)]
        write(root / CAPTIONS["fashioniq"].format(category), entries)
        write(root / IMAGES["fashioniq"].format(category), names)
    return root


@pytest.fixture(params=["small", pytest.param("real", marks=real)])
def root(request, data):
    """The small annotations, and the real ones."""
    return data if request.param == "small" else REAL


def random_predictions(root, dataset, split, metric, length=50, seed=0):
    """A file that a server takes: random images in random order, for every query of the split."""
    draw, images = random.Random(seed), images_of(root, dataset, split)
    if dataset == "circo":
        return {str(entry["id"]): draw.sample(images, length) for entry in entries_of(root, dataset, split)}
    content = {"version": "rc2", "metric": metric}
    for entry in entries_of(root, dataset, split):
        candidates = entry["img_set"]["members"] if metric == "recall_subset" else images
        allowed = [image for image in candidates if image != entry["reference"]]
        content[str(entry["pairid"])] = draw.sample(allowed, 3 if metric == "recall_subset" else length)
    return content


def random_fashioniq(root, category):
    """A FashionIQ file of random images, which finds every third target."""
    draw, images, content = random.Random(1), images_of(root, "fashioniq", category), []
    for row, entry in enumerate(entries_of(root, "fashioniq", category)):
        ranking = draw.sample(images, 60)
        if row % 3 == 0:
            ranking = list(dict.fromkeys([*ranking[:7], entry["target"], *ranking]))
        content.append({"candidate": entry["candidate"], "captions": entry["captions"], "ranking": ranking})
    return content


def edited(edit, content):
    changed = edit(content)
    return content if changed is None else changed


def validate(data, tmp_path, kind, edit=lambda content: None):
    """The verdict on random predictions after an edit."""
    return predictions.validate(write(tmp_path / "mine.json", edited(edit, random_predictions(data, *kind))), data)


# Recognising a file


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_recognised_by_its_content_and_passes(kind, data, tmp_path):
    verdict = validate(data, tmp_path, kind)
    assert verdict.title == {"cirr": f"CIRR {kind[1]}, {kind[2]}", "circo": f"CIRCO {kind[1]}"}[kind[0]]
    assert verdict.queries == {"cirr": 10, "circo": 8 if kind == CIRCO_VAL else 20}[kind[0]]
    assert verdict.problems == ()
    assert [note[:30] for note in verdict.notes] == {
        "val": ["this is the validation split, "] + ["if this file is meant for test"] * (kind[0] == "circo")
    }.get(kind[1], [])


@pytest.mark.parametrize(
    ("kind", "edit", "title"),
    [
        (CIRCO_VAL, lambda content: content.pop("3") and None, "CIRCO val"),
        (CIRCO, lambda content: {query: content[query] for query in list(content)[:12]}, "CIRCO test"),
        (RECALL, lambda content: {str(pair): [1, 2, 3] for pair in range(200, 210)}, "CIRR test1, recall_subset"),
    ],
    ids=["without a query of val", "more queries than val", "no header and no names, but pair ids"],
)
def test_an_incomplete_file_is_recognised_by_its_ids(kind, edit, title, data, tmp_path):
    assert validate(data, tmp_path, kind, edit).title == title


def test_files_on_the_miniature_world_are_recognised(world, tmp_path):
    for split in ("val", "test1"):
        verdict = validate(world, tmp_path, ("cirr", split, "recall_subset"))
        assert (verdict.title, verdict.problems) == (f"CIRR {split}, recall_subset", ())


@real
@pytest.mark.parametrize(
    ("file", "title", "queries"),
    [
        ("CIRCO/submission_examples/submission_val.json", "CIRCO val", 220),
        ("CIRCO/submission_examples/submission_test.json", "CIRCO test", 800),
        ("CIRR/demo_files/test1_pred_ranks_recall.json", "CIRR test1, recall", 4148),
        ("CIRR/demo_files/test1_pred_ranks_recall_subset.json", "CIRR test1, recall_subset", 4148),
    ],
)
def test_the_organisers_own_examples_pass(file, title, queries):
    verdict = predictions.validate(REAL / file, REAL)
    assert (verdict.title, verdict.queries, verdict.problems) == (title, queries, ())


# Refusals of a server


def refusals(data, tmp_path, kind, change):
    """What is said of query 204 or 12 after a change of its list."""
    query, row = ("12", 12) if kind == CIRCO else ("204", 4)
    entry = entries_of(data, kind[0], kind[1])[row]
    verdict = validate(data, tmp_path, kind, lambda content: content | {query: change(content[query], entry)})
    assert all(problem.startswith(f"query {query} of mine.json ") for problem in verdict.problems)
    return "\n".join(problem.removeprefix(f"query {query} of mine.json ") for problem in verdict.problems)


@pytest.mark.parametrize(
    ("kind", "entry", "sentence"),
    [
        (RECALL, "x", "x, which is not in the gallery; list images of split.rc2.test1.json."),
        (RECALL, "dev-1-0-img0", "dev-1-0-img0, which is not in the gallery; list images of split.rc2.test1.json."),
        (RECALL, 12, "12, which cannot be an image; write names in quotes."),
        (SUBSET, "x", "x, which is not in the gallery; list images of split.rc2.test1.json."),
        (SUBSET, "test1-5-0-img0", "test1-5-0-img0, which is not in its group; choose members of its img_set."),
        (CIRCO, 600_001, "600001, which is not in the gallery; list images of image_info_unlabeled2017.json."),
        (CIRCO, 12.0, "12.0, which cannot be an image; write integers."),
        (CIRCO, True, "true, which cannot be an image; write integers."),
        (CIRCO, None, "null, which cannot be an image; write integers."),
        (CIRCO, [1], "[1], which cannot be an image; write integers."),
        (CIRCO, -5, "-5, which cannot be an image; write integers."),
        (CIRCO, "5.jpg", '"5.jpg", which cannot be an image; write integers.'),
    ],
)
def test_a_list_with_a_wrong_entry_is_refused(kind, entry, sentence, data, tmp_path):
    assert refusals(data, tmp_path, kind, lambda images, _: [*images[:-1], entry]) == f"lists {sentence}"


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        (RECALL, lambda images, _: images[:49], "lists 49 images; list exactly 50 different images."),
        (RECALL, lambda images, _: images[:49] + images[:1], r"lists \S+ more than once; list exactly 50 .*"),
        (RECALL, lambda images, _: "x" * 99, r'has "x{36}\.\.\. instead of a list; list exactly 50 different images.'),
        (RECALL, lambda images, entry: images[:49] + [entry["reference"]], r"lists \S+, its own reference; leave .*"),
        (SUBSET, lambda images, entry: images[:2] + [entry["reference"]], r"lists \S+, its own reference; leave .*"),
        (SUBSET, lambda images, _: images[:2], "lists 2 images; list exactly 3 different images."),
        (CIRCO, lambda images, _: images[:49] + images[:1], r"lists \d+ more than once; list exactly 50 .*"),
        (CIRCO, lambda images, _: images[:49] + [str(images[0])], r"lists \d+ more than once; list exactly 50 .*"),
        (CIRCO, lambda images, _: images + images[:1], r"lists 51 images; list exactly 50 .*\n.* more than once; .*"),
    ],
)
def test_a_wrong_list_is_refused(kind, change, sentence, data, tmp_path):
    assert re.fullmatch(sentence, refusals(data, tmp_path, kind, change))


FILE_FAULTS = {
    "a query too few": (RECALL, lambda c: c.pop("204") and None, "query 204 of CIRR test1 is not in .*; add its 50 .*"),
    "an id too few": (CIRCO, lambda c: c.pop("12") and None, "query 12 of CIRCO test is not in .*; add its 50 .*"),
    "a query too many": (
        RECALL,
        lambda c: c.update({"999": c["204"]}),
        "query 999 of .* not a query of CIRR test1; .*",
    ),
    "a query of val": (RECALL, lambda c: c.update({"101": c["204"]}), "query 101 of .* not a query of CIRR test1; .*"),
    "an id too many": (CIRCO, lambda c: c.update({"20": c["12"]}), "query 20 of .* is not a query of CIRCO test; .*"),
    "a wrong version": (RECALL, lambda c: c.update(version="rc1"), 'version of mine.json is "rc1"; set it to "rc2".'),
    "a wrong metric": (RECALL, lambda c: c.update(metric="R@1"), 'metric of mine.json is "R@1"; .* "recall_subset".'),
    "no version": (SUBSET, lambda c: c.pop("version") and None, 'mine.json has no key version, .*: "rc2".'),
    "no metric": (SUBSET, lambda c: c.pop("metric") and None, 'mine.json has no key metric, .* or "recall_subset".'),
    "no header": (
        RECALL,
        lambda c: {query: images for query, images in c.items() if isinstance(images, list)} | {"203": c["203"][:49]},
        r"mine.json has no key version, .*\nmine.json has no key metric, .*\nquery 203 of mine.json lists 49 .*",
    ),
    "keys twice": (
        RECALL,
        lambda c: json.dumps(c)[:-1] + f', "204": {json.dumps(c["204"])}, "metric": "recall"}}',
        r"key metric stands more than once in mine.json; keep one.\nquery 204 of mine.json has more than one list; .*",
    ),
    "several, told in the file's order": (
        RECALL,
        lambda c: (
            {query: c[query] for query in sorted(c, reverse=True) if query != "208"}
            | {"205": c["205"][:1] * 3, "202": [*"abcde", *c["202"][5:]], "version": 2}
        ),
        r"version .*\nquery 205 .*\nquery 205 .*\nquery 202 .* lists a, b, c and 2 more, which is not .*\nquery 208 .*",
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_wrong_file_is_refused(fault, data, tmp_path):
    kind, edit, sentences = FILE_FAULTS[fault]
    assert re.fullmatch(sentences, "\n".join(validate(data, tmp_path, kind, edit).problems))


def test_a_cirr_file_of_more_than_5_mb_is_refused(data, tmp_path):
    text = json.dumps(random_predictions(data, *RECALL))
    fits = write(tmp_path / "fits.json", text + " " * (5_000_000 - len(text)))
    large = write(tmp_path / "large.json", text + " " * (5_000_001 - len(text)))
    assert predictions.validate(fits, data).problems == ()
    (problem,) = predictions.validate(large, data).problems
    assert problem.startswith("large.json has 5,000,001 bytes and the server takes at most 5,000,000")


def test_circo_leaves_the_reference_in_the_ranking(data, tmp_path):
    reference = entries_of(data, "circo", "test")[12]["reference_img_id"]

    def put_first(content):
        content["12"] = [reference, *(image for image in content["12"] if image != reference)][:50]

    assert validate(data, tmp_path, CIRCO, put_first).problems == ()


def test_strings_of_digits_are_accepted_for_circo_with_a_note(data, tmp_path):
    verdict = validate(data, tmp_path, CIRCO, lambda content: content | {"12": [f"{i:012d}" for i in content["12"]]})
    assert verdict.problems == ()
    assert verdict.notes == ("some image ids are strings; the server converts them, but its examples have integers.",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"version": "rc2", "200": ["test1-0', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('"rc2"', 'holds only "rc2"; write an object'),
        ("[1, 2]", "is a list; write an object"),
        ("{}", "holds no predictions"),
        ('{"version": "rc2", "metric": "recall"}', "holds no predictions"),
        ('{"version": "rc2", "metric": "recall", "7": []}', "has no query of CIRR val or test1, but 7 for example"),
        ('{"12063": [1]}', "has no query of CIRCO val or test, but 12063 for example"),
    ],
)
def test_a_file_that_holds_no_predictions_is_refused_by_name(content, sentence, data, tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} {sentence}"):
        predictions.validate(file, data)


def test_a_file_that_does_not_exist_is_named(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine.json does not exist; name a file of predictions"):
        predictions.validate(tmp_path / "mine.json", data)


# Data roots that hold only a part


def copied(data, tmp_path, *ignored):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns(*ignored))
    return tmp_path / "data"


def test_without_cocos_list_image_ids_are_not_checked_but_the_rest_is(data, tmp_path):
    content = random_predictions(data, *CIRCO)
    content["3"][0], content["5"][0] = 600_001, 1.5
    verdict = predictions.validate(write(tmp_path / "mine.json", content), copied(data, tmp_path, "COCO2017_unlabeled"))
    assert verdict.notes == ("image ids were not checked, because image_info_unlabeled2017.json does not exist.",)
    assert [problem.partition(" of ")[0] for problem in verdict.problems] == ["query 5"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_root_with_one_data_set_or_one_split_is_enough_for_its_files(kind, data, tmp_path):
    file = write(tmp_path / "mine.json", random_predictions(data, *kind))
    other_dataset = {"cirr": "CIRCO", "circo": "CIRR"}[kind[0]]
    other_split = {"val": "*test*.json", "test1": "*val.json", "test": "val.json"}[kind[1]]
    assert predictions.validate(file, copied(data, tmp_path, other_dataset, other_split, "FashionIQ")).problems == ()


@pytest.mark.parametrize(
    ("kind", "absent", "named"),
    [
        (RECALL, "cap.rc2.test1.json", "cap.rc2.test1.json"),
        (RECALL_VAL, "cap.rc2.val.json", "cap.rc2.val.json"),
        (RECALL, "split.rc2.test1.json", "split.rc2.test1.json"),
        (SUBSET, "split.rc2.test1.json", "split.rc2.test1.json"),
        (CIRCO, "test.json", "test.json"),
        (RECALL, "CIRR", "CIRR"),
        (CIRCO, "CIRCO", "CIRCO"),
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_annotations_that_are_needed_and_absent_are_named(kind, absent, named, header, data, tmp_path):
    content = random_predictions(data, *kind)
    if not header:
        content = {query: images for query, images in content.items() if isinstance(images, list)}
    with pytest.raises(FileNotFoundError, match=re.escape(named)):
        predictions.validate(write(tmp_path / "mine.json", content), copied(data, tmp_path, absent))


# Scores


def is_hit(images, target, k):
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


def circo_expected(root, content):
    rows = [([int(i) for i in content[str(e["id"])]], e) for e in entries_of(root, "circo", "val")]
    metrics, aspects = {}, {}
    for k in (5, 10, 25, 50):
        metrics[f"mAP@{k}"] = percent([average_precision(images, e["gt_img_ids"], k) for images, e in rows])
    for k in (5, 10, 25, 50):
        metrics[f"R@{k}"] = percent([is_hit(images, e["target_img_id"], k) for images, e in rows])
    for images, entry in rows:
        for aspect in entry["semantic_aspects"]:
            aspects.setdefault(aspect, []).append(average_precision(images, entry["gt_img_ids"], 10))
    aspects = {aspect: percent(values) for aspect, values in aspects.items()}
    facts = {"dataset": "CIRCO", "split": "val", "queries": len(rows)}
    return facts | {"metrics": metrics, "mAP@10 by aspect": aspects}


def cirr_expected(root, content, recall=False, subset=False):
    metrics, rows = {}, [(content[str(e["pairid"])], e) for e in entries_of(root, "cirr", "val")]
    for k in (1, 5, 10, 50) if recall else ():
        metrics[f"R@{k}"] = percent([is_hit(images, e["target_hard"], k) for images, e in rows])
    for k in (1, 2, 3) if subset else ():
        of_group = [([image for image in images if image in e["img_set"]["members"]], e) for images, e in rows]
        metrics[f"Rsubset@{k}"] = percent([is_hit(images, e["target_hard"], k) for images, e in of_group])
    return {"dataset": "CIRR", "split": "val", "queries": len(rows), "metrics": metrics}


def score(content, tmp_path, *arguments):
    """Scores as JSON gives them back, without the intervals."""
    report = json.loads(json.dumps(scoring.score(write(tmp_path / "mine.json", content), *arguments)))
    assert report.pop("95 % intervals").keys() == report["metrics"].keys()
    return report


@pytest.mark.parametrize(("length", "form"), [(50, int), (50, str), (90, int)])
def test_circo_scores_equal_a_walk_down_the_lists(length, form, data, tmp_path):
    content = random_predictions(data, *CIRCO_VAL, length)
    content = {query: [form(image) for image in images] for query, images in reversed(content.items())}
    assert score(content, tmp_path, "circo", data) == circo_expected(data, content)


def test_circo_scores_of_the_miniature_world_equal_a_walk_down_the_lists(world, tmp_path):
    content = random_predictions(world, *CIRCO_VAL, seed=5)
    assert score(content, tmp_path, "circo", world) == circo_expected(world, content)


@real
def test_circos_example_for_val_scores_as_a_walk_down_its_lists(tmp_path):
    file = REAL / "CIRCO" / "submission_examples" / "submission_val.json"
    assert score(file.read_text(), tmp_path, "circo", REAL) == circo_expected(REAL, json.loads(file.read_text()))


def test_circo_is_scored_without_cocos_list(data, tmp_path):
    content = random_predictions(data, *CIRCO_VAL)
    part = copied(data, tmp_path, "COCO2017_unlabeled")
    assert score(content, tmp_path, "circo", part) == circo_expected(data, content)


def test_ground_truths_beyond_the_list_count_among_the_ground_truths(data, tmp_path):
    ids, entries = images_of(data, "circo", "val"), entries_of(data, "circo", "val")
    content = {}
    for entry in entries:
        first, truths = entry["gt_img_ids"][0], entry["gt_img_ids"]
        content[str(entry["id"])] = [first, *(image for image in ids if image not in truths)][:50]
    expected = [1 / min(len(entry["gt_img_ids"]), 10) for entry in entries]
    assert max(len(entry["gt_img_ids"]) for entry in entries) > 5
    assert score(content, tmp_path, "circo", data)["metrics"]["mAP@10"] == percent(expected)


def test_cirr_scores_equal_a_walk_down_the_lists(root, tmp_path):
    recall, subset = (random_predictions(root, *kind) for kind in (RECALL_VAL, SUBSET_VAL))
    assert score(recall, tmp_path, "cirr", root) == cirr_expected(root, recall, recall=True)
    assert score(subset, tmp_path, "cirr", root) == cirr_expected(root, subset, subset=True)


def test_cirr_lists_that_hold_every_whole_group_give_the_subsets_metrics_too(data, tmp_path):
    content, draw = random_predictions(data, *RECALL_VAL), random.Random(2)
    for entry in entries_of(data, "cirr", "val"):
        images, group = content[str(entry["pairid"])], [*entry["img_set"]["members"]]
        group.remove(entry["reference"])
        content[str(entry["pairid"])] = list(dict.fromkeys([*images[:9], *draw.sample(group, len(group)), *images]))
    assert score(content, tmp_path, "cirr", data) == cirr_expected(data, content, recall=True, subset=True)
    content[str(entry["pairid"])].remove(group[0])
    if len(content[str(entry["pairid"])]) >= 50:
        assert score(content, tmp_path, "cirr", data) == cirr_expected(data, content, recall=True)


def test_lists_without_whole_groups_leave_the_order_of_a_group_unknown(data, tmp_path):
    content = random_predictions(data, *RECALL_VAL)
    rankings = scoring.evaluate(write(tmp_path / "mine.json", content), "cirr", data).rankings
    assert [list(best) for best in rankings["best"]] == [content[query] for query in rankings["query"]]
    assert rankings["group"].map(len).eq(0).all() and rankings["scores"].map(len).eq(0).all()


def test_fashioniq_scores_equal_a_walk_down_the_lists(root, tmp_path):
    category = "shirt"
    content = random_fashioniq(root, category)
    targets = [entry["target"] for entry in entries_of(root, "fashioniq", category)]
    rows = [(entry["ranking"], target) for entry, target in zip(content, targets, strict=True)]
    metrics = {f"R@{k}": percent([is_hit(images, target, k) for images, target in rows]) for k in (10, 50)}
    for k in (10, 50):
        metrics[f"mAP@{k}"] = percent([average_precision(images, [target], k) for images, target in rows])
    facts = {"dataset": "FashionIQ", "split": "val", "category": category, "queries": len(rows)}
    assert score(content, tmp_path, "fashioniq", root, category) == facts | {"metrics": metrics}
    by_query = {f"{category}-{row}": entry["ranking"] for row, entry in enumerate(content)}
    assert score(by_query, tmp_path, "fashioniq", root, category) == facts | {"metrics": metrics}


SCORE_FAULTS = {  # kind of file, its edit, and the dataset and category that it is scored as
    "CIRR's test split": (RECALL, ["cirr"], r"CIRR test1, whose targets are secret; submit it to https://cirr\.cecs"),
    "CIRCO's test split": (CIRCO, ["circo"], r"CIRCO test, whose targets are secret; submit it to https://circo\.micc"),
    "CIRR as CIRCO": (RECALL_VAL, ["circo"], "is for CIRR val, not for CIRCO; score it as cirr"),
    "CIRCO as CIRR": (CIRCO_VAL, ["cirr"], "is for CIRCO val, not for CIRR; score it as circo"),
    "CIRCO as FashionIQ": (CIRCO_VAL, ["fashioniq", "dress"], "query 0 of mine.json is not a query of FashionIQ val"),
    "an unknown data set": (CIRCO_VAL, ["coco"], "there is no dataset coco; predictions can be for fashioniq, cirr"),
    "a category of CIRCO": (CIRCO_VAL, ["circo", "dress"], "CIRCO has no categories; leave out category dress"),
    "no category": (None, ["fashioniq"], "category of FashionIQ is None; name one of dress, shirt, toptee"),
    "an unknown category": (None, ["fashioniq", "skirt"], "category of FashionIQ is skirt; name one of dress, shirt"),
}


@pytest.mark.parametrize("fault", SCORE_FAULTS)
def test_a_file_is_not_scored_as_something_else(fault, data, tmp_path):
    kind, (dataset, *category), sentence = SCORE_FAULTS[fault]
    content = random_predictions(data, *kind) if kind else random_fashioniq(data, "dress")
    with pytest.raises(ValueError, match=sentence):
        score(content, tmp_path, dataset, data, *category)


def test_a_file_with_problems_is_not_scored_and_the_first_is_told(data, tmp_path):
    content = random_predictions(data, *RECALL_VAL)
    content["104"] = content["104"][:49]
    with pytest.raises(ValueError, match=r"query 104 of mine.json lists 49 images; list at least 50 .*images\.$"):
        score(content, tmp_path, "cirr", data)
    content["106"][0] = content["106"][1]
    del content["103"], content["metric"]
    with pytest.raises(ValueError, match=r"mine.json has no key metric.* \(and 3 more\)$"):
        score(content, tmp_path, "cirr", data)


FASHIONIQ_FAULTS = {
    "another order": (lambda c: [c[1], c[0], *c[2:]], "entry 0 of mine.json does not have the candidate of"),
    "stripped captions": (
        lambda c: c[4].update(captions=["is 4", "is not"]),
        "entry 4 of mine.json does not have the captions",
    ),
    "an entry short": (lambda c: c[:-1], "mine.json has 8 entries, the caption file 9"),
    "an entry too many": (lambda c: [*c, c[0]], "mine.json has 10 entries, the caption file 9"),
    "no ranking": (lambda c: c[4].pop("ranking") and None, "entry 4 of mine.json has no key ranking"),
    "no object": (lambda c: [*c[:8], ["dress1"]], 'entry 8 of mine.json is \\["dress1"\\]; write an object'),
    "49 names": (lambda c: c[4].update(ranking=c[4]["ranking"][:49]), "entry 4 of mine.json lists 49 images"),
    "a name twice": (lambda c: c[4]["ranking"].append(c[4]["ranking"][0]), "entry 4 .* lists .* more than once"),
    "an unknown name": (lambda c: c[4]["ranking"].append("shirt1"), "entry 4 .* lists shirt1, which is not in"),
    "a number": (lambda c: c[4]["ranking"].append(5), "entry 4 of mine.json lists 5, which cannot be an image"),
    "a key twice": (
        lambda c: json.dumps(c).replace("{", '{"ranking": [], ', 1),
        "key ranking stands twice in an entry",
    ),
}


@pytest.mark.parametrize("fault", FASHIONIQ_FAULTS)
def test_a_wrong_fashioniq_file_is_refused_with_its_entry(fault, data, tmp_path):
    edit, sentence = FASHIONIQ_FAULTS[fault]
    with pytest.raises(ValueError, match=sentence):
        score(edited(edit, random_fashioniq(data, "dress")), tmp_path, "fashioniq", data, "dress")


@pytest.mark.parametrize(
    ("dataset", "edit", "sentence"),
    [
        ("circo", lambda e: e[0]["gt_img_ids"].append(e[0]["gt_img_ids"][0]), "entry 0 of .*val.json has gt_img_ids"),
        ("circo", lambda e: e[0].update(gt_img_ids=[f"{i:012d}" for i in e[0]["gt_img_ids"]]), "has gt_img_ids"),
        ("cirr", lambda e: e[1].update(target_hard=e[1]["reference"]), "entry 1 of .*val.json has its reference"),
        ("cirr", lambda e: e[1].update(target_hard="dev-0"), "names image dev-0, which is not among the members"),
        ("cirr", lambda e: e[1].update(pairid=e[0]["pairid"]), "entry 1 of .*val.json is the second query"),
        ("cirr", lambda e: e[1]["img_set"]["members"].append("dev-x"), "names image dev-x, which is not among the"),
    ],
)
def test_score_refuses_annotations_that_the_study_refuses(dataset, edit, sentence, data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    file = root / CAPTIONS[dataset].format("val")
    entries = json.loads(file.read_text())
    ids = [str(entry["id" if dataset == "circo" else "pairid"]) for entry in entries]
    images = images_of(data, dataset, "val")[:50]
    edit(entries)
    write(file, entries)
    head = {"version": "rc2", "metric": "recall"} if dataset == "cirr" else {}
    with pytest.raises(ValueError, match=sentence):
        scoring.score(write(tmp_path / "mine.json", head | dict.fromkeys(ids, images)), dataset, root)
