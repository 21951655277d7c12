"""What stays of old profiles: `python -m profiles.retention` deletes traces, never records and tables.

The commits that were profiled last keep their traces, as many as the cases' file says, and so do both commits of every
alarm that a night of the history raised, where the shelf lies in a history.
"""

import argparse
import sys
from pathlib import Path

from tda.regression.config import load_profiles
from tda.regression.profiles import Shelf, alarmed
from tda.regression.units import History

CASES = Path(__file__).resolve().with_name("cases.toml")
OUT = Path("profiles/out")


def thin(shelf: Shelf, newest: int) -> list[str]:
    """Apply the rule to a shelf; the commits whose traces went."""
    return shelf.thin(newest, alarmed(History(shelf.folder.parent)))


def main() -> int:
    """Thin a shelf by hand."""
    parser = argparse.ArgumentParser(prog="python -m profiles.retention", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="the shelf")
    parser.add_argument("--cases", type=Path, default=CASES, metavar="TOML", help="says how many commits keep traces")
    options = parser.parse_args()
    try:
        thinned = thin(Shelf(options.out), load_profiles(options.cases).keep_traces)
    except (ValueError, OSError) as error:
        print(f"profiles: {error}", file=sys.stderr)
        return 2
    print(f"traces of {len(thinned)} commits deleted; their tables stay")
    return 0


if __name__ == "__main__":
    sys.exit(main())
