"""What determines FTI4CIR's network, with the limits of each value; defaults are the published values.

Importing this needs no torch, so a parameter file can be checked at once.
"""

from typing import Literal

import pydantic

from searle_lib.store.limits import NonNegativeFloat, PositiveFloat, PositiveInt, Seed, Share

TERMS = ("contrastive", "orthogonality", "subject", "attribute", "whole")


@pydantic.dataclasses.dataclass(frozen=True)
class Fti4CirSettings:
    """What determines the network; the published values are the defaults."""

    epochs: PositiveInt = 60
    learning_rate: PositiveFloat = 4e-5
    drop_epoch: PositiveInt = 10  # after it the rate is a tenth
    weight_decay: NonNegativeFloat = 0.01
    batch_size: PositiveInt = 256
    dropout: Share = 0.5
    temperature: PositiveFloat = 0.20
    lambda_regularisation: NonNegativeFloat = 1.4
    words: Literal["both", "subject", "attributes"] = "both"  # an ablation: subject or attributes alone
    without: Literal[("", *TERMS)] = ""  # an ablation: a loss term to drop
    seed: Seed = 42
