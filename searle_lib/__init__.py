"""Zero-shot composed image retrieval: SEARLE, SEARLE-OTI and FTI4CIR, as a library.

    import searle_lib

    clip, phi = searle_lib.load_searle("ViT-B/32")
    image = searle_lib.embed(clip, "accordion.jpg")
    query = searle_lib.encode_with_pseudo_words(clip, ["a photo of $ that is red"], phi(image))

Names are imported when they are first used, so `import searle_lib` takes no time.
"""

import importlib

__version__ = "0.1.0"
_HOME = {
    "load_searle": "pseudo_words",
    "embed": "pseudo_words",
    "encode_with_pseudo_words": "pseudo_words",
    "load_clip": "backbone.model",
    "search": "ranking",
    "open_study": "study.workspace",
    "load_study": "study.workspace",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"searle_lib has no {name}; it has {', '.join(_HOME)}.")
    return getattr(importlib.import_module(f"searle_lib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
