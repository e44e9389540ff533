"""Phrases about every concept, written by a causal language model (SEARLE section 3.1).

`generate` takes a vocabulary and a language model, which continues "a photo of {concept} that" a few hundred times.
It returns `Phrases`. Textual inversion later replaces the concept with a pseudo-word, and the phrase must keep its
meaning.
"""

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from searle_lib.backbone.model import find_device
from searle_lib.releases import downloads, searle_files
from searle_lib.searle.concepts import Vocabulary
from searle_lib.searle.settings import PhraseSettings as Settings
from searle_lib.store import randomness, shards
from searle_lib.store.artefacts import Store, digest, file_sha256, write_json
from searle_lib.store.batches import BatchSize
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

PROMPT = "a photo of {} that"
RELEASE = "https://github.com/miccunifi/SEARLE/releases/download/weights/GPTNeo27B.zip"  # the authors' phrases
TOP_K = 50  # the authors state none; this was the default of transformers when they sampled


@dataclass(frozen=True)
class Phrases:
    """All phrases, concept after concept.

    Args:
        concepts: C names.
        texts: P phrases. Those about concepts[i] are texts[starts[i] : starts[i + 1]].
        starts: [C + 1] int64, the first phrase of each concept, and P.
        key: the key of the artefact.
    """

    concepts: tuple[str, ...]
    texts: tuple[str, ...]
    starts: np.ndarray
    key: str

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each concept in `concepts`."""
        return {concept: row for row, concept in enumerate(self.concepts)}

    def select(self, concept: str) -> tuple[str, ...]:
        """Return the phrases about one concept. Raises LookupError for a concept without phrases."""
        if concept not in self.row_of:
            raise LookupError(
                f"concept {concept!r} has no phrases; run 01_phrases on the vocabulary that 02_concepts used."
            )
        row = self.row_of[concept]
        return self.texts[self.starts[row] : self.starts[row + 1]]

    @cached_property
    def unusable_concepts(self) -> frozenset[str]:
        """Concepts that inversion skips, because the language model reworded the name in one of their phrases."""
        return frozenset(c for c in self.concepts if not all(c in phrase for phrase in self.select(c)))

    def table(self) -> pd.DataFrame:
        """Return the phrases as a table with one row per phrase, columns concept and phrase."""
        return pd.DataFrame({"concept": np.repeat(self.concepts, np.diff(self.starts)), "phrase": self.texts})


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, loaded where it writes; a worker of another process loads its own.

    Args:
        name: a folder, or a name on the hub.
        device: where it runs.
        identity: what stands for it in a key.
    """

    name: str
    device: str
    identity: str

    @cached_property
    def loaded(self) -> tuple:
        """The model and its tokenizer. Raises as `load_language_model` does, and ValueError if it is another one."""
        if _identity(self.name) != self.identity:
            raise ValueError(
                f"language_model {self.name} has other files here; copy the notebook's folder to this place."
            )
        return load_language_model(self.name, self.device)

    def __reduce__(self) -> tuple:
        return LanguageModel, (self.name, self.device.partition(":")[0], self.identity)


def generate(
    store: Store,
    vocabulary: Vocabulary,
    language_model: str,
    settings: Settings,
    device: str = "cpu",
    batch_size: int = 8,
    phrases_file: str = "",
) -> Phrases:
    """Sample phrases about every concept, or import them from a file, and keep them in the store.

    Args:
        store: keeps the phrases; an interrupted sampling resumes.
        vocabulary: the concepts.
        language_model: a folder, or a name on the hub. "name@revision" is a revision other than the newest.
        settings: what determines the phrases.
        device: where the language model runs.
        batch_size: concepts per call of the model; changes no result.
        phrases_file: a file of phrases in the authors' format to import, "published" for the authors' own, or empty
            to sample.

    Raises:
        FileNotFoundError: if the phrases file does not exist.
        ValueError: if there is no such model, or the phrases file cannot be used.
    """
    if phrases_file:
        return _import_file(store, vocabulary, phrases_file)
    names = tuple(dict.fromkeys(vocabulary.names))  # Open Images has some names twice
    model = LanguageModel(language_model, device, _identity(language_model))
    facts = asdict(settings) | {"vocabulary": vocabulary.key, "language_model": model.identity}
    facts["code"] = code_digest(sample, clean)

    def make(folder: Path) -> None:
        size = BatchSize(batch_size, "phrase_batch_size")

        def work(first: int, end: int) -> dict[str, Tensor]:
            parts = size.over(first, end, lambda rows: sample(*model.loaded, names[rows.start : rows.stop], settings))
            return {"ids": torch.cat(list(parts))}

        ids = shards.run(folder / "shards", len(names), batch_size, work, "phrases", store.executor)["ids"]
        network, tokenizer = model.loaded
        texts = [clean(text) for text in tokenizer.batch_decode(ids.flatten(0, 1), skip_special_tokens=True)]
        concepts = np.repeat(names, settings.phrases_per_concept)
        pd.DataFrame({"concept": concepts, "phrase": texts}).to_parquet(folder / "phrases.parquet", index=False)
        write_json(
            folder / "model.json", {"name": language_model, "commit": getattr(network.config, "_commit_hash", None)}
        )

    return store.keep("phrases", facts, make).read(load)


def read(study: Study) -> Phrases:
    """Return the phrases that 01_phrases kept."""
    return study.artefact("01_phrases", "phrases").read(load)


def load(folder: Path) -> Phrases:
    """Read phrases from an artefact's folder."""
    return from_table(pd.read_parquet(folder / "phrases.parquet"), folder.name.rpartition("-")[2])


def from_table(table: pd.DataFrame, key: str | None = None) -> Phrases:
    """Build phrases from a table with columns concept and phrase.

    Raises:
        ValueError: if the rows of a concept do not stand together.
    """
    concepts = table["concept"].to_numpy(dtype=object)
    changes = np.flatnonzero(np.r_[True, concepts[1:] != concepts[:-1]]) if len(concepts) else np.array([], int)
    names = tuple(concepts[changes])
    if len(set(names)) < len(names):
        raise ValueError("a concept's phrases must stand together in the phrase table; sort it by concept.")
    texts = tuple(table["phrase"])
    return Phrases(names, texts, np.append(changes, len(concepts)), key or digest([names, texts]))


def load_language_model(name: str, device: str = "cpu"):
    """Load a causal language model and its tokenizer from a folder or the hub, in float16 on CUDA.

    Raises:
        ValueError: if there is no such model, or its files are broken.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # a slow import that only sampling needs

    device = find_device(device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    folder, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision or "main")
        model = AutoModelForCausalLM.from_pretrained(folder, revision=revision or "main", dtype=dtype)
    except Exception as problem:
        reason = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:160]}"
        raise ValueError(
            f"language_model {name} is neither a folder with a causal language model nor the name of one on the hub "
            f"({reason}); correct language_model, or put the model's folder there."
        ) from problem
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def sample(model, tokenizer, concepts: tuple[str, ...], settings: Settings) -> Tensor:
    """Sample phrases about C concepts.

    Concepts whose prompts have equal lengths share a call of the model, so no prompt is padded. Each phrase has its
    own stream of random numbers, so the result does not depend on which concepts share a call.

    Returns:
        [C, phrases_per_concept, max_length] int32 token ids, the prompt included, filled up with end-of-text.

    Raises:
        ValueError: if a prompt leaves no room for a phrase.
    """
    count, length, end_of_text = settings.phrases_per_concept, settings.max_length, tokenizer.eos_token_id
    prompts = [tokenizer(PROMPT.format(concept)).input_ids for concept in concepts]
    too_long = next((c for c, p in zip(concepts, prompts, strict=True) if len(p) >= length), None)
    if too_long is not None:
        raise ValueError(f"the prompt of concept {too_long!r} fills phrase_max_length {length}; raise it.")
    ids = torch.full((len(concepts), count, length), end_of_text, dtype=torch.int32)
    for size in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == size]
        names = [f"{concepts[row]}/{i}" for row in rows for i in range(count)]
        draws = randomness.uniform(randomness.keys(settings.seed, "phrases", names), 0, length)
        precise = torch.float32 if model.device.type == "mps" else torch.float64  # mps has no float64
        sampler = _Sampler(torch.from_numpy(draws).to(model.device, precise), settings.temperature)
        start = torch.tensor([prompts[row] for row in rows], device=model.device).repeat_interleave(count, 0)
        generated = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=False,  # _Sampler leaves one token to choose from
            max_length=length,
            no_repeat_ngram_size=settings.no_repeat_ngram,
            pad_token_id=end_of_text,
            logits_processor=[sampler],
        )
        ids[rows, :, : generated.shape[1]] = generated.view(len(rows), count, -1).int().cpu()
    return ids


def clean(text: str) -> str:
    """Put a phrase on one line: a run of newlines becomes ". ", a run of dots one dot, as in the authors' code."""
    return re.sub(r"\.+", ".", re.sub(r"\n+", ". ", text))


@dataclass(frozen=True)
class _Sampler:
    """A logits processor that samples a token for each row and forbids all others.

    `draws` [N, max_length] are uniform numbers in (0, 1), one for each row and position.
    """

    draws: Tensor
    temperature: float

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        best, tokens = (scores.float() / self.temperature).topk(min(TOP_K, scores.shape[1]), dim=1)
        threshold = self.draws[:, ids.shape[1]].unsqueeze(1)  # [N, 1]
        below = best.to(threshold.dtype).softmax(1).cumsum(1) < threshold
        sampled = tokens.gather(1, below.sum(1, keepdim=True).clamp(max=best.shape[1] - 1))
        return scores.fill_(float("-inf")).scatter_(1, sampled, 0.0)


def _import_file(store: Store, vocabulary: Vocabulary, phrases_file: str) -> Phrases:
    path = Path(phrases_file)
    if phrases_file == "published":
        path = downloads.fetch(RELEASE, downloads.cache() / "GPTNeo27B.zip")
    elif not path.is_file():
        raise FileNotFoundError(
            f"phrases_file {phrases_file} does not exist; correct phrases_file, or leave it empty to sample."
        )

    def make(folder: Path) -> None:
        table = searle_files.read_phrases(path)
        missing = sorted(set(vocabulary.names) - set(table["concept"]))
        if missing:
            raise ValueError(
                f"phrases_file {phrases_file} has no phrases about {len(missing):,} of the {len(vocabulary.names):,} "
                f"concepts of the vocabulary (first: {missing[0]!r}); set vocabulary to the one they were written for."
            )
        table.to_parquet(folder / "phrases.parquet", index=False)

    facts = {"sha256": file_sha256(path), "vocabulary": vocabulary.key, "code": code_digest(searle_files.read_phrases)}
    return store.keep("phrases", facts, make).read(load)


def _identity(language_model: str) -> str:
    """Return what stands for a model in a key: its name on the hub, or a hash of the files in its folder."""
    folder = Path(language_model)
    if not folder.is_dir():
        return language_model
    return digest({path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()})
