"""One FTI4CIR training step, this library against the plain rendering: `make bench`.

ViT-B/32's size with random weights, the same pictures and captions, both in one run by turns, medians; the memory
peak of each from a process of its own. Writes reports/bench/bench.json.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from clip.model import CLIP

from benchmarks import fti_plain
from searle_lib import fti_training
from searle_lib.backbone import Backbone, encode_patches
from searle_lib.captions import Captions
from searle_lib.fti4cir import Fti4Cir

BATCH, REPEATS = 16, 5
SIZES = {
    "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 32,
    "context_length": 77, "vocab_size": 49408, "transformer_width": 512, "transformer_heads": 8,
    "transformer_layers": 12,
}  # fmt: skip
SUBJECTS = ["a man", "two small dogs", "a red car", "a tall building"] * (BATCH // 4)
ATTRIBUTES = ["riding a wave on a surfboard", "sleeping on a couch", "parked near a house", "with a clock on it"]
ATTRIBUTES = ATTRIBUTES * (BATCH // 4)


def problem():
    """A CLIP, two equal networks, and pixels, all random and the same in every process."""
    torch.manual_seed(0)
    model = CLIP(**SIZES).eval()
    networks = [Fti4Cir(512, 768, dropout=0.0) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    return model, networks, torch.randn(BATCH, 3, 224, 224)


def plain_step(model, network, pixels):
    """The plain rendering's step."""
    network.zero_grad(set_to_none=True)
    return fti_plain.step(model.requires_grad_(True), network, pixels, SUBJECTS, ATTRIBUTES)


def our_step(model, network, pixels, sentences):
    """The library's step, with the one visual pass that a first epoch needs."""
    network.zero_grad(set_to_none=True)
    clip = Backbone("random", "", model.requires_grad_(False), torch.device("cpu"))
    embeddings, patches = encode_patches(clip, pixels)
    images = F.normalize(embeddings, dim=-1)
    terms = fti_training.losses(clip, network(embeddings, patches), images, sentences, 0.2)
    loss = fti_training.total(terms, fti_training.Settings())
    loss.backward()
    return loss.detach()


def constants(model):
    """What the library makes once for a training, not for a step."""
    clip = Backbone("random", "", model.requires_grad_(False), torch.device("cpu"))
    return fti_training.sentences_of(clip, Captions(tuple(range(BATCH)), tuple(SUBJECTS), tuple(ATTRIBUTES)))


def peak(which: str) -> int:
    """Memory peak of a few steps of one kind in a process of its own, in MiB."""
    command = [sys.executable, "-m", "benchmarks.fti_step", which]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(ran.stdout)


def _peak_mib() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss starts from its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure, print, and write the file."""
    model, networks, pixels = problem()
    sentences = constants(model)
    losses = [plain_step(model, networks[0], pixels), our_step(model, networks[1], pixels, sentences)]
    pairs = zip(networks[0].named_parameters(), networks[1].parameters(), strict=True)
    worst = max(float((a.grad - b.grad).abs().max() / a.grad.abs().max()) for (_, a), b in pairs if a.grad is not None)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(REPEATS):
        for name, run in (
            ("plain", lambda: plain_step(model, networks[0], pixels)),
            ("ours", lambda: our_step(model, networks[1], pixels, sentences)),
        ):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    facts = {
        "work": f"FTI4CIR training step, ViT-B/32 size, random weights, batch {BATCH}, float32",
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "times_faster": round(medians["plain"] / medians["ours"], 2),
        "peak_mib": {name: peak(name) for name in ("plain", "ours")},
        "losses": [round(float(loss), 6) for loss in losses],
        "largest_relative_gradient_difference": float(f"{worst:.1e}"),
    }
    folder = Path("reports/bench")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        model, networks, pixels = problem()
        arguments = (model, networks[0], pixels) + (() if sys.argv[1] == "plain" else (constants(model),))
        for _ in range(2):
            (plain_step if sys.argv[1] == "plain" else our_step)(*arguments)
        print(_peak_mib())
    else:
        main()
