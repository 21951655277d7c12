"""Pages whose blocks hold the tables, and what on them is stale."""

import re
from pathlib import Path

import tools.doc_tables.studies  # noqa: F401  # its tables are in the list when it was imported
from experiments.reference import table
from tools.doc_tables.reference import phrases
from tools.doc_tables.source import ROOT, TABLES

PAGES = ("README.md", "docs/results/curve.md", "docs/results/priors.md", "docs/results/quality.md",
         "docs/results/reference-models.md", "docs/guide/sweep.md")  # fmt: skip
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, page: str = "a page") -> str:
    """A page whose blocks hold what the records say.

    Raises
    ------
    ValueError
        If a block has no end or a table is unknown.
    """
    if text.count("<!-- table:") != len(BLOCK.findall(text)):
        raise ValueError(f"{page}: a block has no <!-- end -->, or the name of its table is malformed")

    def fill(block: re.Match[str]) -> str:
        begin, name, end = block.groups()
        if name not in TABLES:
            raise ValueError(f"{page}: no table is called {name!r}; there are {', '.join(TABLES)}")
        heads, rows = TABLES[name]()
        lines = table(list(heads), [f"| {' | '.join(row)} |" for row in rows])
        return f"{begin}\n{lines}\n{end}"

    return BLOCK.sub(fill, text)


def stale(root: Path = ROOT) -> list[str]:
    """What on the pages is not what the records say: of each page the first line of a table, and sentences."""
    found = []
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        wanted = filled(text, page)
        if wanted != text:
            lines = zip(text.splitlines(), wanted.splitlines(), strict=False)
            old, new = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
            found.append(f"{page} holds\n  {old}\nwhere the records say\n  {new}")
        prose = " ".join(text.split())
        found += [f"{page} must say\n  {phrase}" for phrase in phrases().get(page, []) if phrase not in prose]
    return found
