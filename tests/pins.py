"""Prints environment.yml: conda's Python, and through pip the very pins of requirements.lock."""

from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
HEAD = """# The pins of requirements.lock for conda; made by `make lock`.
name: searle
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - make
  - pip:
"""


def environment() -> str:
    """The text of environment.yml."""
    return HEAD + "".join(f'      - "{line}"\n' for line in LOCK.read_text().splitlines())


if __name__ == "__main__":
    print(environment(), end="")
