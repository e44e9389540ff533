"""The miniature world's own CLIP, φ and language model, from the small files shipped with the library.

The files hold only the rows of the vocabulary that are in use. `write_clip` and `write_language_model` expand them to
the full table and write them in a form that `clip.load(path)` and `AutoModelForCausalLM.from_pretrained(path)` open.
`cached_files` gives CLIP and φ as files that a study or `load_searle` takes.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from searle_lib.miniworld.fingerprint import WEIGHTS
from searle_lib.releases import downloads, searle_files
from searle_lib.store.artefacts import atomic_write, file_sha256

VOCABULARY_ROWS = 49_408
END_OF_TEXT = "<|endoftext|>"
PHI = "phi.safetensors"
SIZES = {  # of clip.model.CLIP; heads are width / 64, which is what clip.load assumes
    "embed_dim": 128,
    "image_resolution": 64,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 77,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}


def write_clip(path: Path) -> None:
    """Write the tiny CLIP as a state dict in fp16 over the full vocabulary, for `clip.load(path)`."""
    torch.save(spread(load_file(WEIGHTS / "clip.safetensors")), path)


def spread(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with CLIP's full token embedding in place of the rows listed under `vocabulary`."""
    rows, compact = weights["vocabulary"], weights["token_embedding.weight"]
    table = torch.zeros(VOCABULARY_ROWS, compact.shape[1], dtype=compact.dtype)
    table[rows] = compact
    return {n: v for n, v in weights.items() if n != "vocabulary"} | {"token_embedding.weight": table}


def write_phi(path: Path) -> None:
    """Write the φ of the mini study in the form of the authors' files."""
    searle_files.write_phi(path, 0, {name: value.float() for name, value in load_file(WEIGHTS / PHI).items()})


def cached_files() -> tuple[Path, Path]:
    """Return the tiny CLIP and its φ as files of the cache, which are written once."""
    folder = downloads.cache() / f"miniature-{file_sha256(WEIGHTS / PHI)[:10]}"  # φ's file names its CLIP
    files = folder / "tiny-clip.pt", folder / "SEARLE_tiny-clip.pt"
    for file, write in zip(files, (write_clip, write_phi), strict=True):
        if not file.exists():
            with atomic_write(file) as temporary:
                write(temporary)
    return files


def write_language_model(folder: Path) -> None:
    """Write the tiny GPT-Neo and its tokenizer as a folder for `from_pretrained(folder)`."""
    words = _fast_tokenizer(Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")))
    model = language_model(len(words))
    missing, unexpected = model.load_state_dict(load_file(WEIGHTS / "language_model.safetensors"), strict=False)
    if unexpected or missing != ["lm_head.weight"]:  # tied to the embedding
        raise ValueError(f"{WEIGHTS}/language_model.safetensors does not fit the model: {missing}, {unexpected}")
    model.tie_weights()
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def language_model(vocabulary: int) -> GPTNeoForCausalLM:
    """Return an untrained GPT-Neo of width 128 with two layers, one of them with local attention."""
    config = GPTNeoConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        window_size=32,
        bos_token_id=0,
        eos_token_id=0,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
    )
    return GPTNeoForCausalLM(config)


def tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, trained on the sentences, that ends each text with its end-of-text token."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    words.train_from_iterator(sentences, trainer)
    return _fast_tokenizer(words)


def _fast_tokenizer(words: Tokenizer) -> PreTrainedTokenizerFast:
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)
