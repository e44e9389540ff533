"""Fusions of image and caption, and PDV, held to loops over queries and images; their settings chosen on other data."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import leave_record, study_of
from torch.testing import assert_close

from searle_lib import ranking
from searle_lib.backbone import embeddings
from searle_lib.backbone.embeddings import Embeddings
from searle_lib.backbone.model import keep_clip
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import benchmarks
from searle_lib.evaluation import baselines, composers, rankings, scores, tuning
from searle_lib.evaluation.contract import Sources
from searle_lib.evaluation.indexes import FaissIndex
from searle_lib.fti4cir import prompts
from searle_lib.fti4cir.network import Words
from searle_lib.fti4cir.patches import ImageWords
from searle_lib.searle.phi import Phi
from searle_lib.servers import submissions
from searle_lib.training import TrainedNetwork

SPLITS = ("cirr/val", "cirr/test1", "circo/test")
METHOD = {"SearlePdv": "Searle", "SearleOtiPdv": "SearleOti", "Fti4CirPdv": "Fti4CirQueries"}


@pytest.fixture(scope="module")
def study(world, tiny, tmp_path_factory):
    """A study whose 02_concepts has run, and what composers are made from, by split."""
    second = study_of(
        tmp_path_factory.mktemp("baselines"),
        "02_concepts",
        world="real",
        preprocess="targetpad",
        precision="float32",
        missing_images="error",
    )
    splits = benchmarks.load_all(["fashioniq", "cirr", "circo"], world)
    every = [benchmark for loaded in splits.values() for benchmark in loaded]
    keep_clip(second, tiny)
    benchmarks.keep(second, every, world)
    galleries = embeddings.encode_lists(second, tiny, benchmarks.galleries_of(every))
    torch.manual_seed(0)
    trained_phi = TrainedNetwork(Phi(tiny.dimension, tiny.width).eval().requires_grad_(False), "untrained", 0)
    sources = {}
    for name, loaded in splits.items():
        images = embeddings.keep_references(second, tiny, loaded, galleries)
        n = len(images.ids)
        words = Words(
            torch.randn(n, tiny.width),
            torch.randn(n, 12, tiny.width),
            torch.arange(n) % 12 + 1,
            torch.zeros(n, 12, 1),
            torch.zeros(n, 12, dtype=torch.int64),
            torch.zeros(n, 24),
        )
        tokens = Embeddings(name, images.ids, torch.randn(n, tiny.width), "random")
        sources[name] = Sources(tiny, images, tokens, trained_phi, ImageWords(images.ids, words, "random"))
    leave_record(second, data_root=str(world), image_batch_size=8, workers=1)
    return SimpleNamespace(folder=second.root, splits=splits, galleries=galleries, sources=sources)


def queries_of(benchmark):
    return list(benchmark.queries["reference"]), list(benchmark.queries["sentences"])


def image_and_text(study, split):
    """The unit embeddings of each query's reference and caption."""
    ((references, sentences),) = [queries_of(benchmark) for benchmark in study.splits[split]]
    sources = study.sources[split]
    parts = composers.ImageOnly(sources), composers.TextOnly(sources)
    return [part.compose(references, sentences) for part in parts]


def naive_order(score, benchmark, row):
    """Image ids by falling score, equal scores in gallery order, without the reference where it takes no rank."""
    images = list(benchmark.gallery["image"])
    order = sorted(range(len(images)), key=lambda place: (-score(place), place))
    excluded = benchmark.queries["reference"][row] if benchmark.protocol.excludes_reference else None
    return [images[place] for place in order if images[place] != excluded]


def naive_scores(study, split, kind, weight):
    """For each query a function from a gallery row to the score, in double precision."""
    (benchmark,) = study.splits[split]
    unit = study.galleries[benchmark.gallery_name].unit.double()
    for image, text in zip(*image_and_text(study, split), strict=True):
        a, b = image.double(), text.double()

        def score(place, a=a, b=b):
            of_image, of_text = float(a @ unit[place]), float(b @ unit[place])
            if kind == "sum":
                return (1 - weight) * of_image + weight * of_text
            return ((1 + of_image) / 2) ** (1 - weight) * ((1 + of_text) / 2) ** weight

        yield score


@pytest.mark.parametrize("rows", [ranking.ROWS, 7])
@pytest.mark.parametrize(("kind", "weight"), [("sum", 0.3), ("product", 0.3), ("product", 0.8)])
@pytest.mark.parametrize("split", SPLITS)
def test_a_fusion_ranks_and_submits_as_a_full_sort_of_its_scores(
    study, tmp_path, monkeypatch, split, kind, weight, rows
):
    monkeypatch.setattr(ranking, "ROWS", rows)  # a gallery of several blocks
    (benchmark,) = study.splits[split]
    composer = {"sum": baselines.Sum, "product": baselines.Product}[kind](study.sources[split], (weight,))
    gallery = study.galleries[benchmark.gallery_name]
    table = rankings.ranking_table(benchmark, rankings.rank_queries(benchmark, gallery, kind, composer), kind)
    expected = [naive_order(s, benchmark, row) for row, s in enumerate(naive_scores(study, split, kind, weight))]
    assert [list(best) for best in table["best"]] == [order[:50] for order in expected]
    for order, rank, truths in zip(expected, table["rank"], benchmark.queries["ground_truths"], strict=True):
        assert rank == min(map(order.index, truths), default=-1)
    if benchmark.split != benchmark.protocol.submission:
        return
    best, *subset = submissions.write(tmp_path, table, benchmark.dataset, benchmark.split, kind)
    of_query = json.loads(best.read_text())
    for query, group, order in zip(benchmark.queries["query"], benchmark.queries["group"], expected, strict=True):
        assert list(map(str, of_query[query])) == order[:50]
        for file in subset:
            assert json.loads(file.read_text())[query] == [image for image in order if image in group][:3]


def test_the_scores_of_a_product_are_the_products(study):
    (benchmark,) = study.splits["cirr/val"]
    composer = baselines.Product(study.sources["cirr/val"], (0.3,))
    ranked = rankings.rank_queries(benchmark, study.galleries[benchmark.gallery_name], "Product", composer)
    for row, score in enumerate(naive_scores(study, "cirr/val", "product", 0.3)):
        expected = [score(place) for place in ranked.top[row].tolist()]
        assert ranked.scores[row].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_slerp_is_the_point_on_the_arc(study, weight):
    composed = baselines.Slerp(study.sources["circo/val"], (weight,)).compose(*queries_of(study.splits["circo/val"][0]))
    for image, text, query in zip(*image_and_text(study, "circo/val"), composed, strict=True):
        angle = math.acos(sum(a * b for a, b in zip(image.tolist(), text.tolist(), strict=True)))
        shares = math.sin((1 - weight) * angle) / math.sin(angle), math.sin(weight * angle) / math.sin(angle)
        expected = [shares[0] * a + shares[1] * b for a, b in zip(image.tolist(), text.tolist(), strict=True)]
        assert_close(query, torch.tensor(expected), atol=1e-5, rtol=0)


def test_slerp_of_an_image_and_a_caption_that_agree_is_the_image():
    image = F.normalize(torch.randn(3, 8), dim=-1)
    assert_close(baselines.Slerp.fuse(None, (image, image), (0.5,)), image)


@pytest.mark.parametrize("name", METHOD)
def test_pdv_without_a_change_is_the_method_itself(study, name):
    for split, loaded in study.splits.items():
        for benchmark in loaded:
            pdv = getattr(baselines, name)(study.sources[split], (0.0, 1.0, 1.0))
            method = getattr(composers, METHOD[name])(study.sources[split])
            assert pdv.key.endswith(method.key)
            queries = pdv.compose(*queries_of(benchmark))
            assert_close(queries, method.compose(*queries_of(benchmark)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", METHOD)
def test_pdv_adds_the_difference_that_a_caption_makes(study, tiny, name):
    sources, (benchmark,) = study.sources["circo/val"], study.splits["circo/val"]
    references, sentences = queries_of(benchmark)
    of_image, of_text, balance = setting = (0.5, 1.5, 0.6)
    composed = getattr(baselines, name)(sources, setting).compose(references, sentences)
    method = getattr(composers, METHOD[name])(sources)
    for row, reference in enumerate(references):
        query = method.compose([reference], [sentences[row]])[0]
        if name == "Fti4CirPdv":
            text = prompts.whole_sentence(tiny, sources.image_words.select([reference]))[0]
        else:
            text = encode_texts(tiny, ["a photo of $"], words=method.subject_words([reference]))[0]
        text, image = F.normalize(text, dim=0), F.normalize(sources.embeddings.select([reference])[0], dim=0)
        d = query - text
        expected = (1 - balance) * (image + of_image * d) + balance * (text + of_text * d)
        assert_close(composed[row], F.normalize(expected, dim=0), atol=1e-5, rtol=0)


def test_a_setting_is_the_best_one_on_another_data_set(study):
    sixth = study_of(study.folder, "06_retrieval")
    by_split, _ = composers.load_composers(sixth, study.sources["cirr/val"].backbone, ["Tuned slerp"])
    settings = {split: of_split["Tuned slerp"].setting for split, of_split in by_split.items()}
    for split, other, metric in (("cirr/val", "fashioniq/val", "R@10"), ("fashioniq/val", "cirr/val", "R@1")):
        means = []
        for setting in baselines.WEIGHTS:
            composer, values = baselines.Slerp(study.sources[other], setting), []
            for benchmark in study.splits[other]:
                ranked = rankings.rank_queries(benchmark, study.galleries[benchmark.gallery_name], "", composer)
                values.append(float(scores.metric(metric, ranked).mean()))
            means.append(sum(values) / len(values))
        assert tuple(settings[split]) == baselines.WEIGHTS[means.index(max(means))]
        assert other == "fashioniq/val" or len(set(means)) > 1  # the few garments are always among the first ten
        assert f"{settings[split]}" in by_split[split]["Tuned slerp"].key
    assert settings["circo/val"] == settings["circo/test"] == settings["cirr/test1"] == settings["cirr/val"]
    assert set(sixth.made) == {"settings/fashioniq/val/Tuned slerp", "settings/cirr/val/Tuned slerp"}


def test_a_method_of_the_six_keeps_no_setting(study):
    sixth = study_of(study.folder, "06_retrieval")
    composers.load_composers(sixth, study.sources["cirr/val"].backbone, ["Image-only", "Text-only", "Image+Text"])
    assert sixth.made == {}


def test_without_another_data_set_the_first_setting_holds(study):
    sixth = study_of(study.folder, "06_retrieval")
    composer = baselines.Product(study.sources["cirr/val"])
    assert tuning.choose(sixth, "Tuned product", composer, "fashioniq/val", []) == [0.5]


def test_an_index_refuses_a_product(study):
    (benchmark,) = study.splits["cirr/val"]
    gallery = study.galleries[benchmark.gallery_name]
    with pytest.raises(ValueError) as problem:
        composer = baselines.Product(study.sources["cirr/val"])
        rankings.rank_queries(benchmark, gallery, "Tuned product", composer, FaissIndex(gallery, None))
    assert str(problem.value) == (
        "Tuned product ranks by a product of similarities, which index faiss cannot; set index: exact."
    )
