"""What a number is of: a method with its options, a case, and the inputs; and what people call a case."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

Scalar = bool | int | float | str | None
"""A value of a method's option."""
Control = Literal["a_a", "cross_domain"]
"""The second dense run of a round; a selection that comes from another document's prompt."""
CONTROLS: Mapping[Control, str] = {"a_a": "A/A control", "cross_domain": "another kind's prompt"}
_WORDS: Mapping[str, Scalar] = {"true": True, "false": False, "none": None}
_FIELDS = {
    "batch": "batch {}",
    "prompt_tokens": "{} prompt tokens",
    "new_tokens": "{} new tokens",
    "dtype": "{}",
    "device": "{}",
    "execution": "execution {}",
    "seed": "seed {}",
    "layer_sparsity_from": "layers as {}",
}
"""Fields that may tell one case from another, and how they are said."""

_USUAL: Mapping[str, tuple[Scalar, ...]] = {
    "rows": ("per_row",),
    "statistic": ("contribution",),
    "source": ("z",),
    "min_keep": (0.0,),
    "max_keep": (1.0,),
    "allocation": ("uniform",),
    "cett": (None,),
    "weight": (0.5,),
    "step": (0.05,),
    "glass.statistic": ("relative",),
    "teal.allocation": ("greedy",),
    "dense_kernel": ("own", "torch"),
}
"""Values of options, or of one method's, that need no words; another option's is the case's own seed."""


class Frozen(BaseModel):
    """A part of a record: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def digest_of(value: object, length: int = 16) -> str:
    """Hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def first_problem(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """The first problem of a validation in a sentence: where, what came, and what is accepted."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden" and kind is not None:
        return f"unknown option {where!r}; known: {', '.join(kind.model_fields)}"
    problem = first["msg"].removeprefix("Value error, ")
    came = first["input"]
    told = f"; got {came!r}" if isinstance(came, str | int | float) and f"got {came!r}" not in problem else ""
    return f"{where}: {problem}{told}" if where else f"{problem}{told}"


def _word(text: str) -> str:
    if not text or set(text) & set(":,=") or text != text.strip():
        raise ValueError(
            f"{text!r} cannot stand in a method's spec: it is empty, holds ':', ',' or '=', or ends in spaces"
        )
    return text


def _value(value: Scalar) -> Scalar:
    """An option's value as its printed form is read: a whole number is the same one with and without a point."""
    read = _scalar(_word(_printed(value)))
    if read != value:
        raise ValueError(f"{value!r} cannot stand in a method's spec: it would be read as {read!r}")
    return read


def unsigned_zero(value: float) -> float:
    """-0.0 as 0.0: they are equal, and printed unlike."""
    return value + 0.0


Word = Annotated[str, AfterValidator(_word)]
Options = dict[Word, Annotated[Scalar, AfterValidator(_value)]]
"""A method's options by name."""


class MethodSpec(Frozen):
    """A method by its name with options, as ``tda:sparsity=0.5,statistic=max``; those not given are the defaults."""

    name: Word
    options: Options = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _parsed(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, text: str) -> "MethodSpec":
        """Read ``NAME[:OPTION=VALUE,…]``.

        Raises
        ------
        ValueError
            If the text has another form.
        """
        try:
            return cls(**_parsed(text))
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None

    def __str__(self) -> str:
        options = ",".join(f"{name}={_printed(value)}" for name, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.options.items())))


def _parsed(text: str) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    options: dict[str, Scalar] = {}
    for part in rest.split(",") if colon else ():
        option, equals, value = (word.strip() for word in part.partition("="))
        if not (option and equals and value) or option in options:
            raise ValueError(f"a method is NAME or NAME:OPTION=VALUE,…, each option once; got {text!r}")
        options[option] = _scalar(value)
    return {"name": name.strip(), "options": options}


def _scalar(text: str) -> Scalar:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return int(number) if number == int(number) else number
    return text


def _printed(value: Scalar) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


class Case(Frozen):
    """One cell of a matrix: a model, a method with its options, and the sizes of the request."""

    model: str
    method: str
    options: Options = Field(default_factory=dict)
    sparsity: Annotated[float, AfterValidator(unsigned_zero)] | None = Field(
        default=0.0, ge=0, lt=1, description="fraction of neurons to leave out; null where an error level is set"
    )
    control: Control | None = None
    layer_sparsity_from: str | None = Field(
        default=None, description="the model whose achieved sparsity per layer is left out here, too"
    )
    execution: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = Field(default=1, ge=1)
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=2)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _from_older(cls, value: Any) -> Any:
        """Until version 2 of a record, control and layers stood among the method's options."""
        told = value.get("options") if isinstance(value, dict) else None
        if not isinstance(told, dict) or not {"selection_from", "layer_profile"} & told.keys():
            return value
        options = dict(told)
        moved: dict[str, Any] = {"layer_sparsity_from": options.pop("layer_profile", None)}
        if options.pop("selection_from", None):
            moved["control"] = "cross_domain"
        return {**value, **moved, "options": options}

    @property
    def key(self) -> str:
        """Hash that is equal for equal cases."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def setting(self) -> str:
        """Hash of everything but the method, its control and execution: cases that may be compared."""
        method = {"method", "options", "sparsity", "control", "layer_sparsity_from", "execution"}
        return digest_of(self.model_dump(mode="json", exclude=method))

    @property
    def spec(self) -> MethodSpec:
        """The method with its options, the sparsity among them."""
        dial = {} if self.sparsity is None or self.method == "dense" else {"sparsity": self.sparsity}
        return MethodSpec(name=self.method, options={**dial, **self.options})

    @property
    def is_baseline(self) -> bool:
        """Whether ratios are taken to it: dense, and not its A/A control."""
        return self.method == "dense" and self.control is None

    def __hash__(self) -> int:
        return hash((self.model, self.method, self.sparsity, frozenset(self.options.items()), self.batch, self.control))

    def __str__(self) -> str:
        return describe(self)


def describe(case: Case, among: Iterable[Case] = (), *, sparsity: bool = True, model: bool = True) -> str:
    """What people call a case, e.g. ``"griffin 0.5 on shape:25m"`` or ``"tda 0.5 (statistic=max) on ref:swiglu"``.

    Nothing reads it back: a case itself is what is compared.

    Parameters
    ----------
    case : Case
        The case.
    among : iterable of Case
        Those that it must be told from: what differs from another one of its method and model is named, too, beside
        options that are not as usual.
    sparsity, model : bool
        Whether these are named.
    """
    alike = [other for other in among if (other.method, other.model) == (case.method, case.model)]
    words = [CONTROLS[case.control]] if case.control is not None else []
    words += _telling(case, alike)
    dial = _dial(case, alike) if sparsity else ""
    brackets = f" ({', '.join(words)})" if words else ""
    return f"{case.method}{dial}{brackets}" + (f" on {case.model}" if model else "")


def _dial(case: Case, alike: Sequence[Case] = ()) -> str:
    """The sparsity in three digits, or in full where another one would read the same."""
    short = "" if case.method == "dense" or case.sparsity is None else f" {case.sparsity:.3g}"
    is_shared = any(other.sparsity != case.sparsity and _dial(other) == short for other in alike)
    return f" {case.sparsity}" if is_shared and case.sparsity is not None else short


def _telling(case: Case, alike: Sequence[Case]) -> list[str]:
    """Unusual options, and what differs.

    An option of none is told beside those without it only: beside others, these tell theirs.
    """
    options = {
        name: value
        for name, value in case.options.items()
        if value not in _USUAL.get(f"{case.method}.{name}", _USUAL.get(name, (case.seed,)))
        or any(name not in other.options if value is None else other.options.get(name) != value for other in alike)
    }
    words = [f"{name}={_printed(value)}" for name, value in options.items()]
    return words + requests_apart(case, alike, without=[name for name in options if name in _FIELDS])


def requests_apart(case: Case, among: Iterable[Case], *, without: Collection[str] = ()) -> list[str]:
    """What in the request of a case, its sizes say, differs from others, in words."""
    others = list(among)
    fields = {name: getattr(case, name) for name in _FIELDS if name not in without}
    return [
        _FIELDS[name].format(value)
        for name, value in fields.items()
        if value is not None and any(getattr(other, name) != value for other in others)
    ]


UNTOLD = "text not told"
"""What people call inputs of which nothing is told."""


class Inputs(Frozen):
    """What a result was taken on, by digest: only what is equal in all of them is the same thing measured twice.

    Null is what a result does not depend on, or what an older record did not tell.
    """

    text: str | None = Field(default=None, description="digest of the evaluation text")
    text_name: str | None = None
    text_bytes: int | None = None
    documents: str | None = Field(default=None, description="digest of the evaluated documents' tokens")
    calibration: str | None = Field(default=None, description="digest of the tokens that thresholds were made from")
    weights: str | None = Field(default=None, description="digest of weights and configuration; null for random ones")
    revision: str | None = Field(default=None, description="commit of a hub model")
    change: str | None = Field(default=None, description="digest of the uncommitted change of the code that ran")
    plug_in: str | None = Field(default=None, description="distribution and version of a method that is not built in")

    def __str__(self) -> str:
        return f"{self.text_name or 'text'} {self.setting[:6]}" if self.setting else UNTOLD

    @property
    def key(self) -> str:
        """Hash of what must be equal for results to be the same."""
        return digest_of([self.data, self.change, *filter(None, [self.plug_in])])

    @property
    def calibrated(self) -> str:
        """What stands behind the name of a case that was calibrated in several ways."""
        return f" [calibration {(self.calibration or 'not told')[:8]}]"

    def unlike(self, now: "Inputs") -> list[str]:
        """In what these inputs differ from those of now, in words."""
        words = {
            "text": f"another text ({self.text_name} then, {now.text_name} now)",
            "documents": "other documents",
            "weights": "other weights or another configuration of the model",
            "calibration": "another calibration",
            "change": "another uncommitted change of the code",
            "plug_in": "another version of the plug-in that the method is of",
        }
        return [word for name, word in words.items() if getattr(self, name) != getattr(now, name)]

    @property
    def data(self) -> str:
        """The same without the state of the code: equal for a series across commits; empty where nothing is told."""
        told = [self.text, self.documents, self.weights, self.calibration]
        return digest_of(told) if any(told) else ""

    @property
    def setting(self) -> str:
        """Hash of what must be equal for cases to be compared: calibration is the method's own affair."""
        told = [self.text, self.documents, self.weights]
        return digest_of(told) if any(told) else ""


def taken_for(data: str, known: Iterable[str]) -> str:
    """Which of a case's known inputs some inputs are: the same ones, or where one side tells nothing, the only ones.

    Records of before version 3 tell no inputs; without this rule a series would end there.
    """
    known = set(known)
    told = known - {""}
    if not data and len(told) == 1:
        return told.pop()
    return "" if known == {""} else data
