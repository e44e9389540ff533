"""Makes tests/known_answers from the full folder: `python tests/compact.py FOLDER`.

The same inputs and outputs; of the tiny CLIP's vocabulary only the rows that the texts use.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from searle_lib.backbone.model import tokenize
from searle_lib.searle.concepts import TEMPLATES

TARGET = Path(__file__).parent / "known_answers"


def main(source: Path) -> None:
    """Write the compact copy beside this file."""
    TARGET.mkdir(exist_ok=True)
    inputs = json.loads((source / "inputs.json").read_text())
    texts = [*inputs["texts"], *_strings(inputs["oti"])]
    texts += [template.format(f" {name} ") for template in TEMPLATES for name in inputs["vocabulary"]]
    texts += [
        f"a photo of * with * {s} with {a} but {m}"
        for s, a, m in zip(
            inputs["fti_subjects"], inputs["fti_attributes_text"], inputs["fti_modifications"], strict=True
        )
    ]
    rows = torch.unique(torch.cat([tokenize([text]).ids.flatten() for text in texts]))
    weights = torch.load(source / "tiny_clip.pt", weights_only=True)
    table = weights.pop("token_embedding.weight")[rows]
    save_file(weights | {"token_embedding.weight": table, "vocabulary": rows}, TARGET / "tiny_clip.safetensors")
    np.savez_compressed(TARGET / "expected.npz", **np.load(source / "expected.npz"))
    for name, part in (("phi_3", "Phi"), ("fti4cir_state_dict", None)):
        saved = torch.load(source / f"{name}.pt", weights_only=True)
        arrays = {key: value.numpy() for key, value in (saved[part] if part else saved).items()}
        np.savez_compressed(TARGET / f"{name}.npz", **arrays)
    for path in (source / "inputs.json", *sorted(source.glob("image_*.png"))):
        shutil.copyfile(path, TARGET / path.name)


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
