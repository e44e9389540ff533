"""Phrases about every concept, written by a causal language model (SEARLE section 3.1; searle.md section 1).

"a photo of {concept} that" is continued a few hundred times by sampling. Textual inversion later replaces the
concept by the pseudo-word and asks that the phrase keep its meaning.
"""

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
import torch
from torch import Tensor

from searle_lib.backbone.model import find_device
from searle_lib.releases import downloads, searle_files
from searle_lib.searle.concepts import Vocabulary
from searle_lib.store import randomness, shards
from searle_lib.store.artefacts import Store, digest, file_sha256, write_json
from searle_lib.store.code import code_digest
from searle_lib.store.limits import NonNegativeInt, PositiveFloat, PositiveInt, Seed
from searle_lib.store.records import Study

PROMPT = "a photo of {} that"
RELEASE = "https://github.com/miccunifi/SEARLE/releases/download/weights/GPTNeo27B.zip"  # the authors' phrases
TOP_K = 50  # not named by the authors: what `generate` did by default when they sampled


@pydantic.dataclasses.dataclass(frozen=True)
class Settings:
    """How phrases are sampled; the published values are the defaults."""

    phrases_per_concept: PositiveInt = 256
    max_length: PositiveInt = 35  # tokens, the prompt's included
    temperature: PositiveFloat = 0.5
    no_repeat_ngram: NonNegativeInt = 2
    seed: Seed = 42


@dataclass(frozen=True)
class Phrases:
    """All phrases, concept after concept: those of concepts[i] are texts[starts[i]:starts[i + 1]]."""

    concepts: tuple[str, ...]
    texts: tuple[str, ...]
    starts: np.ndarray
    key: str

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Position of each concept."""
        return {concept: row for row, concept in enumerate(self.concepts)}

    def of(self, concept: str) -> tuple[str, ...]:
        """The phrases of one concept. Raises LookupError for a concept that has none."""
        if concept not in self.row_of:
            raise LookupError(
                f"concept {concept!r} has no phrases; run 01_phrases on the vocabulary that 02_concepts used."
            )
        row = self.row_of[concept]
        return self.texts[self.starts[row] : self.starts[row + 1]]

    @cached_property
    def without_their_concept(self) -> frozenset[str]:
        """Concepts that at least one of their phrases does not name: the model rewrote it, so all are left out."""
        return frozenset(c for c in self.concepts if not all(c in phrase for phrase in self.of(c)))

    def table(self) -> pd.DataFrame:
        """One row a phrase, columns concept and phrase."""
        return pd.DataFrame({"concept": np.repeat(self.concepts, np.diff(self.starts)), "phrase": self.texts})


def generate(
    store: Store,
    vocabulary: Vocabulary,
    language_model: str,
    settings: Settings,
    device: str = "cpu",
    batch: int = 8,
    given: str = "",
) -> Phrases:
    """Return sampled phrases about every concept, kept in the store.

    `language_model` is a folder or a hub name, with "@revision" behind it for another than the newest; `batch` is the
    concepts a call of the model; results do not depend on it. `given` is a file of phrases in the authors' form to
    take instead, or "published" for theirs.
    Raises ValueError when there is no such model, ValueError or FileNotFoundError for a file that cannot be used.
    """
    if given:
        return _given(store, vocabulary, given)
    names = tuple(dict.fromkeys(vocabulary.names))  # a vocabulary may hold a name twice
    facts = asdict(settings) | {"vocabulary": vocabulary.key, "language_model": _identity(language_model)}
    facts["code"] = code_digest(sample, clean)

    def make(folder: Path) -> None:
        model, tokenizer = load_language_model(language_model, device)

        def work(first: int, end: int) -> dict[str, Tensor]:
            return {"ids": sample(model, tokenizer, names[first:end], settings)}

        ids = shards.run(folder / "shards", len(names), batch, work, desc="phrases")["ids"]
        texts = [clean(text) for text in tokenizer.batch_decode(ids.flatten(0, 1), skip_special_tokens=True)]
        concepts = np.repeat(names, settings.phrases_per_concept)
        pd.DataFrame({"concept": concepts, "phrase": texts}).to_parquet(folder / "phrases.parquet", index=False)
        write_json(
            folder / "model.json", {"name": language_model, "commit": getattr(model.config, "_commit_hash", None)}
        )
        shards.clear(folder / "shards")

    return store.keep("phrases", facts, make).read(load)


def read(study: Study) -> Phrases:
    """Return the phrases that 01_phrases kept."""
    return study.artefact("01_phrases", "phrases").read(load)


def load(folder: Path) -> Phrases:
    """Read phrases from an artefact's folder."""
    return from_table(pd.read_parquet(folder / "phrases.parquet"), folder.name.rpartition("-")[2])


def _given(store: Store, vocabulary: Vocabulary, given: str) -> Phrases:
    path = Path(given)
    if given == "published":
        path = downloads.fetch(RELEASE, downloads.cache() / "GPTNeo27B.zip")
    elif not path.is_file():
        raise FileNotFoundError(f"phrases_file {given} is no file; correct it, or leave it empty to sample.")

    def make(folder: Path) -> None:
        table = searle_files.read_phrases(path)
        missing = sorted(set(vocabulary.names) - set(table["concept"]))
        if missing:
            raise ValueError(
                f"phrases_file {given} has no phrases about {len(missing):,} of the {len(vocabulary.names):,} concepts "
                f"of the vocabulary (first: {missing[0]!r}); use the vocabulary they were written about."
            )
        table.to_parquet(folder / "phrases.parquet", index=False)

    facts = {"sha256": file_sha256(path), "vocabulary": vocabulary.key, "code": code_digest(searle_files.read_phrases)}
    return store.keep("phrases", facts, make).read(load)


def from_table(table: pd.DataFrame, key: str | None = None) -> Phrases:
    """Phrases of a table with columns concept and phrase, in which a concept's rows stand together."""
    concepts = table["concept"].to_numpy(dtype=object)
    changes = np.flatnonzero(np.r_[True, concepts[1:] != concepts[:-1]]) if len(concepts) else np.array([], int)
    names = tuple(concepts[changes])
    if len(set(names)) < len(names):
        raise ValueError("a concept's phrases must stand together in the phrase table; sort it by concept.")
    texts = tuple(table["phrase"])
    return Phrases(names, texts, np.append(changes, len(concepts)), key or digest([names, texts]))


def load_language_model(name: str, device: str = "cpu"):
    """A causal LM and its tokenizer from a folder or the hub, in fp16 on CUDA. Raises ValueError in one sentence."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import, and most notebooks need it not

    place = find_device(device)
    folder, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision or "main")
        model = AutoModelForCausalLM.from_pretrained(folder, revision=revision or "main", dtype=_dtype(place))
    except Exception as problem:
        said = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:160]}"
        raise ValueError(
            f"language_model {name} is neither a folder with a causal language model nor one that the hub gives "
            f"({said}); correct language_model, or put the model's folder there."
        ) from problem
    return model.to(place).eval(), tokenizer


@torch.no_grad()
def sample(model, tokenizer, concepts: tuple[str, ...], settings: Settings) -> Tensor:
    """Token ids [C, phrases_per_concept, max_length] int32, end-of-text behind the end, prompts included.

    Concepts whose prompts have as many tokens share a call, so nothing is padded. Each phrase has its own stream of
    random numbers: which concepts share a call changes nothing.
    """
    count, length, end = settings.phrases_per_concept, settings.max_length, tokenizer.eos_token_id
    prompts = [tokenizer(PROMPT.format(concept)).input_ids for concept in concepts]
    too_long = next((c for c, p in zip(concepts, prompts, strict=True) if len(p) >= length), None)
    if too_long is not None:
        raise ValueError(f"the prompt of concept {too_long!r} fills phrase_max_length {length}; raise it.")
    ids = torch.full((len(concepts), count, length), end, dtype=torch.int32)
    for size in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == size]
        names = [f"{concepts[row]}/{i}" for row in rows for i in range(count)]
        draws = randomness.uniform(randomness.keys(settings.seed, "phrases", names), 0, length)
        picked = _Picked(torch.from_numpy(draws).to(model.device, _precise(model.device)), settings.temperature)
        start = torch.tensor([prompts[row] for row in rows], device=model.device).repeat_interleave(count, 0)
        written = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=False,  # _Picked leaves a single token, the sampled one
            max_length=length,
            no_repeat_ngram_size=settings.no_repeat_ngram,
            pad_token_id=end,
            logits_processor=[picked],
        )
        ids[rows, :, : written.shape[1]] = written.view(len(rows), count, -1).int().cpu()
    return ids


def clean(text: str) -> str:
    """A phrase on one line: runs of newlines become ". ", runs of dots one dot. Source: searle.md, section 1."""
    return re.sub(r"\.+", ".", re.sub(r"\n+", ". ", text))


@dataclass(frozen=True)
class _Picked:
    """A logits processor that samples by draws [N, max_length], each row's own, and forbids every other token."""

    draws: Tensor
    temperature: float

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        best, tokens = (scores.float() / self.temperature).topk(min(TOP_K, scores.shape[1]), dim=1)
        threshold = self.draws[:, ids.shape[1]].unsqueeze(1)  # [N, 1]
        below = best.to(threshold.dtype).softmax(1).cumsum(1) < threshold
        chosen = tokens.gather(1, below.sum(1, keepdim=True).clamp(max=best.shape[1] - 1))
        return scores.fill_(float("-inf")).scatter_(1, chosen, 0.0)


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64


def _identity(language_model: str) -> str:
    folder = Path(language_model)
    if not folder.is_dir():
        return language_model
    return digest({path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()})


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32
