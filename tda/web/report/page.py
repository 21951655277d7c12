"""The page: sections rendered into one HTML file that asks nothing of a network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment
from markupsafe import Markup

from tda.web.navigation import NavigationEntry
from tda.web.report.gather import Group
from tda.web.report.items import tasks_side_by_side
from tda.web.report.sections import SECTIONS, Block, Content, OfEachGroup, RenderAll
from tda.web.report.verdicts import CAUTION, explained, verdict_blocks
from tda.web.theme import pages
from tda.web.theme.figures import inline
from tda.worth import DEFAULT, WorthRule


def environment() -> Environment:
    """Templates of the report."""
    return pages.environment("tda.web.report")


def items_page(groups: Sequence[Group]) -> str | None:
    """The page of items side by side; None where no answers are kept."""
    sheets = tasks_side_by_side(groups)
    return environment().get_template("items.html").render(sheets=sheets) if sheets else None


@dataclass
class ReportPage:
    """Renders groups of records, judged by a rule; `files` holds the figures' files by name afterwards."""

    groups: Sequence[Group]
    rule: WorthRule = DEFAULT
    files: dict[str, bytes] = field(default_factory=dict)
    _environment: Environment = field(default_factory=environment)

    def render(self) -> str:
        """The page's HTML."""
        of_each = [entry for entry in SECTIONS.entries() if isinstance(entry.render, OfEachGroup)]
        of_all = [entry for entry in SECTIONS.entries() if entry not in of_each]
        parts = [
            {
                "group": group,
                "verdicts": verdict_blocks(group.settings, self.rule),
                "sections": list(self._sections([group], of_each)),
            }
            for group in self.groups
        ]
        ending = list(self._sections(self.groups, of_all))
        return self._environment.get_template("page.html").render(
            parts=parts, ending=ending, rule=f"{explained(self.rule)} {CAUTION}"
        )

    def _sections(
        self, groups: Sequence[Group], sections: Sequence[NavigationEntry[RenderAll]]
    ) -> Iterator[dict[str, object]]:
        for entry in sections:
            content = entry.render(groups)
            if content is not None:
                slug = f"{entry.name}-{groups[0].number}"
                yield {
                    "id": slug,
                    "entry": entry,
                    "lead": content.lead,
                    "blocks": [self._block(f"{slug}-{n}", block) for n, block in enumerate(content.blocks, start=1)],
                    "extra": self._extra(content, slug),
                }

    def _block(self, slug: str, block: Block) -> dict[str, object]:
        pictures = []
        for plot in block.plots:
            stem = f"{slug}-{plot.name}"
            variant = None if plot.variant is None else block.variants.index(plot.variant)
            svg = inline(plot.figure, stem, self.files)
            pictures.append({"stem": stem, "svg": svg, "caption": plot.caption, "variant": variant})
        return {"id": slug, "block": block, "pictures": pictures}

    def _extra(self, content: Content, slug: str) -> Markup:
        if content.template is None:
            return Markup("")
        return Markup(self._environment.get_template(content.template).render(id=slug, **content.values))
