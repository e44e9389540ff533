"""Captions of the unlabeled images, split into subject and attribute (FTI4CIR section 3).

`captioned_images` returns the images of a study that have captions, and their captions. It reads a file in the authors'
format, `[{"img_id", "subject", "attribute"}, ...]`. If the file does not exist, BLIP writes captions and spaCy finds
the first noun of each, where the caption is split. Both are optional installs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from searle_lib.data import annotations, readable
from searle_lib.data.images import Reader
from searle_lib.store import bars
from searle_lib.store.artefacts import digest, write_json
from searle_lib.store.reading import FileRefused, is_text, read_json, reads, show
from searle_lib.store.records import Study

SPLITS = ("reference", "sane")
PROMPT = "a picture of"
BLIP_RESOLUTION = 384
BLIP_READER = Reader(batch_size=16)
CHUNK = 1000  # images between savings
Tagger = Callable[[str], list[tuple[str, str]]]  # from a sentence to its tokens and their coarse parts of speech


@dataclass(frozen=True)
class Captions:
    """The captions of N images, each split into a subject and an attribute.

    Args:
        ids: the images.
        subjects: such as "a dog".
        attributes: such as "on a chair".
    """

    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def key(self) -> str:
        """A hash of all captions."""
        return digest([self.ids, self.subjects, self.attributes])


@reads(
    "is not valid JSON", "make the file anew", absent="make it from BLIP, or correct captions_file", noun="caption file"
)
def read(
    path: Path | str, images: Sequence[str], caption_split: str = "reference", all_images: Sequence[str] = ()
) -> Captions:
    """Read the captions of images from a file.

    Args:
        path: the file. It names an image by its id or by the digits after the id's last underscore.
        images: ids of the images.
        caption_split: one of SPLITS. "reference" keeps an entry with an empty attribute, as the authors do; "sane"
            skips it.
        all_images: ids of the whole data set. Captions of those that are not in `images` are skipped.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if an entry lacks a key, names an unknown image, has an empty subject, or holds "*", the mark of a
            pseudo-word.
    """
    requested, valid = set(images), {*images, *all_images}
    full_id = {image.rsplit("_", 1)[-1]: image for image in valid}
    rows = []
    captioned = set()
    entries = read_json(path)
    if not isinstance(entries, list):
        raise FileRefused(f"{path} holds a {type(entries).__name__}, not a list of captions; make the file anew.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise FileRefused(f"entry {number} of {path} is {show(entry)}, not an object; make the file anew.")
        missing = [key for key in ("img_id", "subject", "attribute") if key not in entry]
        if missing:
            raise FileRefused(f"entry {number} of {path} has no key {missing[0]}; add it, or make the file anew.")
        wrong = [key for key in ("img_id", "subject", "attribute") if not is_text(entry[key])]
        if wrong:
            raise FileRefused(
                f"entry {number} of {path} has {wrong[0]} {show(entry[wrong[0]])}, no text; make the file anew."
            )
        image, subject, attribute = entry["img_id"], entry["subject"].strip(), entry["attribute"].strip()
        image = image if image in valid else full_id.get(image)
        if image is None:
            raise FileRefused(
                f"{path} has a caption of image {entry['img_id']}, which is not in the data set; remove it."
            )
        if image in captioned:
            raise FileRefused(f"{path} has two captions of image {image}; remove one.")
        captioned.add(image)
        if not subject:
            raise FileRefused(f"the subject of image {image} in {path} is empty; write it, or remove the entry.")
        if "*" in subject + attribute:
            raise FileRefused(f"the caption of image {image} in {path} holds *, which marks a pseudo-word; remove it.")
        if image in requested and (attribute or caption_split == "reference"):
            rows.append((image, subject, attribute))
    if not rows:
        raise FileRefused(f"{path} has no caption that can be used; make the file anew.")
    return Captions(*map(tuple, zip(*rows, strict=True)))


def write(path: Path, captions: Captions) -> Path:
    """Write captions in the authors' format."""
    rows = zip(captions.ids, captions.subjects, captions.attributes, strict=True)
    write_json(path, [{"img_id": i.rsplit("_", 1)[-1], "subject": s, "attribute": a} for i, s, a in rows])
    return path


def split(caption: str, tagger: Tagger, caption_split: str) -> tuple[str, str] | None:
    """Split a caption into its subject, up to the first noun, and its attribute, the rest; None to skip the caption.

    "reference" keeps two quirks of the authors' code: in a caption without a noun the subject is the first two
    characters, and an attribute may be empty. "sane" takes the first two words and skips an empty attribute.
    """
    words = caption.split()
    while len(words) > 1 and words[-1] == words[-2]:
        words.pop()
    if len(words) < 4:
        return None
    text = " ".join(words)
    tokens = tagger(text)
    noun = next((i for i, (_, part_of_speech) in enumerate(tokens) if part_of_speech == "NOUN"), None)
    if noun is not None:
        subject, attribute = (" ".join(token for token, _ in part) for part in (tokens[: noun + 1], tokens[noun + 1 :]))
    elif caption_split == "reference":
        subject, attribute = text[:2], text[2:]
    else:
        subject, attribute = " ".join(words[:2]), " ".join(words[2:])
    if subject == attribute or (caption_split == "sane" and not attribute.strip()):
        return None
    return subject, attribute


def caption_images(
    path: Path | str,
    table: pd.DataFrame,
    blip_model: str,
    caption_split: str = "reference",
    device: str = "cpu",
    reader: Reader = BLIP_READER,
    tagger: Tagger | None = None,
) -> Path:
    """Caption images with BLIP and write the caption file, unless the file exists. Return its path.

    Captions are saved beside the file every CHUNK images, so an interrupted run resumes.

    Args:
        path: the caption file.
        table: the images, columns image and path.
        blip_model: a folder or a name on the hub.
        caption_split: one of SPLITS, see `split`.
        device: where BLIP runs.
        reader: how many images are captioned at once.
        tagger: finds parts of speech, by default spaCy.

    Raises:
        ValueError: if BLIP or spaCy is missing, or no caption has four words.
    """
    path = Path(path)
    if path.is_file():
        return path
    tagger = tagger or spacy_tagger()
    progress = path.with_name(path.name + ".captions.json")
    captions = json.loads(progress.read_text()) if progress.exists() else {}
    remaining = table[~table["image"].isin(list(captions))]
    model, processor = load_blip(blip_model, device)
    with bars.bar(len(table), "captions", len(table) - len(remaining)):
        for start in range(0, len(remaining), CHUNK):
            chunk = remaining[start : start + CHUNK]
            texts = run_blip(model, processor, [Path(p) for p in chunk["path"]], reader)
            captions |= dict(zip(chunk["image"], texts, strict=True))
            write_json(progress, captions)
    parts = {image: split(captions[image], tagger, caption_split) for image in table["image"]}
    rows = [(image, *part) for image, part in parts.items() if part]
    if not rows:
        raise ValueError(f"blip_model {blip_model} wrote no caption of four words; set it to a captioning model.")
    write(path, Captions(*map(tuple, zip(*rows, strict=True))))
    progress.unlink()
    return path


def captioned_images(
    study: Study, captions_file: str, blip_model: str, caption_split: str, device: str, fti_weights: str = ""
) -> tuple[pd.DataFrame, Captions]:
    """Return the unlabeled images of a study that have captions, columns image and path, and their captions.

    Args:
        study: has the unlabeled images.
        captions_file: the caption file; BLIP writes it if it does not exist.
        blip_model: a folder or a name on the hub.
        caption_split: one of SPLITS, see `split`.
        device: where BLIP runs.
        fti_weights: a file of a pretrained network. It needs no captions, so then there are none.
    """
    if fti_weights:
        return pd.DataFrame({"image": [], "path": []}), Captions((), (), ())
    values = study.settings("02_concepts")
    all_images = annotations.imagenet(Path(study.path(values["data_root"])))["image"]
    unlabeled = readable.unlabeled_images(study)
    reader = replace(BLIP_READER, workers=values["workers"])
    if not Path(study.path(captions_file)).is_file():
        study.executor.require_whole("captioning by BLIP")
    file = caption_images(study.path(captions_file), unlabeled, blip_model, caption_split, device, reader)
    captions = read(file, list(unlabeled["image"]), caption_split, list(all_images))
    return unlabeled.set_index("image").loc[list(captions.ids)].reset_index(), captions


def spacy_tagger(model: str = "en_core_web_sm") -> Tagger:
    """Load a tagger of spaCy. Raises ValueError with the command that installs spaCy and its model."""
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
    """Load BLIP and its processor from a folder, or from the hub by name or "name@revision".

    Raises:
        ValueError: if there is no such model, or its files are broken.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    folder, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    try:
        processor = BlipProcessor.from_pretrained(folder, revision=revision or "main")
        model = BlipForConditionalGeneration.from_pretrained(folder, revision=revision or "main")
    except (OSError, ValueError, KeyError) as problem:
        raise ValueError(
            f"blip_model {name} is neither a folder with BLIP nor the name of one on the hub "
            f"({str(problem).splitlines()[0][:160]}); correct blip_model, or put the model's folder there."
        ) from problem
    return model.to(device).eval(), processor


@torch.no_grad()
def run_blip(model, processor, paths: Sequence[Path], reader: Reader = BLIP_READER) -> list[str]:
    """Return BLIP's caption of each image, without the prompt: 3 beams, 10 to 25 tokens."""
    captions = []
    prompt = processor.tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    prompt = torch.cat([torch.tensor([[model.config.text_config.bos_token_id]]), prompt], dim=1)
    for pixels in reader.batches(list(paths), BLIP_RESOLUTION, "targetpad"):
        ids = model.generate(
            pixel_values=pixels.to(model.device),
            input_ids=prompt.repeat(len(pixels), 1).to(model.device),
            num_beams=3,
            min_length=10,
            max_length=25,
        )
        texts = processor.batch_decode(ids, skip_special_tokens=True)
        captions += [text.strip().removeprefix(PROMPT).strip() for text in texts]
        bars.advance(len(texts))
    return captions
