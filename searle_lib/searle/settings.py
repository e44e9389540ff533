"""What determines phrases, OTI's pseudo-words and φ, with the limits of each value; defaults are the published values.

Importing this needs no torch, so a parameter file can be checked at once.
"""

import pydantic

from searle_lib.store.limits import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, Share


@pydantic.dataclasses.dataclass(frozen=True)
class PhraseSettings:
    """How phrases are sampled; the published values are the defaults."""

    phrases_per_concept: PositiveInt = 256
    max_length: PositiveInt = 35  # tokens, the prompt's included
    temperature: PositiveFloat = 0.5
    no_repeat_ngram: NonNegativeInt = 2
    seed: Seed = 42


@pydantic.dataclasses.dataclass(frozen=True)
class OtiSettings:
    """What determines a pseudo-word; the published values are the defaults."""

    steps: PositiveInt = 350
    learning_rate: PositiveFloat = 2e-2
    weight_decay: NonNegativeFloat = 0.01
    top_k: PositiveInt = 15
    lambda_cos: NonNegativeFloat = 1.0
    lambda_gpt: NonNegativeFloat = 0.5
    ema_decay: Share = 0.99
    seed: Seed = 42


@pydantic.dataclasses.dataclass(frozen=True)
class PhiSettings:
    """What determines φ; the published values are the defaults."""

    epochs: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    batch_size: PositiveInt = 256
    dropout: Share = 0.5
    lambda_distil: NonNegativeFloat = 1.0
    lambda_gpt: NonNegativeFloat = 0.75
    temperature: PositiveFloat = 0.25
    top_k: PositiveInt = 150
    seed: Seed = 42
