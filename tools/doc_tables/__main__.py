"""The command of this package: fill the tables, or fail where one is stale."""

import argparse

from tda.results import write_whole
from tools import doc_tables
from tools.doc_tables.pages import PAGES, filled, stale
from tools.doc_tables.source import ROOT


def main() -> None:
    """Fill the tables, or fail where one is stale."""
    parser = argparse.ArgumentParser(
        description=doc_tables.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    try:
        if options.check:
            told_stale = stale()
            if told_stale:
                how = "`python -m tools.doc_tables` writes the tables; sentences are written by hand"
                raise SystemExit("\n".join([*told_stale, how]))
            return
        for page in PAGES:
            text = (ROOT / page).read_text(encoding="utf-8")
            if filled(text, page) != text:
                write_whole(ROOT / page, filled(text, page))
                print(f"{page}: written")
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
