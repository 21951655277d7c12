"""What the tests of the documents read from Markdown: blocks of code, commands, prose, links, headings."""

import json
import re
import shlex
import shutil
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

from tda.models.reference import WEIGHTS
from tda.reference.text import documents

GLOSSARY = ROOT / "docs" / "glossary.md"
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = (README, CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md")))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block."""
        return [words for line in self.text.splitlines() if (words := shlex.split(line, comments=True))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page, of these languages or all."""
    found = [Block(*match.groups()) for match in FENCED.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def prose(page: Path) -> str:
    """A page without blocks of code and tables that a program writes."""
    return GENERATED.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))


def spans(page: Path) -> list[str]:
    """Code within sentences."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """Targets of links and images that are not of the web."""
    return [one for one in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not one.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """What a link may name of a page after its #: the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one)) for one in headings)
    return {one.lower().replace(" ", "-") for one in kept}


def replaced_words() -> list[str]:
    """The glossary's words that stand nowhere: its column "not"."""
    rows = [line.split("|") for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    words = [word.strip() for row in rows[1:] for word in row[3].split(",") if word.strip()]
    assert len(words) > 10
    return words


def make_examples(folder: Path) -> None:
    """Make what the examples name: a model in `path/to/model`, and 40 documents in `my.jsonl`."""
    shutil.copytree(WEIGHTS / "swiglu", folder / "path" / "to" / "model")
    texts = [one.text for one in islice(documents("evaluation", min_bytes=1600), 40)]
    (folder / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
