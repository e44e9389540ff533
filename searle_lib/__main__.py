"""The command line: `python -m searle_lib run params/mini.yaml`."""

import argparse
import sys
from pathlib import Path

from searle_lib import study


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when all went well, 1 with one sentence on standard error when not."""
    parser = argparse.ArgumentParser(prog="python -m searle_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a study's notebooks in order")
    run.add_argument("params", type=Path, help="the study's parameter file, such as params/mini.yaml")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="NOTEBOOK", help="run this notebook alone, such as 06_retrieval")
    which.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start from this notebook, such as 03_oti")
    run.add_argument("-p", dest="overrides", action="append", metavar="NAME=VALUE", help="change one parameter")
    given = parser.parse_args(arguments)
    try:
        index = study.run(given.params, given.only, given.first, given.overrides)
    except (study.Stopped, ValueError, FileNotFoundError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    if given.only in (None, "07_results"):
        study.main_table(index.parent)
    print(f"\n{index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
