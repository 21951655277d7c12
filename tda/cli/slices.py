"""``tda eval --over``: the quality of methods in slices."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tda.names import Over, Protocol

if TYPE_CHECKING:
    from tda.bench.prepare import Prepared
    from tda.quality import Slice

AskedOver = Annotated[
    Over | None,
    typer.Option(
        "--over",
        help="Quality in slices: by the prompt's length (cut to its last tokens), the position in the continuation, "
        "the documents that share a set, or the kind of text.",
    ),
]
BASES: Mapping[Over, str] = {
    "length": "change: to the whole prompt",
    "position": "change: to the first row",
    "batch": "change: to a set for each row",
    "kind": "recall: protocol all_sparse",
}
"""What stands above a table beside its conditions."""


def sliced_rows(
    over: Over, prepared: "Prepared", names: Sequence[str], protocol: Protocol, *, as_json: bool
) -> list[dict[str, Any]]:
    """A row for each method and slice: the mean losses, and the differences with their 95% intervals over documents.

    Parameters
    ----------
    over : str
        What the slices are of.
    prepared : Prepared
        The model, its documents and its methods.
    names : sequence of str
        What each of its methods is called.
    protocol : str
        As for `tda.score`.
    as_json : bool
        Whether bounds are numbers of their own; else they stand in brackets behind what they bound.
    """
    from tda.quality import slices

    methods = [method for method, _ in prepared.methods]
    found = slices(
        over,
        prepared.model,
        prepared.scored,
        methods,
        protocol=protocol,
        bos=prepared.tokenizer.bos_token_id,
        questions=prepared.questions,
    )
    return [
        {
            "method": names[methods.index(one.method)],
            "sparsity": one.method.sparsity,
            **({"over": over, **one.row()} if as_json else _shown(over, one)),
        }
        for one in found
    ]


def _shown(over: Over, one: "Slice") -> dict[str, Any]:
    """A slice as cells of a table."""
    from tda.web.theme.formatting import interval

    cells = {"dense_nll": one.dense.mean, "nll": one.own.mean, "delta_nll": one.delta, "change": one.change}
    return {
        over: one.value,
        "documents": one.documents,
        "tokens": one.own.tokens,
        "achieved_sparsity": one.own.achieved,
        **{
            name: None if found is None else interval(found, signed=name in ("delta_nll", "change"))
            for name, found in cells.items()
        },
    }
