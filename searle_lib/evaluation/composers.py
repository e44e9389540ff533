"""Composers turn a reference image and its relative caption into a query vector: one small class per method.

`compose(references, sentences)` takes image ids and relative captions, and returns unit vectors [N, d]. Retrieval,
metrics and submissions know nothing else about a method. A composer with pseudo-words shows them by `subject_words`.
`contract` says what a composer takes and returns. A new method is a class and a line in `methods`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from searle_lib.backbone import embeddings
from searle_lib.backbone.model import Backbone
from searle_lib.backbone.texts import encode_texts
from searle_lib.data import benchmarks
from searle_lib.data.benchmarks import group_by_split
from searle_lib.evaluation import methods, own_methods, tuning
from searle_lib.evaluation.contract import Composer, Sources
from searle_lib.evaluation.methods import Method
from searle_lib.fti4cir import patches, prompts
from searle_lib.fti4cir.network import Words
from searle_lib.searle import other_networks, oti, phi
from searle_lib.searle.other_networks import Img2Text
from searle_lib.searle.phi import Phi
from searle_lib.store.records import Study
from searle_lib.training import TrainedNetwork

PROMPT = "a photo of $ that {}"
BATCH = 256  # texts that FTI4CIR encodes at once


class ImageOnly:
    """The embedding of the reference alone; a baseline that ignores the caption."""

    def __init__(self, sources: Sources):
        self.embeddings, self.key = sources.embeddings, "image-only"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return F.normalize(self.embeddings.select(references), dim=-1)


class TextOnly:
    """The embedding of the relative caption alone; a baseline that ignores the reference."""

    def __init__(self, sources: Sources):
        self.backbone, self.key = sources.backbone, "text-only"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return _encode_queries(self.backbone, sentences)


class ImageAndText:
    """The sum of the reference's and the caption's unit embeddings."""

    def __init__(self, sources: Sources):
        self.parts, self.key = (ImageOnly(sources), TextOnly(sources)), "image+text"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return F.normalize(sum(part.compose(references, sentences) for part in self.parts), dim=-1)


class Searle:
    """A sentence about the pseudo-word that φ predicts for the reference (SEARLE, section 3.3)."""

    def __init__(self, sources: Sources):
        self.backbone, self.embeddings = sources.backbone, sources.embeddings
        self.phi: Phi = sources.trained_phi.module  # named, so that rankings depend on the code of its layers
        self.key = f"searle {sources.trained_phi.key}"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return _encode_queries(self.backbone, sentences, self.subject_words(references))

    @torch.no_grad()
    def subject_words(self, references: Sequence[str]) -> Tensor:
        """Return the pseudo-word of each reference: [N, d_tok]."""
        return self.phi(self.embeddings.select(references).to(self.backbone.device)).cpu()


class Pic2Word(Searle):
    """SEARLE's sentence about the pseudo-word that Pic2Word's network predicts (arXiv 2302.03084)."""

    def __init__(self, sources: Sources):
        super().__init__(replace(sources, trained_phi=sources.networks["Pic2Word"]))
        self.phi: Img2Text  # named, so that rankings depend on the code of its layers


class LinCir(Searle):
    """SEARLE's sentence about the pseudo-word that LinCIR's φ predicts (arXiv 2312.01998)."""

    def __init__(self, sources: Sources):
        super().__init__(replace(sources, trained_phi=sources.networks["LinCIR"]))


class SearleOti:
    """A sentence about the pseudo-word that OTI optimised for the reference itself (SEARLE, section 3.1)."""

    def __init__(self, sources: Sources):
        self.backbone, self.pseudo_words = sources.backbone, sources.pseudo_words
        self.key = f"searle-oti {sources.pseudo_words.key}"

    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        return _encode_queries(self.backbone, sentences, self.subject_words(references))

    def subject_words(self, references: Sequence[str]) -> Tensor:
        """Return the pseudo-word of each reference: [N, d_tok]."""
        return self.pseudo_words.select(references)


class Fti4CirQueries:
    """A sentence about the subject and attribute words of the reference (FTI4CIR, section 3)."""

    def __init__(self, sources: Sources):
        self.backbone, self.image_words = sources.backbone, sources.image_words
        self.key = f"fti4cir {sources.image_words.key} {sources.image_words.parts}"

    @torch.no_grad()
    def compose(self, references: Sequence[str], sentences: Sequence[Sequence[str]]) -> Tensor:
        texts, query_of = _flatten(sentences)
        words = self.image_words.select([references[query] for query in query_of.tolist()])
        features, parts = [], self.image_words.parts
        for rows in torch.arange(len(texts)).split(BATCH):
            batch = Words(*(value[rows].to(self.backbone.device) for value in vars(words).values()))
            features.append(prompts.query(self.backbone, batch, [texts[row] for row in rows.tolist()], parts).cpu())
        return _mean_by_query(torch.cat(features), query_of, len(sentences))

    def subject_words(self, references: Sequence[str]) -> Tensor:
        """Return the subject word of each reference: [N, d_tok]."""
        return self.image_words.select(references).subject


def load_composers(
    study: Study, backbone: Backbone, names: Sequence[str]
) -> tuple[dict[str, dict[str, Composer]], dict[str, str]]:
    """Return the composers of a study by split and method, and a reason for each method that is skipped.

    A method is skipped if a notebook that it needs has no current record. What needs FTI4CIR's network is not evaluated
    on the split that its epoch was chosen on. A method with a setting gets the one that `tuning.choose` chooses.

    Args:
        study: the study.
        backbone: its CLIP.
        names: the parameter `methods`.

    Raises:
        FileNotFoundError, ValueError: if a method of one's own, or the file of a network, cannot be used.
    """
    chosen = methods.by_name(names, study.root)
    problems = {name: next(filter(None, map(study.problem, method.needs)), "") for name, method in chosen.items()}
    skip_reasons = {name: problem for name, problem in problems.items() if problem}
    usable = {name: method for name, method in chosen.items() if name not in skip_reasons}
    needs = methods.needed(usable.values())
    trained_phi = phi.read(study, backbone) if "04_phi" in needs else None
    fti = study.read("05_fti4cir").parameters if "05_fti4cir" in needs else {}
    networks = load_networks(study, backbone, usable)
    splits = group_by_split(benchmarks.read(study))
    sources = {}
    for split in splits:
        name = f"{split}/references"
        sources[split] = Sources(
            backbone,
            embeddings.read(study, name),
            oti.read(study, name).tokens if "03_oti" in needs else None,
            trained_phi,
            patches.read(study, split, fti["fti_words"]) if fti else None,
            networks,
        )
    composers: dict[str, dict[str, Composer]] = {split: {} for split in splits}
    for split, of_split in composers.items():
        other = tuning.chosen_on(split)
        for name, method in reportable(usable, split, fti.get("fti_checkpoint", "")).items():
            of_split[name] = own_methods.build(name, method, sources[split])
            if hasattr(of_split[name], "grid"):
                tuned = own_methods.build(name, method, sources.get(other, sources[split]))
                setting = tuning.choose(study, name, tuned, other, splits.get(other, []))
                of_split[name] = own_methods.build(name, method, sources[split], setting)
            if method.file:
                own_methods.try_out(of_split[name], splits[split][0])
    return composers, skip_reasons


def load_networks(study: Study, backbone: Backbone, chosen: Mapping[str, Method]) -> dict[str, TrainedNetwork]:
    """Return the network of each method that has a file of its own, from the parameters of 06_retrieval."""
    if not any(method.checkpoint for method in chosen.values()):
        return {}
    files = methods.network_files(chosen, study.settings("06_retrieval"), study)
    return {name: other_networks.import_network(study, backbone, name, file) for name, file in files.items()}


def reportable(usable: Mapping[str, Method], split: str, fti_checkpoint: str) -> dict[str, Method]:
    """Return the methods that a split may compare: none with FTI4CIR's network if its epoch was chosen there."""
    if split != f"{fti_checkpoint}/val":
        return dict(usable)
    return {name: method for name, method in usable.items() if "05_fti4cir" not in method.needs}


def _encode_queries(backbone: Backbone, sentences: Sequence[Sequence[str]], words: Tensor | None = None) -> Tensor:
    """Unit features [N, d] of the sentences alone, or of PROMPT with the query's pseudo-word of `words` [N, d_tok]."""
    texts, query_of = _flatten(sentences)
    if words is not None:
        texts, words = [PROMPT.format(text) for text in texts], words[query_of]
    return _mean_by_query(encode_texts(backbone, texts, words=words), query_of, len(sentences))


def _flatten(sentences: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """All M sentences in one list, and the query [M] int64 that each belongs to."""
    texts = [sentence for of_query in sentences for sentence in of_query]
    return texts, torch.tensor([query for query, of_query in enumerate(sentences) for _ in of_query])


def _mean_by_query(features: Tensor, query_of: Tensor, queries: int) -> Tensor:
    """Unit means [N, d] of the unit features of each query; `query_of` [M] is the query of each feature [M, d]."""
    sums = torch.zeros(queries, features.shape[1]).index_add_(0, query_of, F.normalize(features, dim=-1))
    return F.normalize(sums, dim=-1)
