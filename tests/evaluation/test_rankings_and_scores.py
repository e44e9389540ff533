"""Composing, ranking and scoring on a drawn world, held to loops written out here."""

import dataclasses
import functools
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import forbidden, leave_record, study_of
from PIL import Image
from releases import test_pic2word_file
from safetensors.torch import save_file
from torch.testing import assert_close

from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings, images_fingerprint
from searle_lib.backbone.model import keep_clip
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import annotations, benchmarks
from searle_lib.data.images import Reader
from searle_lib.evaluation import composers, query_words, rankings, scores, validation
from searle_lib.evaluation.composers import Sources
from searle_lib.evaluation.methods import METHODS
from searle_lib.fti4cir import network, patches
from searle_lib.fti4cir.network import Fti4Cir, Words
from searle_lib.fti4cir.patches import ImageWords
from searle_lib.releases import searle_files
from searle_lib.searle import nearest_names, oti, phi
from searle_lib.searle.phi import Phi
from searle_lib.servers import submissions
from searle_lib.store import checkpoints
from searle_lib.store.artefacts import DamagedArtefact, Store
from searle_lib.store.records import MissingInput
from searle_lib.training import TrainedNetwork


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


def every(splits):
    """All benchmarks of some splits, one after the other."""
    return [benchmark for loaded in splits.values() for benchmark in loaded]


def composers_of(sources, methods=tuple(METHODS)):
    return {method: METHODS[method].composer_class()(sources) for method in methods}


@pytest.fixture(scope="module")
def study(world, tiny, tmp_path_factory):
    """The world's benchmarks, their galleries, and composers with random tokens and an untrained φ."""
    store = Store(tmp_path_factory.mktemp("artefacts"))
    splits = benchmarks.load_all(["fashioniq", "cirr", "circo"], world)
    galleries = embeddings.encode_lists(store, tiny, benchmarks.galleries_of(every(splits)))
    torch.manual_seed(0)
    distilled = TrainedNetwork(Phi(tiny.dimension, tiny.width).eval().requires_grad_(False), "untrained", 0)
    made = {}
    for name, loaded in splits.items():
        images = embeddings.keep_references(store, tiny, loaded, galleries)
        tokens = Embeddings(name, images.ids, torch.randn(len(images.ids), tiny.width), "random")
        words = random_image_words(images.ids, tiny.width)
        made[name] = Sources(tiny, images, tokens, distilled, words, dict.fromkeys(["Pic2Word", "LinCIR"], distilled))
    return store, splits, galleries, made


def everything(study):
    store, splits, galleries, made = study
    for name, loaded in splits.items():
        for benchmark in loaded:
            composed = composers_of(made[name])
            yield benchmark, rankings.rank_all(store, benchmark, galleries[benchmark.gallery_name], composed), composed


def test_every_method_composes_unit_vectors(study):
    for benchmark, _, composed in everything(study):
        for composer in composed.values():
            queries = rankings.compose(benchmark, composer)
            norms = getattr(queries, "vectors", queries).norm(dim=-1)
            assert len(queries) == len(benchmark.queries)
            assert_close(norms, torch.ones_like(norms))


def test_searle_averages_unit_features_of_all_sentences_with_the_references_own_word(study, tiny):
    _, splits, _, made = study
    dress, sources = splits["fashioniq/val"][0], made["fashioniq/val"]
    query = dress.queries.iloc[2]
    word = sources.trained_phi.module(sources.embeddings.select([query["reference"]]))
    features = [encode_texts(tiny, [f"a photo of $ that {s}"], words=word)[0] for s in query["sentences"]]
    expected = F.normalize(sum(F.normalize(f, dim=0) for f in features) / 2, dim=0)
    composed = composers.Searle(sources).compose(list(dress.queries["reference"]), list(dress.queries["sentences"]))
    assert_close(composed[2], expected, atol=1e-5, rtol=1e-5)


def test_image_and_text_is_the_sum_of_both_unit_vectors(study, tiny):
    _, splits, _, made = study
    (circo,), sources = splits["circo/val"], made["circo/val"]
    query = circo.queries.iloc[1]
    image = F.normalize(sources.embeddings.select([query["reference"]]), dim=-1)
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
            expected = naive_scores(benchmark, study[2][benchmark.gallery_name], queries)
            table = scores.score_queries(benchmark, ranked[method], method)
            plain = table[table["category"].isin([benchmark.category, "subset"])]
            got = {(row.query, row.metric): row.value for row in plain.itertuples()}
            assert got == pytest.approx(expected, abs=1e-9)
            assert set(table["method"]) == {method} and set(table["dataset"]) == {benchmark.protocol.title}


def test_a_ranking_table_has_the_cosines_of_its_images_and_the_rank_of_the_first_target(study):
    for benchmark, ranked, composed in everything(study):
        gallery, query = study[2][benchmark.gallery_name], benchmark.queries.iloc[1]
        vector = composed["SEARLE"].compose([query["reference"]], [query["sentences"]])[0]
        cosines = dict(zip(benchmark.gallery["image"], (gallery.unit @ vector).tolist(), strict=True))
        order = sorted(cosines, key=cosines.get, reverse=True)
        if benchmark.protocol.excludes_reference:
            order.remove(query["reference"])
        row = rankings.ranking_table(benchmark, ranked["SEARLE"], "SEARLE").iloc[1]
        assert list(row["best"]) == order[: len(row["best"])]
        assert list(row["scores"]) == pytest.approx([cosines[image] for image in row["best"]], abs=1e-5)
        expected = min(map(order.index, query["ground_truths"]), default=-1)  # secret targets have no rank
        assert row["rank"] == expected


def test_circo_scores_again_under_each_aspect_of_a_query(study):
    for benchmark, ranked, _ in everything(study):
        if benchmark.name == "circo/val":
            table = scores.score_queries(benchmark, ranked["SEARLE"], "SEARLE")
            query = benchmark.queries.iloc[0]
            of_query = table[(table["query"] == query["query"]) & (table["metric"] == "mAP@10")]
            assert set(of_query["category"]) == {"all", *query["aspects"]}
            assert of_query["value"].nunique() == 1


def test_submissions_have_the_form_that_the_servers_take(study, tmp_path):
    for benchmark, ranked, _ in everything(study):
        if benchmark.split != benchmark.protocol.submission:
            continue
        table = rankings.ranking_table(benchmark, ranked["SEARLE"], "SEARLE")
        files = submissions.write(tmp_path, table, benchmark.dataset, benchmark.split, "SEARLE")
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
        table = rankings.ranking_table(benchmark, ranked["SEARLE"], "SEARLE")
        submissions.write(tmp_path, table, benchmark.dataset, benchmark.split, "SEARLE")


def test_a_split_without_all_its_queries_gets_no_file_and_a_sentence(study, tmp_path):
    evaluated = [(benchmark, ranked) for benchmark, ranked, _ in everything(study)]
    tables = [rankings.ranking_table(b, ranked["SEARLE"], "SEARLE") for b, ranked in evaluated]
    sizes = {b.name: {"size": b.size, "full_size": b.full_size} for b, _ in evaluated}
    (tmp_path / "cirr-test1-Old.json").write_text("{}")
    sizes["circo/test"] = {"size": (3, 90), "full_size": (4, 90)}
    files = submissions.write_all(tmp_path, pd.concat(tables), sizes)
    assert sorted(file.name for file in files) == ["cirr-test1-SEARLE.json", "cirr-test1-subset-SEARLE.json"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert submissions.incomplete("circo/test", sizes) == (
        "circo/test has 3 of 4 queries and 90 of 90 images; no file is written for a server."
    )
    sizes["circo/test"] = {"size": (4, 89), "full_size": (4, 90)}
    assert "89 of 90 images" in submissions.incomplete("circo/test", sizes)


def test_what_06_keeps_is_what_07_reads(study, tmp_path):
    of_06 = study_of(tmp_path, "06_retrieval")
    kept = scores.keep_scores(of_06, [(benchmark, ranked) for benchmark, ranked, _ in everything(study)])
    leave_record(of_06)
    by_query, ranked = scores.read_scores(study_of(tmp_path, "07_results"))
    pd.testing.assert_frame_equal(by_query, kept[0])
    pd.testing.assert_frame_equal(ranked, kept[1])
    assert set(by_query["split"]) == {"val"} and set(ranked["split"]) == {"val", "test1", "test"}
    one = ranked[(ranked["dataset"] == "cirr") & (ranked["split"] == "val") & (ranked["method"] == "SEARLE")]
    assert one["best"].map(len).eq(23).all()  # 24 pictures without the reference


def test_07_says_that_06_has_not_run(tmp_path):
    with pytest.raises(MissingInput) as problem:
        scores.read_scores(study_of(tmp_path, "07_results"))
    assert str(problem.value) == ("07_results needs the record of 06_retrieval in study tiny; run 06_retrieval first.")


def test_scores_are_kept_anew_when_a_ranking_is_another(study, tmp_path):
    _, splits, galleries, made = study
    (cirr,), keys = splits["cirr/val"], []
    for method in ("Image-only", "Text-only", "Image-only"):
        of_06 = study_of(tmp_path, "06_retrieval")
        composed = composers_of(made["cirr/val"], [method])
        scores.keep_scores(of_06, [(cirr, rankings.rank_all(of_06, cirr, galleries["cirr/val"], composed))])
        keys.append(of_06.made["scores"])
    assert keys[0] == keys[2] != keys[1]


def test_a_query_vector_that_is_not_finite_is_named(study):
    store, splits, galleries, made = study
    (circo,), sources = splits["circo/val"], made["circo/val"]
    tokens = Embeddings(
        "x", sources.pseudo_words.ids, torch.full_like(sources.pseudo_words.vectors, float("nan")), "nan"
    )
    composer = composers.SearleOti(Sources(sources.backbone, sources.embeddings, tokens))
    with pytest.raises(ValueError, match="SEARLE-OTI gives query 0 of circo/val a vector that is not finite"):
        rankings.rank(store, circo, galleries["circo/unlabeled"], "SEARLE-OTI", composer)


def test_an_image_that_was_never_encoded_is_named(study):
    with pytest.raises(LookupError, match="image elsewhere is not among the 24 images of cirr/val"):
        study[2]["cirr/val"].select(["elsewhere"])


def test_embeddings_are_encoded_once_and_kept(world, tiny, tmp_path, monkeypatch):
    table = annotations.imagenet(world)
    first = embeddings.encode(Store(tmp_path), tiny, "imagenet/test", table, Reader(5))
    monkeypatch.setattr(embeddings, "encode_images", forbidden(embeddings.encode_images))
    again = embeddings.encode(Store(tmp_path), tiny, "imagenet/test", table, Reader(7))
    assert torch.equal(first.vectors, again.vectors) and first.key == again.key


@pytest.mark.parametrize("change", ["preprocess", "precision", "pictures", "order"])
def test_other_pictures_or_another_reading_make_other_embeddings(world, tiny, tmp_path, change):
    table, store = annotations.imagenet(world).head(3), Store(tmp_path)
    before = embeddings.encode(store, tiny, "imagenet/test", table)
    value = {"precision": "bfloat16", "preprocess": "clip"}.get(change)
    clip = dataclasses.replace(tiny, **{change: value}) if value else tiny
    chosen = {"pictures": table.head(2), "order": table[::-1]}.get(change, table)
    after = embeddings.encode(store, clip, "imagenet/test", chosen)
    assert before.key != after.key


def test_a_later_notebook_reads_the_embeddings_that_02_kept(world, tiny, tmp_path):
    second = study_of(tmp_path, "02_concepts")
    made = embeddings.encode(second, tiny, "imagenet/test", annotations.imagenet(world).head(3))
    leave_record(second)
    found = embeddings.read(study_of(tmp_path, "03_oti"), "imagenet/test")
    assert torch.equal(found.vectors, made.vectors)
    assert (found.name, found.ids, found.key, found.clip) == ("imagenet/test", made.ids, made.key, tiny.sha256)


def test_damaged_embeddings_are_named_by_their_folder(world, tiny, tmp_path):
    arguments = (tiny, "imagenet/test", annotations.imagenet(world).head(3))
    embeddings.encode(Store(tmp_path, "02_concepts"), *arguments)
    (file,) = tmp_path.rglob("embeddings.safetensors")
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(
        DamagedArtefact, match=rf"artefact {file.parent} is damaged \(.*\); delete that folder and run 02_con"
    ):
        embeddings.encode(Store(tmp_path), *arguments)


def test_a_truncated_picture_stops_the_encoding_with_its_name_and_leaves_nothing(world, tiny, tmp_path):
    table = annotations.imagenet(world).head(4).copy()
    broken = tmp_path / "broken.JPEG"
    broken.write_bytes(Path(table["path"][2]).read_bytes()[:700])
    table.loc[2, "path"] = str(broken)
    with pytest.raises(ValueError, match=r"broken.JPEG cannot be decoded \(700 bytes"):
        embeddings.encode(Store(tmp_path / "store"), tiny, "imagenet/test", table)
    assert not list((tmp_path / "store" / "embeddings").rglob("test-*"))


def test_an_image_that_was_replaced_by_another_of_the_same_size_is_encoded_again(tiny, tmp_path):
    path = tmp_path / "a.bmp"
    table = pd.DataFrame({"image": ["a"], "path": [str(path)]})
    for colour, folder in (("red", "store"), ("blue", "store"), ("blue", "fresh")):
        Image.new("RGB", (64, 64), colour).save(path)
        os.utime(path, ns=(0, 0))  # an archive may give every file the same time
        found = embeddings.encode(Store(tmp_path / folder), tiny, "bitmaps", table).vectors
    assert path.stat().st_size == 12342
    again = embeddings.encode(Store(tmp_path / "store"), tiny, "bitmaps", table).vectors
    assert torch.equal(again, found)
    copy = shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("store", "fresh", "copy"))
    moved = table.assign(path=str(copy / "a.bmp"))
    assert embeddings.encode(Store(tmp_path / "store"), tiny, "bitmaps", moved).key == (
        embeddings.encode(Store(tmp_path / "store"), tiny, "bitmaps", table).key
    )


def test_images_fingerprint_changes_with_ids_order_and_contents(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"1234")
    prints = {
        images_fingerprint(["a", "b"], paths),
        images_fingerprint(["b", "a"], paths[::-1]),
        images_fingerprint(["a", "c"], paths),
    }
    paths[1].write_bytes(b"1235")
    prints.add(images_fingerprint(["a", "b"], paths))
    assert len(prints) == 4


def test_images_fingerprint_names_the_image_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image b is listed but .*/b does not exist; download it"):
        images_fingerprint(["b"], [tmp_path / "b"])


def test_an_ablation_of_words_has_rankings_of_its_own(study):
    _, _, _, made = study
    sources = made["cirr/val"]
    keys = set()
    for parts in ("both", "subject", "attributes"):
        words = dataclasses.replace(sources.image_words, parts=parts)
        keys.add(composers.Fti4CirQueries(dataclasses.replace(sources, image_words=words)).key)
    assert len(keys) == 3


NOT_MADE = "this needs the record of {0} in study tiny; run {0} first."
CHANGED = "{} was made with preprocess targetpad, but 02_concepts now has clip; run {} again."


@pytest.fixture(scope="module")
def finished(world, tiny, tmp_path_factory):
    """The folder of a study of CIRR and CIRCO in which 02 to 05 have run; φ and the tokens are random and brought."""
    folder = tmp_path_factory.mktemp("finished")
    splits = benchmarks.load_all(["cirr", "circo"], world, ["validation"])
    torch.manual_seed(0)
    concepts = describe_02(folder, world, tiny, splits)
    third, fourth, fifth = (study_of(folder, name) for name in ("03_oti", "04_phi", "05_fti4cir"))
    fifth.parameters |= {"fti_words": "both", "fti_checkpoint": "cirr"}
    searle_files.write_phi(folder / "phi.pt", 20, Phi(tiny.dimension, tiny.width).state_dict())
    searle_files.write_phi(folder / "lincir.pt", 20, Phi(tiny.dimension, tiny.width).state_dict())
    test_pic2word_file.write(folder / "pic2word.pt", test_pic2word_file.weights_of(2, tiny.dimension, tiny.width))
    phi.import_phi(fourth, tiny, str(folder / "phi.pt"))
    untrained = random_network(tiny)
    for name, loaded in splits.items():
        images = embeddings.read(third, f"{name}/references")
        words = torch.randn(len(images.ids), tiny.width)
        searle_files.write_tokens(folder / "tokens" / name, images.ids, words, words, {})
        oti.import_words(third, tiny, images, folder / "tokens" / name)
        table = benchmarks.reference_table(loaded)
        patches.keep_words(fifth, tiny, TrainedNetwork(untrained, "random", 0), name, table, Reader(8, 1))
    for later in (fourth, fifth):
        later.read("02_concepts")
    for later in (third, fourth, fifth):
        leave_record(later)
    assert set(concepts.made) >= {"clip", "benchmarks/cirr/val", "embeddings/circo/val/references"}
    return folder


def random_network(tiny):
    return network.build_network(tiny, Fti4Cir(tiny.dimension, tiny.patch_width).state_dict())


def describe_02(folder, world, tiny, splits, preprocess="targetpad"):
    """What 02_concepts leaves, without concepts."""
    concepts = study_of(
        folder, "02_concepts", world="real", preprocess=preprocess, precision="float32", missing_images="error"
    )
    keep_clip(concepts, tiny)
    benchmarks.keep(concepts, every(splits), world)
    tiny = dataclasses.replace(tiny, preprocess=preprocess)
    galleries = embeddings.encode_lists(concepts, tiny, benchmarks.galleries_of(every(splits)))
    for loaded in splits.values():
        embeddings.keep_references(concepts, tiny, loaded, galleries)
    leave_record(concepts, data_root=str(world), image_batch_size=8, workers=1)
    return concepts


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder, to change."""
    return shutil.copytree(finished, tmp_path / "study")


def load(folder, tiny, methods=tuple(METHODS)):
    sixth = study_of(folder, "06_retrieval")
    sixth.values = {"pic2word_checkpoint": "pic2word.pt", "lincir_checkpoint": "lincir.pt"}
    return composers.load_composers(sixth, tiny, list(methods))


def record(folder, notebook):
    return folder / "reports" / "tiny" / "records" / f"{notebook}.json"


def test_every_method_is_composed_from_what_its_notebook_kept(finished, tiny):
    made, skip_reasons = load(finished, tiny)
    assert skip_reasons == {} and list(made) == ["cirr/val", "circo/val"]
    assert list(made["circo/val"]) == list(METHODS)
    distilled = phi.read(study_of(finished, "06_retrieval"), tiny)
    for split, of_split in made.items():
        tokens = oti.read(study_of(finished, "06_retrieval"), f"{split}/references").tokens
        assert of_split["SEARLE-OTI"].key == f"searle-oti {tokens.key}"
        assert torch.equal(of_split["SEARLE-OTI"].pseudo_words.vectors, tokens.vectors)
        assert of_split["SEARLE"].key == f"searle {distilled.key}"
        assert len({of_split[name].key for name in ("SEARLE", "Pic2Word", "LinCIR")}) == 3
        assert of_split["Image-only"].embeddings.name == f"{split}/references"


def test_fti4cir_is_not_evaluated_on_the_split_that_its_epoch_was_chosen_on(finished, tiny):
    made, _ = load(finished, tiny)
    assert "FTI4CIR" not in made["cirr/val"] and "FTI4CIR" in made["circo/val"]


@pytest.mark.parametrize(
    ("checkpoint", "split", "fair"),
    [
        ("cirr", "cirr/val", False),
        ("cirr", "circo/val", True),
        ("cirr", "cirr/test1", True),
        ("circo", "circo/val", False),
        ("last", "cirr/val", True),
        ("30", "circo/val", True),
        ("", "cirr/val", True),
    ],
)
def test_only_fti4cir_on_the_split_of_its_choice_is_not_reportable(checkpoint, split, fair):
    methods = {name: METHODS[name] for name in ("SEARLE", "FTI4CIR", "FTI4CIR PDV")}
    assert list(composers.reportable(methods, split, checkpoint)) == (list(methods) if fair else ["SEARLE"])


@pytest.mark.parametrize(("file", "fault"), [("", "is empty"), ("absent.pt", "absent.pt is not a file")])
def test_a_network_without_its_file_is_refused_by_the_name_of_its_parameter(finished, tiny, file, fault):
    sixth = study_of(finished, "06_retrieval")
    sixth.values = {"lincir_checkpoint": file}
    with pytest.raises(ValueError, match=f"methods holds LinCIR, but lincir_checkpoint {fault}; set it to the file"):
        composers.load_composers(sixth, tiny, ["LinCIR"])


def who_need(notebook):
    return [name for name, method in METHODS.items() if notebook in method.needs]


@pytest.mark.parametrize("notebook", ["03_oti", "04_phi", "05_fti4cir"])
def test_a_notebook_that_has_not_run_leaves_out_just_its_methods(copied, tiny, notebook):
    record(copied, notebook).unlink()
    made, skip_reasons = load(copied, tiny)
    assert skip_reasons == dict.fromkeys(who_need(notebook), NOT_MADE.format(notebook)) != {}
    assert list(made["circo/val"]) == [name for name in METHODS if name not in skip_reasons]


def test_a_damaged_record_leaves_out_just_its_method(copied, tiny):
    file = record(copied, "03_oti")
    file.write_text(file.read_text()[:40])
    made, skip_reasons = load(copied, tiny)
    assert skip_reasons == dict.fromkeys(
        who_need("03_oti"), f"record {file} is damaged; delete it and run 03_oti again."
    )
    assert "SEARLE" in made["cirr/val"]


def test_an_artefact_that_is_gone_leaves_out_just_its_method(copied, tiny):
    (gone,) = (copied / "artefacts" / "oti" / "circo" / "val").glob("references-*")
    shutil.rmtree(gone)
    made, skip_reasons = load(copied, tiny)
    assert skip_reasons == dict.fromkeys(who_need("03_oti"), f"03_oti's artefact {gone} is gone; run 03_oti again.")
    assert "SEARLE" in made["circo/val"]


def test_a_change_below_leaves_out_all_methods_that_were_made_before_it(copied, world, tiny):
    splits = benchmarks.load_all(["cirr", "circo"], world, ["validation"])
    describe_02(copied, world, tiny, splits, preprocess="clip")
    made, skip_reasons = load(copied, tiny)
    assert skip_reasons == {
        name: CHANGED.format(*method.needs, *method.needs) for name, method in METHODS.items() if method.needs
    }
    assert list(made["circo/val"]) == [name for name, method in METHODS.items() if not method.needs]


def test_methods_that_are_not_asked_for_need_nothing_and_are_not_left_out(copied, tiny):
    for notebook in ("03_oti", "05_fti4cir"):
        record(copied, notebook).unlink()
    made, skip_reasons = load(copied, tiny, ["Text-only", "SEARLE"])
    assert skip_reasons == {} and list(made["cirr/val"]) == ["Text-only", "SEARLE"]


def test_the_record_of_06_names_the_notebooks_whose_methods_it_evaluates(finished, tiny):
    of_06 = study_of(finished, "06_retrieval")
    composers.load_composers(of_06, tiny, ["Text-only", "SEARLE"])
    assert set(of_06.digests) == {"02_concepts", "04_phi"}


def test_what_a_study_was_made_with_is_read_from_its_records(finished, tiny):
    facts = scores.provenance(study_of(finished, "07_results"))
    assert (facts["world"], facts["backbone"], facts["clip_sha256"]) == ("real", "tiny-clip", tiny.sha256)
    evaluated_on = "24 of 24 queries over 24 of 24 images"
    assert facts["sizes"]["cirr/val"] == {"size": (24, 24), "full_size": (24, 24), "evaluated_on": evaluated_on}


@pytest.fixture
def training(copied, tiny):
    """A training of φ with losses of three epochs, of which the second and the third are kept."""

    def make(folder):
        checkpoints.write_log(pd.DataFrame({"epoch": [1, 2, 3], "distil": [3.0, 2.0, 1.0]}), folder / checkpoints.LOG)
        for epoch in (2, 3):
            save_file(phi_at(epoch, tiny).state_dict(), checkpoints.weights_file(folder, "phi", epoch))

    return study_of(copied, "04_phi").keep("phi-training", {}, make)


def phi_at(epoch, tiny):
    torch.manual_seed(epoch)
    return Phi(tiny.dimension, tiny.width).eval().requires_grad_(False)


def test_the_log_has_the_metrics_of_cirr_at_the_kept_epochs_in_percent(copied, tiny, training):
    of_04 = study_of(copied, "04_phi")
    log = validation.phi_log(of_04, tiny, training)
    assert log["epoch"].tolist() == [1, 2, 3] and log["distil"].tolist() == [3, 2, 1]
    (cirr,) = [benchmark for benchmark in benchmarks.read(of_04) if benchmark.name == "cirr/val"]
    gallery = embeddings.read(of_04, "cirr/val")
    for row, epoch in ((1, 2), (2, 3)):
        composer = composers.Searle(Sources(tiny, gallery, trained_phi=TrainedNetwork(phi_at(epoch, tiny), "", epoch)))
        queries = composer.compose(list(cirr.queries["reference"]), list(cirr.queries["sentences"]))
        found = pd.Series(naive_scores(cirr, gallery, queries)).groupby(level=1).mean() * 100
        for name, _ in cirr.protocol.metrics:
            assert log[name][row] == pytest.approx(found[name])
    assert log["R@1"].isna().tolist() == [True, False, False] and log["R@50"][2] == 100


def test_the_log_of_a_study_without_cirr_has_losses_alone(copied, world, tiny, training):
    describe_02(copied, world, tiny, benchmarks.load_all(["circo"], world, ["validation"]))
    log = validation.phi_log(study_of(copied, "04_phi"), tiny, training)
    assert list(log) == ["epoch", "distil"] and len(log) == 3


def test_a_phi_that_was_brought_has_no_log(finished, tiny):
    assert validation.phi_log(study_of(finished, "04_phi"), tiny, None).empty


def test_a_checkpoint_that_is_damaged_is_named_with_the_training_when_it_is_validated(copied, tiny, training):
    checkpoints.weights_file(training.folder, "phi", 2).write_bytes(b"no tensors")
    sentence = rf"artefact {re.escape(str(training.folder))} is damaged \(.*\); delete that folder and run 04_phi again"
    with pytest.raises(DamagedArtefact, match=sentence):
        validation.phi_log(study_of(copied, "04_phi"), tiny, training)


def test_a_validation_is_an_artefact_of_its_own_and_made_once(copied, tiny, training):
    folders = set()
    for _ in range(2):
        of_04 = study_of(copied, "04_phi")
        validation.phi_log(of_04, tiny, training)
        folders.add(of_04.made["phi-validation"])
    assert len(folders) == 1


def test_another_gallery_makes_another_validation_and_the_same_training(copied, world, tiny, training):
    of_04 = study_of(copied, "04_phi")
    validation.phi_log(of_04, tiny, training)
    describe_02(copied, world, tiny, benchmarks.load_all(["cirr"], world, ["validation"]), preprocess="clip")
    again = study_of(copied, "04_phi")
    validation.phi_log(again, tiny, training)
    assert of_04.made["phi-validation"] != again.made["phi-validation"]


def test_the_log_of_fti4cir_has_the_metrics_of_cirr_and_circo_at_the_kept_epochs(copied, world, tiny):
    model = random_network(tiny)

    def make(folder):
        checkpoints.write_log(pd.DataFrame({"epoch": [1, 2], "whole": [3.0, 2.0]}), folder / checkpoints.LOG)
        save_file(model.state_dict(), checkpoints.weights_file(folder, "fti", 2))

    of_05 = study_of(copied, "05_fti4cir")
    log = validation.fti_log(of_05, tiny, of_05.keep("fti4cir-training", {}, make), "both")
    assert log["CIRR R@50"].tolist()[1] == 100 and log["CIRR R@5"].isna().tolist() == [True, False]
    (circo,), gallery = benchmarks.load("circo", world, "val"), embeddings.read(of_05, "circo/unlabeled")
    words = patches.predict_words(tiny, model, benchmarks.reference_table([circo]), Reader(8, 1))
    composer = composers.Fti4CirQueries(Sources(tiny, gallery, image_words=words))
    queries = composer.compose(list(circo.queries["reference"]), list(circo.queries["sentences"]))
    found = pd.Series(naive_scores(circo, gallery, queries)).groupby(level=1).mean() * 100
    assert log["CIRCO mAP@10"][1] == pytest.approx(found["mAP@10"])


def test_rankings_are_made_anew_for_another_composer_and_for_nothing_else(study, tmp_path):
    _, splits, galleries, made = study
    (cirr,), sources = splits["cirr/val"], made["cirr/val"]

    def folder_of(tokens):
        of_06 = study_of(tmp_path, "06_retrieval")
        composer = composers.SearleOti(dataclasses.replace(sources, pseudo_words=tokens))
        rankings.rank(of_06, cirr, galleries["cirr/val"], "SEARLE-OTI", composer)
        return of_06.made["rankings/cirr/val/SEARLE-OTI"]

    other = dataclasses.replace(sources.pseudo_words, key="other")
    folders = [folder_of(tokens) for tokens in (sources.pseudo_words, other, sources.pseudo_words)]
    assert folders[0] == folders[2] != folders[1]


def test_the_names_of_a_reference_are_those_nearest_to_each_methods_pseudo_word(copied, tiny, monkeypatch):
    monkeypatch.setattr(nearest_names, "FREQUENT_WORDS", 30)
    by_split, _ = load(copied, tiny)
    sixth = study_of(copied, "06_retrieval")
    query_words.keep_names(sixth, tiny, by_split)
    leave_record(sixth)
    table = query_words.read_names(study_of(copied, "07_results"))
    assert set(table["method"]) == {name for name, method in METHODS.items() if method.needs or method.checkpoint}
    assert set(table["dataset"]) == {"CIRR", "CIRCO"}
    names = list(nearest_names.comparison_names(sixth))
    sentences = F.normalize(encode_texts(tiny, [f"a photo of {name}" for name in names]), dim=-1)
    for row in table.groupby(["dataset", "method"]).head(2).itertuples():
        word = by_split[f"{row.dataset.lower()}/val"][row.method].subject_words([row.reference])
        cosines = sentences @ F.normalize(encode_texts(tiny, ["a photo of $"], words=word), dim=-1)[0]
        nearest = cosines[[names.index(name) for name in row.names]]  # this CLIP reads some names as the same token
        assert_close(nearest, cosines.topk(3).values, atol=1e-5, rtol=0)


def test_other_pseudo_words_have_names_of_their_own(copied, tiny, monkeypatch):
    monkeypatch.setattr(nearest_names, "FREQUENT_WORDS", 30)
    sixth, keys = study_of(copied, "06_retrieval"), []
    for methods in (["SEARLE"], ["SEARLE-OTI"], ["Image-only"], ["SEARLE"]):
        query_words.keep_names(sixth, tiny, load(copied, tiny, methods)[0])
        keys.append(sixth.made["nearest-names"])
    assert keys[0] == keys[3] and len(set(keys)) == 3


def test_an_embedding_that_is_not_finite_stops_with_the_name_of_its_image(tiny, world, tmp_path, monkeypatch):
    table, encode_images = annotations.imagenet(world).head(5), embeddings.encode_images

    @functools.wraps(encode_images)  # so that its code is that of `encode_images`
    def with_a_gap(backbone, pixels):
        vectors = encode_images(backbone, pixels)
        vectors[1, 2] = float("nan")
        return vectors

    monkeypatch.setattr(embeddings, "encode_images", with_a_gap)
    sentence = f"the embedding of image {table['image'][1]} of imagenet/test by tiny-clip is not finite; set precision"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        embeddings.encode(Store(tmp_path), tiny, "imagenet/test", table)
