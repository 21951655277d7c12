"""Stored items: written whole, read back, joined by number."""

from pathlib import Path

from tda.cases import Case
from tda.tasks import Item
from tda.tasks.outputs import items_path, read_items, save_items

ITEMS = [
    Item(0, "Question:\nü\u2028 \U0001f600", "yes", "no", {"acc": 0.0}, 3, 2, (-1.5, float("-inf"))),
    Item(2, "a pair \U0001f600", "yes", "yes", {"acc": 1.0, "acc_norm": 1.0}, 3, 2, (-0.1, -7.25)),
]
CASE = Case(model="a/model", method="tda", sparsity=0.5, prompt_tokens=8, new_tokens=8)


def test_items_come_back(tmp_path: Path) -> None:
    path = items_path(tmp_path, "boolq", CASE)
    save_items(path, ITEMS)
    assert read_items(path) == (ITEMS, [])
    assert path.parent == tmp_path / "items" / "boolq"
    assert path.name.endswith(f"-{CASE.key}.jsonl")
    assert sorted(path.parent.iterdir()) == [path]


def test_cases_have_files_of_their_own() -> None:
    cases = [CASE, CASE.model_copy(update={"sparsity": 0.25}), CASE.model_copy(update={"model": "other"})]
    assert len({items_path(Path(), "boolq", case) for case in cases}) == 3


def test_damaged_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = items_path(tmp_path, "boolq", CASE)
    for damage in ('{"number": 3}', "{", '{"likelihoods": []}', "[1]"):
        save_items(path, ITEMS)
        path.write_text(damage + "\n" + path.read_text())
        items, (problem,) = read_items(path)
        assert items == ITEMS
        assert problem.startswith(f"items/boolq/{path.name}, line 1 skipped: ")
