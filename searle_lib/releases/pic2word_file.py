"""Read the network of Pic2Word from a checkpoint of its authors' code, without running any code in it.

`read_network` takes a path and returns a state dict. The file also holds a CLIP and an optimizer, which are left alone.
"""

from pathlib import Path

from torch import Tensor

from searle_lib.releases.archives import read_tensors, to_float32
from searle_lib.store.reading import FileRefused, reads

KEY = "state_dict_img2text"
PREFIX = "module."  # of the names in a checkpoint of several GPUs
OUTPUT = "fc_out"


@reads("is not a file of tensors that is safe to read", "download it again", "correct the path")
def read_network(path: Path, dimension: int, width: int) -> dict[str, Tensor]:
    """Return the weights of Pic2Word's network by name, float32: `layers.0.0`, `layers.1.0`, ..., `fc_out`.

    The number of hidden layers and their widths are those of the file.

    Args:
        path: a checkpoint of Pic2Word's training, or its released model.
        dimension: the width of CLIP's embeddings.
        width: the width of CLIP's token embeddings.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileRefused: if it has another form, belongs to another CLIP, or holds weights that are not finite.
    """
    content = read_tensors(path)
    weights = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise FileRefused(f"{path} holds no network of Pic2Word ({KEY}); use a checkpoint of its authors' code.")
    weights = {str(name).removeprefix(PREFIX): value for name, value in weights.items()}
    layers = [*(f"layers.{number}.0" for number in range(len(weights) // 2 - 1)), OUTPUT]
    expected = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    if len(layers) < 2 or set(weights) != set(expected) or not all(isinstance(one, Tensor) for one in weights.values()):
        raise FileRefused(f"{path} holds under {KEY} other parts than layers.N.0 and {OUTPUT}; use another file.")
    shapes = [tuple(weights[f"{layer}.weight"].shape) for layer in layers]
    inputs = [shapes[0][1:], *(shape[:1] for shape in shapes[:-1])]
    for layer, shape, of_input in zip(layers, shapes, inputs, strict=True):
        if shape[1:] != of_input or len(shape) != 2 or weights[f"{layer}.bias"].shape != shape[:1]:
            raise FileRefused(f"{path} has a {layer} that does not fit the layer before it; download it again.")
    if (shapes[0][1], shapes[-1][0]) != (dimension, width):
        raise FileRefused(
            f"{path} is a network for embeddings of {shapes[0][1]} numbers and tokens of {shapes[-1][0]}, but this "
            f"CLIP has {dimension} and {width}; use the clip_model that it was trained with (released: ViT-L/14)."
        )
    return to_float32(weights, path.stat().st_size)
