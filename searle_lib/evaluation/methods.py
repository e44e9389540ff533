"""The methods that a study compares: each method's composer, and the notebook that it needs.

A new method is a composer class and a line here. The table imports no composer, so a run can be planned without torch.
"""

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        composer: its composer's class, as "module:class" below searle_lib.
        needs: the notebook that makes its words or network, "" if it needs none.
    """

    composer: str
    needs: str = ""

    def composer_class(self) -> type:
        """Return the composer's class."""
        module, _, name = self.composer.partition(":")
        return getattr(importlib.import_module(f"searle_lib.{module}"), name)


METHODS = {
    "Image-only": Method("evaluation.composers:ImageOnly"),
    "Text-only": Method("evaluation.composers:TextOnly"),
    "Image+Text": Method("evaluation.composers:ImageAndText"),
    "SEARLE": Method("evaluation.composers:Searle", needs="04_phi"),
    "SEARLE-OTI": Method("evaluation.composers:SearleOti", needs="03_oti"),
    "FTI4CIR": Method("evaluation.composers:Fti4CirQueries", needs="05_fti4cir"),
}
