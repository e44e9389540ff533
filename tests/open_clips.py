"""Small random CLIPs of open_clip, as folders that `open_clip:local-dir:` names."""

import json

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"width": 64, "heads": 1, "layers": 3}
CONFIGS = {
    "GELU": {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": TEXT},
    "QuickGELU": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"width": 48, "heads": 3, "context_length": 24},
    },
    "CustomTextCLIP": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": VISION | {"no_ln_pre": True},
        "text_cfg": TEXT | {"heads": 2, "layers": 2, "context_length": 40},
    },
}
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}


def write_clip(folder, config, weights=True):
    """A folder with a small random CLIP, whose biases and norms are not those of a new one."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PIXELS}))
    if weights:
        torch.manual_seed(0)
        rest = {name: value for name, value in config.items() if name != "custom_text"}
        model = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**rest)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def place(folder):
    return f"open_clip:local-dir:{folder}"


def config_with(text_cfg=(), vision_cfg=(), **config):
    """The configuration GELU with other settings."""
    parts = {"text_cfg": TEXT | dict(text_cfg), "vision_cfg": VISION | dict(vision_cfg)}
    return CONFIGS["GELU"] | parts | config
