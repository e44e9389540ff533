"""Captions of the unlabeled images, split into subject and attribute, for FTI4CIR (fti4cir.md, section 1.4).

They come from BLIP and are split at the first noun by spaCy, both optional installs; or from a file in the authors'
form, `[{"img_id", "subject", "attribute"}, ...]`, which is also what is written. The miniature world brings its own.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from searle_lib.data import annotations, readable
from searle_lib.data.images import Reader
from searle_lib.store.artefacts import digest, write_json
from searle_lib.store.records import Study

SPLITS = ("reference", "sane")
PROMPT = "a picture of"
BLIP_RESOLUTION = 384
BLIP_READER = Reader(batch_size=16)
CHUNK = 1000  # images between savings
Tag = Callable[[str], list[tuple[str, str]]]  # a sentence's tokens with their coarse parts of speech


@dataclass(frozen=True)
class Captions:
    """What is known in words of each image that has a caption; ids are those of the images."""

    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def key(self) -> str:
        """Stands for all of it."""
        return digest([self.ids, self.subjects, self.attributes])


def read(path: Path | str, images: Sequence[str], how: str = "reference", listed: Sequence[str] = ()) -> Captions:
    """The captions in a file for a list of image ids, which may be ImageNet's names or their last eight digits.

    An entry with an empty attribute is kept as the authors do ("reference") or left out ("sane"), and one of an image
    that is `listed` but not among those at hand is left out.
    Raises FileNotFoundError or ValueError, in one sentence, for a file that is not there, an entry without a key,
    with an image that is not among the images, with an empty subject, or with a "*", which stands for a pseudo-word.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"caption file {path} does not exist; make it from BLIP, or correct captions_file.")
    known, there = {*images, *listed}, set(images)
    full = {image.rsplit("_", 1)[-1]: image for image in known}
    rows = []
    for number, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        missing = [key for key in ("img_id", "subject", "attribute") if key not in entry]
        if missing:
            raise ValueError(f"entry {number} of {path} has no key {missing[0]}; add it, or make the file anew.")
        image, subject, attribute = entry["img_id"], entry["subject"].strip(), entry["attribute"].strip()
        image = image if image in known else full.get(image)
        if image is None:
            raise ValueError(f"{path} has a caption of image {entry['img_id']}, which is not there; remove it.")
        if not subject:
            raise ValueError(f"the subject of image {image} in {path} is empty; write it, or remove the entry.")
        if "*" in subject + attribute:
            raise ValueError(f"the caption of image {image} in {path} holds *, which marks a pseudo-word; remove it.")
        if image in there and (attribute or how == "reference"):
            rows.append((image, subject, attribute))
    if not rows:
        raise ValueError(f"{path} holds no caption that can be used; make it anew.")
    return Captions(*map(tuple, zip(*rows, strict=True)))


def write(path: Path, captions: Captions) -> Path:
    """Write captions in the authors' form."""
    rows = zip(captions.ids, captions.subjects, captions.attributes, strict=True)
    write_json(path, [{"img_id": i.rsplit("_", 1)[-1], "subject": s, "attribute": a} for i, s, a in rows])
    return path


def split(caption: str, tag: Tag, how: str) -> tuple[str, str] | None:
    """A caption's subject, up to its first noun, and attribute, the rest; None where it is left out.

    "reference" keeps two quirks of the authors' code: without a noun the subject is the first two characters, and an
    attribute may be empty. "sane" takes two words and leaves an empty attribute out. Source: fti4cir.md, section 1.4.
    """
    words = caption.split()
    while len(words) > 1 and words[-1] == words[-2]:
        words.pop()
    if len(words) < 4:
        return None
    text = " ".join(words)
    tokens = tag(text)
    noun = next((place for place, (_, kind) in enumerate(tokens) if kind == "NOUN"), None)
    if noun is not None:
        subject, attribute = (" ".join(token for token, _ in part) for part in (tokens[: noun + 1], tokens[noun + 1 :]))
    elif how == "reference":
        subject, attribute = text[:2], text[2:]
    else:
        subject, attribute = " ".join(words[:2]), " ".join(words[2:])
    if subject == attribute or (how == "sane" and not attribute.strip()):
        return None
    return subject, attribute


def make(
    path: Path | str,
    table: pd.DataFrame,
    blip_model: str,
    how: str = "reference",
    device: str = "cpu",
    reader: Reader = BLIP_READER,
    tag: Tag | None = None,
) -> Path:
    """The caption file of the images of a table (columns image and path), written by BLIP unless it is there.

    Captions are kept every CHUNK images beside the file, so an interrupted run resumes.

    Args:
        path: of the caption file.
        table: columns image and path.
        blip_model: a folder or a name on the hub.
        how: how a caption is cut, one of SPLITS.
        device: where BLIP runs.
        reader: how many images are described at once.
        tag: gives the parts of speech of a text's words; spaCy's by default.
    """
    path = Path(path)
    if path.is_file():
        return path
    tag = tag or spacy_tagger()
    aside = path.with_name(path.name + ".captions.json")
    done = json.loads(aside.read_text()) if aside.exists() else {}
    left = table[~table["image"].isin(list(done))]
    model, processor = load_blip(blip_model, device)
    for start in range(0, len(left), CHUNK):
        some = left[start : start + CHUNK]
        written = describe(model, processor, [Path(p) for p in some["path"]], reader)
        done |= dict(zip(some["image"], written, strict=True))
        write_json(aside, done)
    parts = {image: split(done[image], tag, how) for image in table["image"]}
    rows = [(image, *part) for image, part in parts.items() if part]
    if not rows:
        raise ValueError(f"{blip_model} wrote no caption of four words or more; is it a captioning model?")
    write(path, Captions(*map(tuple, zip(*rows, strict=True))))
    aside.unlink()
    return path


def of_study(
    study: Study, file: str, blip_model: str, how: str, device: str, fti_weights: str = ""
) -> tuple[pd.DataFrame, Captions]:
    """Return the study's unlabeled images that have captions, columns image and path, and the captions.

    BLIP writes the file where it does not exist. Both are empty where the network is brought, as `fti_weights`.
    """
    if fti_weights:
        return pd.DataFrame({"image": [], "path": []}), Captions((), (), ())
    values = study.settings("02_concepts")
    listed = annotations.imagenet(Path(study.path(values["data_root"])))
    unlabeled = readable.unlabeled(study)
    reader = replace(BLIP_READER, workers=values["workers"])
    written = make(study.path(file), unlabeled, blip_model, how, device, reader)
    captions = read(written, list(unlabeled["image"]), how, list(listed["image"]))
    return unlabeled.set_index("image").loc[list(captions.ids)].reset_index(), captions


def spacy_tagger(model: str = "en_core_web_sm") -> Tag:
    """spaCy's tokens and coarse parts of speech. Raises ValueError with the command that installs what is missing."""
    try:
        import spacy

        pipeline = spacy.load(model)
    except (ImportError, OSError) as problem:
        raise ValueError(
            f"splitting captions needs spaCy and its model {model}; run: pip install spacy && python -m spacy "
            f"download {model}."
        ) from problem
    return lambda text: [(token.text, token.pos_) for token in pipeline(text)]


def load_blip(name: str, device: str = "cpu"):
    """BLIP and its processor, by folder or hub name, "@revision" behind it. Raises ValueError in one sentence."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    folder, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    try:
        processor = BlipProcessor.from_pretrained(folder, revision=revision or "main")
        model = BlipForConditionalGeneration.from_pretrained(folder, revision=revision or "main")
    except (OSError, ValueError, KeyError) as problem:
        raise ValueError(
            f"blip_model {name} is neither a folder with BLIP nor one that the hub gives "
            f"({str(problem).splitlines()[0][:160]}); correct blip_model, or put the model's folder there."
        ) from problem
    return model.to(device).eval(), processor


@torch.no_grad()
def describe(model, processor, paths: Sequence[Path], reader: Reader = BLIP_READER) -> list[str]:
    """A caption of each picture: 3 beams, 10 to 25 tokens, BLIP's prompt taken off again."""
    captions = []
    prompt = processor.tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    prompt = torch.cat([torch.tensor([[model.config.text_config.bos_token_id]]), prompt], dim=1)
    for pixels in reader.batches(list(paths), BLIP_RESOLUTION, "targetpad"):
        written = model.generate(
            pixel_values=pixels.to(model.device),
            input_ids=prompt.repeat(len(pixels), 1).to(model.device),
            num_beams=3,
            min_length=10,
            max_length=25,
        )
        texts = processor.batch_decode(written, skip_special_tokens=True)
        captions += [text.strip().removeprefix(PROMPT).strip() for text in texts]
    return captions


def without(captions: Captions, images: Sequence[str]) -> str:
    """One sentence on the images that have no caption."""
    have = set(captions.ids)
    lacking = [image for image in images if image not in have]
    if not lacking:
        return f"Every one of the {len(images)} images has a caption."
    verbs = "has no caption and is" if len(lacking) == 1 else "have no caption and are"
    return f"{len(lacking):,} of {len(images):,} images {verbs} not trained on (first: {lacking[0]})."
