"""What a user may ask of a measurement: one schema for the command line, Python, TOML files and commits."""

import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator

from tda.cases import Frozen, MethodSpec, first_problem, unsigned_zero
from tda.names import Dtype, Execution, Preset, Protocol


def _sparsity(value: Any) -> float:
    try:
        sparsity = float(value)
    except (TypeError, ValueError):
        sparsity = math.nan
    if not 0 <= sparsity < 1:
        raise ValueError(f"a sparsity is the fraction of neurons left out, 0 <= s < 1; got {value!r}")
    return unsigned_zero(sparsity)


Sparsity = Annotated[float, BeforeValidator(_sparsity)]
AtLeastOne = Annotated[int, Field(ge=1)]


def _option(default: Any, help: str, *flags: str, metavar: str | None = None, **limits: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"flags": list(flags), "metavar": metavar}, **limits)


def _model(name: str) -> str:
    """A folder has one name, with and without a slash at its end."""
    return name.rstrip("/") or name


class BenchConfig(Frozen):
    """Options of a measurement. None, or an empty list, leaves a choice to the preset.

    Methods without a sparsity of their own are crossed with the sparsities.
    """

    preset: Preset = _option("default", "The matrix; other options change it.")
    models: tuple[Annotated[str, AfterValidator(_model)], ...] = _option(
        (), "ref:NAME, shape:NAME, a folder or a hub id; repeatable.", "--model", "-m", metavar="NAME_OR_PATH"
    )
    methods: tuple[MethodSpec, ...] = _option(
        (), "A method (see `tda methods`); repeatable.", "--method", metavar="NAME[:OPTION=VALUE,…]"
    )
    sparsities: tuple[Sparsity, ...] = _option(
        (), "Fraction of neurons left out, 0 <= s < 1; repeatable.", "--sparsity", "-s"
    )
    prompt_tokens: AtLeastOne | None = _option(None, "Tokens of a prompt.")
    new_tokens: Annotated[int, Field(ge=2)] | None = _option(None, "Tokens decoded after it.")
    batch: AtLeastOne | None = _option(None, "Requests served together.")
    rounds: Annotated[int, Field(ge=0)] | None = _option(
        None, "Timed rounds of a process; under 5 there is no interval, and 0 measures quality alone."
    )
    budget: str | None = _option(
        None, "All of it ends by then: 50s, 5m, none. Else the preset's (default: 5m).", metavar="TIME"
    )
    precision: str | None = _option(
        None, "A case gets no more rounds when its speed-up is known within this: 2%, none.", metavar="FRACTION"
    )
    documents: AtLeastOne | None = _option(None, "Documents scored.")
    calibration_documents: AtLeastOne | None = _option(None, "Documents that thresholds are made from.")
    text: Path | None = _option(
        None, 'JSONL file with {"text": ...} lines to evaluate on; else the built-in stream.', metavar="FILE"
    )
    calibration_text: Path | None = _option(
        None, "JSONL file to calibrate on; else the built-in stream.", metavar="FILE"
    )
    tasks: tuple[str, ...] = _option(
        (),
        "A task of lm-eval, or several: hellaswag,piqa; repeatable. Needs the extra eval.",
        "--task",
        metavar="NAME[,NAME]",
    )
    task_data: Path | None = _option(
        None, "Folder whose NAME.jsonl take the place of the hub's data sets.", metavar="DIR"
    )
    items: AtLeastOne | None = _option(None, "Items of a task at most, the first ones; else all.")
    shots: Annotated[int, Field(ge=0)] | None = _option(
        None, "Examples before each question; else the task's own number."
    )
    chat_template: bool = _option(False, "Apply the tokenizer's chat template to tasks.")
    protocol: Protocol | None = _option(
        None, "Which tokens are computed sparsely, as for tda.score; tasks: all_sparse unless named."
    )
    dtype: Dtype | None = _option(None, "Type of weights and activations.")
    device: str | None = _option(None, "cpu, cuda, cuda:1 ...")
    execution: Execution | None = _option(None, "How methods run; auto takes the fastest right way.")
    seed: int | None = _option(None, "Seed of random methods, documents and the order of cases.")
    revision: str | None = _option(None, "Branch, tag or commit of hub models; the commit is recorded.")
    trust_remote_code: bool = _option(False, "Let a hub repository bring code that runs on this machine.")

    @field_validator("tasks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Several names in one word."""
        words = [value] if isinstance(value, str) else value or ()
        names = [name.strip() for word in words for name in str(word).split(",")]
        if not all(names):
            raise ValueError(f"a task has a name, and several are apart by a comma; got {', '.join(map(repr, words))}")
        return tuple(names)

    @field_validator("models", "methods", "sparsities", "tasks", mode="wrap")
    @classmethod
    def _distinct(cls, value: Any, read: Callable[[Any], tuple[Any, ...]]) -> tuple[Any, ...]:
        """One alone, or several; each counts once."""
        several = [value] if isinstance(value, str | float | int | MethodSpec) else value
        return tuple(dict.fromkeys(read(() if several is None else several)))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "BenchConfig":
        """Options by name, checked.

        Raises
        ------
        ValueError
            If one is unknown or has a wrong value; the sentence names it.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise ValueError(first_problem(error, cls)) from None

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON holds it; `of` takes it back."""
        found = self.model_dump(mode="json", exclude_defaults=True, exclude={"methods"})
        return {**found, **({"methods": [str(spec) for spec in self.methods]} if self.methods else {})}

    def arguments(self) -> str:
        """The same as words of a command line."""
        words: list[str] = []
        for name, value in self.options().items():
            values = value if isinstance(value, list) else [value]
            words += [flag_of(name)] if value is True else [w for one in values for w in (flag_of(name), str(one))]
        return shlex.join(words)


def flag_of(name: str) -> str:
    """How the command line calls an option, e.g. ``--method`` for ``methods``."""
    flags: list[str] = BenchConfig.model_fields[name].json_schema_extra["flags"]  # type: ignore[index, assignment]
    return flags[0] if flags else f"--{name.replace('_', '-')}"
