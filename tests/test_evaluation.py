"""Composing, ranking and scoring on a drawn world, held to loops written out here."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from searle_lib import annotations, benchmarks, composers, embeddings, evaluation, submissions
from searle_lib.artefacts import Missing, Store
from searle_lib.composers import Sources
from searle_lib.distillation import Distilled, Phi
from searle_lib.embeddings import Embeddings, images_fingerprint
from searle_lib.fti4cir import Words
from searle_lib.patches import ImageWords
from searle_lib.texts import encode_texts


def random_image_words(ids, width):
    """FTI4CIR's words of images at random, one to twelve attributes each."""
    n = len(ids)
    counts = torch.arange(n) % 12 + 1
    words = Words(
        torch.randn(n, width),
        torch.randn(n, 12, width),
        counts,
        torch.zeros(n, 12, 1),
        torch.zeros(n, 12, dtype=torch.int64),
        torch.zeros(n, 24),
    )
    return ImageWords(ids, words, "random")


@pytest.fixture(scope="module")
def study(world, tiny, tmp_path_factory):
    """The world's benchmarks, their galleries, and composers with random tokens and an untrained φ."""
    store = Store(tmp_path_factory.mktemp("artefacts"))
    splits = benchmarks.load_all(["fashioniq", "cirr", "circo"], world)
    galleries = embeddings.encode_galleries(store, tiny, splits, "targetpad")
    torch.manual_seed(0)
    distilled = Distilled(Phi(tiny.dimension, tiny.width).eval().requires_grad_(False), None, "untrained")
    made = {}
    for name, loaded in splits.items():
        images = embeddings.of_references(name, loaded, galleries)
        tokens = Embeddings(name, images.ids, torch.randn(len(images.ids), tiny.width), "random")
        made[name] = Sources(tiny, images, tokens, distilled, random_image_words(images.ids, tiny.width))
    return store, splits, galleries, made


def everything(study):
    store, splits, galleries, made = study
    for name, loaded in splits.items():
        for benchmark in loaded:
            composed = composers.compose_with(list(composers.METHODS), made[name])
            yield benchmark, evaluation.rank_all(store, benchmark, galleries[benchmark.images], composed), composed


def test_every_method_composes_unit_vectors(study):
    for benchmark, _, composed in everything(study):
        for composer in composed.values():
            queries = composer.compose(list(benchmark.queries["reference"]), list(benchmark.queries["sentences"]))
            assert_close(queries.norm(dim=-1), torch.ones(len(benchmark.queries)))


def test_searle_averages_unit_features_of_all_sentences_with_the_references_own_word(study, tiny):
    _, splits, _, made = study
    dress, sources = splits["fashioniq/val"][0], made["fashioniq/val"]
    query = dress.queries.iloc[2]
    word = sources.distilled.phi(sources.images.of([query["reference"]]))
    features = [encode_texts(tiny, [f"a photo of $ that {s}"], words=word)[0] for s in query["sentences"]]
    expected = F.normalize(sum(F.normalize(f, dim=0) for f in features) / 2, dim=0)
    composed = composers.Searle(sources).compose(list(dress.queries["reference"]), list(dress.queries["sentences"]))
    assert_close(composed[2], expected, atol=1e-5, rtol=1e-5)


def test_image_and_text_is_the_sum_of_both_unit_vectors(study, tiny):
    _, splits, _, made = study
    (circo,), sources = splits["circo/val"], made["circo/val"]
    query = circo.queries.iloc[1]
    image = F.normalize(sources.images.of([query["reference"]]), dim=-1)
    text = F.normalize(encode_texts(tiny, [query["sentences"][0]]), dim=-1)
    composed = composers.ImageAndText(sources).compose([query["reference"]], [query["sentences"]])
    assert_close(composed, F.normalize(image + text, dim=-1), atol=1e-5, rtol=1e-5)


def naive_scores(benchmark, gallery, queries):
    """Sorts names of every query's gallery and walks down the list, as the published evaluation does."""
    names = benchmark.gallery["image"].tolist()
    unit = F.normalize(gallery.vectors, dim=-1)
    found = {}
    for row, query in enumerate(benchmark.queries.itertuples()):
        order = sorted(range(len(names)), key=lambda i: (-float(unit[i] @ queries[row]), i))
        ranked = [names[i] for i in order]
        if benchmark.dataset == "cirr":
            ranked.remove(query.reference)
            group = [name for name in ranked if name in query.group]
        for metric, _ in benchmark.protocol.metrics:
            kind, k = metric.split("@")
            if kind == "R":
                value = float(query.target in ranked[: int(k)])
            elif kind == "Rsubset":
                value = float(query.target in group[: int(k)])
            else:
                hits = [name in query.ground_truths for name in ranked[: int(k)]]
                precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
                value = sum(precisions) / min(len(query.ground_truths), int(k))
            found[query.query, metric] = value
    return found


def test_scores_equal_a_walk_down_sorted_names(study):
    for benchmark, ranked, composed in everything(study):
        if benchmark.split != benchmark.protocol.validation:
            continue
        for method in ("Image+Text", "SEARLE-OTI"):
            queries = composed[method].compose(
                list(benchmark.queries["reference"]), list(benchmark.queries["sentences"])
            )
            expected = naive_scores(benchmark, study[2][benchmark.images], queries)
            table = evaluation.scores(benchmark, ranked[method], method)
            plain = table[table["category"].isin([benchmark.category, "subset"])]
            got = {(row.query, row.metric): row.value for row in plain.itertuples()}
            assert got == pytest.approx(expected, abs=1e-9)
            assert set(table["method"]) == {method} and set(table["dataset"]) == {benchmark.protocol.title}


def test_circo_scores_again_under_each_aspect_of_a_query(study):
    for benchmark, ranked, _ in everything(study):
        if benchmark.name == "circo/val":
            table = evaluation.scores(benchmark, ranked["SEARLE"], "SEARLE")
            query = benchmark.queries.iloc[0]
            of_query = table[(table["query"] == query["query"]) & (table["metric"] == "mAP@10")]
            assert set(of_query["category"]) == {"all", *query["aspects"]}
            assert of_query["value"].nunique() == 1


def test_submissions_have_the_form_that_the_servers_take(study, tmp_path):
    for benchmark, ranked, _ in everything(study):
        if benchmark.split != benchmark.protocol.submission:
            continue
        rankings = evaluation.ranking_table(benchmark, ranked["SEARLE"], "SEARLE")
        files = submissions.write(tmp_path, rankings, benchmark.dataset, benchmark.split, "SEARLE")
        contents = [json.loads(file.read_text()) for file in files]
        ids = list(benchmark.queries["query"])
        if benchmark.dataset == "circo":
            (best,) = contents
            assert sorted(best, key=int) == sorted(ids, key=int)
            known = {int(image) for image in benchmark.gallery["image"]}
            assert all(len(set(row)) == 50 and set(row) <= known for row in best.values())
        else:
            recall, subset = contents
            assert (recall.pop("version"), recall.pop("metric")) == ("rc2", "recall")
            assert (subset.pop("version"), subset.pop("metric")) == ("rc2", "recall_subset")
            assert set(recall) == set(subset) == set(ids)
            for query in benchmark.queries.itertuples():
                assert query.reference not in recall[query.query] and len(recall[query.query]) == 11  # 12 pictures
                place = recall[query.query].index
                expected = sorted(query.group, key=place)[:3]
                assert subset[query.query] == expected


def test_fashioniq_has_no_test_server(study, tmp_path):
    benchmark, ranked, _ = next(everything(study))
    with pytest.raises(ValueError, match="FashionIQ has no test server; CIRR and CIRCO have"):
        rankings = evaluation.ranking_table(benchmark, ranked["SEARLE"], "SEARLE")
        submissions.write(tmp_path, rankings, benchmark.dataset, benchmark.split, "SEARLE")


def test_a_split_without_all_its_queries_gets_no_file_and_a_sentence(study, tmp_path):
    evaluated = [(benchmark, ranked) for benchmark, ranked, _ in everything(study)]
    tables = [evaluation.ranking_table(b, ranked["SEARLE"], "SEARLE") for b, ranked in evaluated]
    sizes = {b.name: {"there": b.there, "whole": b.whole} for b, _ in evaluated}
    (tmp_path / "cirr-test1-Old.json").write_text("{}")
    sizes["circo/test"] = {"there": (3, 90), "whole": (4, 90)}
    files = submissions.write_all(tmp_path, pd.concat(tables), sizes)
    assert sorted(file.name for file in files) == ["cirr-test1-SEARLE.json", "cirr-test1-subset-SEARLE.json"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert submissions.incomplete("circo/test", sizes) == (
        "circo/test has 3 of 4 queries and 90 of 90 images; no file is written for a server."
    )
    sizes["circo/test"] = {"there": (4, 89), "whole": (4, 90)}
    assert "89 of 90 images" in submissions.incomplete("circo/test", sizes)


def test_what_06_leaves_is_what_07_finds(study, tiny, tmp_path):
    evaluated = [(benchmark, ranked) for benchmark, ranked, _ in everything(study)]
    left = evaluation.leave(tmp_path, evaluated, tiny, {"seed": 1})
    scores, rankings, facts = evaluation.left(tmp_path)
    pd.testing.assert_frame_equal(scores, left, check_dtype=False)
    assert facts["clip_sha256"] == tiny.sha256 and facts["seed"] == 1
    assert set(scores["split"]) == {"val"} and set(rankings["split"]) == {"val", "test1", "test"}
    one = rankings[(rankings["dataset"] == "cirr") & (rankings["split"] == "val") & (rankings["method"] == "SEARLE")]
    assert one["best"].map(len).eq(23).all()  # 24 pictures without the reference


def test_07_says_that_06_has_not_run(tmp_path):
    with pytest.raises(Missing, match=r"notebook 07_results needs .*scores.parquet; run 06_retrieval first"):
        evaluation.left(tmp_path)


def test_validation_gives_the_protocols_metrics_in_percent(study, tiny):
    _, splits, galleries, made = study
    (cirr,) = splits["cirr/val"]
    asked = evaluation.validation(tiny, splits, galleries)
    found = asked.metrics(made["cirr/val"].distilled.phi)
    assert list(found) == [name for name, _ in cirr.protocol.metrics]
    assert found["R@50"] == 100 and 0 <= found["R@1"] <= 100
    assert evaluation.validation(tiny, {}, galleries).metrics(None) == {}


def test_a_query_vector_that_is_not_finite_is_named(study):
    store, splits, galleries, made = study
    (circo,), sources = splits["circo/val"], made["circo/val"]
    tokens = Embeddings("x", sources.tokens.ids, torch.full_like(sources.tokens.vectors, float("nan")), "nan")
    composer = composers.SearleOti(Sources(sources.backbone, sources.images, tokens))
    with pytest.raises(ValueError, match="SEARLE-OTI gives query 0 of circo/val a vector that is not finite"):
        evaluation.rank(store, circo, galleries["circo/unlabeled"], "SEARLE-OTI", composer)


def test_an_unknown_method_is_refused(study):
    with pytest.raises(ValueError, match="there is no method Pic2Word; methods may name Image-only, Text-only"):
        composers.compose_with(["Pic2Word"], study[3]["cirr/val"])


def test_an_image_that_was_never_encoded_is_named(study):
    with pytest.raises(LookupError, match="image elsewhere is not among the 24 images of cirr/val"):
        study[2]["cirr/val"].of(["elsewhere"])


def test_embeddings_are_encoded_once_and_kept(world, tiny, tmp_path, monkeypatch):
    table = annotations.imagenet(world)
    first = embeddings.encode(Store(tmp_path), tiny, "imagenet/test", table, "targetpad", batch_size=5)
    monkeypatch.setattr(embeddings, "encode_images", None)
    again = embeddings.encode(Store(tmp_path), tiny, "imagenet/test", table, "targetpad", batch_size=7)
    assert torch.equal(first.vectors, again.vectors) and first.key == again.key


def test_a_truncated_picture_stops_the_encoding_with_its_name_and_leaves_nothing(world, tiny, tmp_path):
    table = annotations.imagenet(world).head(4).copy()
    broken = tmp_path / "broken.JPEG"
    broken.write_bytes(Path(table["path"][2]).read_bytes()[:700])
    table.loc[2, "path"] = str(broken)
    with pytest.raises(ValueError, match=r"broken.JPEG cannot be decoded \(700 bytes"):
        embeddings.encode(Store(tmp_path / "store"), tiny, "imagenet/test", table, "targetpad")
    assert not list((tmp_path / "store" / "embeddings").iterdir())


def test_images_fingerprint_changes_with_ids_order_and_sizes(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"1234")
    prints = {
        images_fingerprint(["a", "b"], paths),
        images_fingerprint(["b", "a"], paths[::-1]),
        images_fingerprint(["a", "c"], paths),
    }
    paths[1].write_bytes(b"12345")
    prints.add(images_fingerprint(["a", "b"], paths))
    assert len(prints) == 4


def test_images_fingerprint_names_the_image_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image b is listed but .*/b does not exist; download it"):
        images_fingerprint(["b"], [tmp_path / "b"])


def test_numbers_made_with_other_parameters_are_refused():
    made_with = {"parameters": {"methods": ["SEARLE"], "fashioniq_gallery": "union"}}
    evaluation.check_made_with(made_with, {"methods": ["SEARLE"], "workers": 3})
    with pytest.raises(ValueError, match=r"fashioniq_gallery is split, but the numbers .* made with union; run 06_re"):
        evaluation.check_made_with(made_with, {"methods": ["SEARLE"], "fashioniq_gallery": "split"})


def test_what_06_leaves_puts_an_end_to_the_results_of_earlier_scores(study, tiny, tmp_path):
    evaluated = [(benchmark, ranked) for benchmark, ranked, _ in everything(study)]
    (tmp_path / "figures").mkdir()
    for name in ("results.csv", "07_results.html", "figures/results.png", "03_oti.html"):
        (tmp_path / name).write_text("old")
    evaluation.leave(tmp_path, evaluated, tiny, {})
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"scores.parquet", "rankings.parquet", "made_with.json", "03_oti.html"}


def test_an_ablation_of_words_has_rankings_of_its_own(study):
    _, _, _, made = study
    sources = made["cirr/val"]
    keys = set()
    for parts in ("both", "subject", "attributes"):
        words = dataclasses.replace(sources.image_words, parts=parts)
        keys.add(composers.Fti4CirQueries(dataclasses.replace(sources, image_words=words)).key)
    assert len(keys) == 3
