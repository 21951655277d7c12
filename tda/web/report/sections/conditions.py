"""Under which conditions the numbers were taken, and what speaks against them."""

from collections.abc import Iterable

from tda.records import Record
from tda.statistics import MIN_GROUPS
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.sections import Content, section
from tda.web.report.setting import Setting
from tda.web.report.trust import raised_flags
from tda.web.report.verdicts import noise
from tda.web.theme.formatting import counted, number, size


@section("conditions", 10, "Conditions")
def conditions_section(group: Group) -> Content:
    """Machine, versions, commit, load, noise floors, flags, and the options of every method."""
    cases = [case for setting in group.settings for case in setting.cases]
    values = {
        "facts": [*_machine(group), *_run(group)],
        "settings": [_setting(setting) for setting in group.settings],
        "methods": _methods(cases),
        "flags": list(raised_flags(cases).items()),
        "problems": group.problems,
        "left_out": group.left_out,
        "commands": list(dict.fromkeys(item.command for item in group.left_out)),
    }
    return Content(template="conditions.html", values=values)


def _machine(group: Group) -> list[tuple[str, str]]:
    machine = group.machine
    cache = f", {size(machine.cache_bytes)} last-level cache" if machine.cache_bytes else ""
    gpu = f"{machine.gpu}, driver {machine.driver or 'unknown'}" if machine.gpu else "none used"
    return [
        ("CPU", f"{machine.cpu}, {machine.cores_told}, {counted(machine.threads, 'thread')}{cache}"),
        ("Memory", size(machine.memory_bytes)),
        ("GPU", gpu),
        ("System", machine.system),
        ("Products", machine.products or "not recorded"),
        (
            "Versions",
            f"tda {machine.tda}, torch {machine.torch}, transformers {machine.transformers}, Python {machine.python}",
        ),
    ]


def _run(group: Group) -> list[tuple[str, str]]:
    started = sorted(record.started for record in group.lines)
    stream = _values(group.lines, "stream_gb_per_s")
    load = [value for record in group.lines if isinstance(value := record.conditions.get("load_average"), float)]
    return [
        ("Measured", f"{_moment(started[0])} to {_moment(started[-1])}"),
        ("Load average (1 min)", _range(load)),
        ("Kernels", "; ".join(_texts(group.lines, "kernels")) or "not recorded"),
        ("Generation", "; ".join(_texts(group.lines, "generation")) or "not recorded"),
        ("Inputs", "; ".join(dict.fromkeys(_inputs(record) for record in group.lines))),
        ("Stream bandwidth", f"{_range(stream)} GB/s over rounds" if stream else "not measured"),
    ]


def _inputs(record: Record) -> str:
    """Weights, texts and state of the code, by digest."""
    inputs = record.inputs
    facts = {
        "weights": inputs.weights,
        "hub commit": inputs.revision,
        "text": inputs.text and f"{inputs.text_name} {inputs.text}",
        "documents": inputs.documents,
        "uncommitted change": inputs.change,
    }
    text = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"{record.case.model}: {text or 'not recorded'}"


def _texts(lines: Iterable[Record], name: str) -> list[str]:
    """Different values of a condition."""
    return list(dict.fromkeys(value for line in lines if isinstance(value := line.conditions.get(name), str)))


def _moment(started: str) -> str:
    return started.replace("T", " ").replace("+00:00", " UTC")


def _values(lines: Iterable[Record], name: str) -> list[float]:
    return [value for record in lines for value in record.samples(name)]


def _range(values: list[float]) -> str:
    return f"{number(min(values), 2)} to {number(max(values), 2)}" if values else "not recorded"


def _setting(setting: Setting) -> dict[str, str]:
    return {
        "title": setting.title,
        "rounds": f"{setting.rounds}, {setting.processes}" if setting.rounds else "not timed",
        "documents": str(setting.documents) if setting.documents else "not scored",
        "noise": _noise(setting),
    }


def _noise(setting: Setting) -> str:
    if not setting.timed:
        return "–"
    floor = setting.noise_floor
    if floor is not None:
        return noise(floor)
    if setting.rounds < MIN_GROUPS:
        return f"fewer than {MIN_GROUPS} rounds: no interval"
    return "no A/A control"


def _methods(cases: Iterable[ComparedCase]) -> list[tuple[str, str]]:
    """Options of each method as they ran; several values of one option are all named."""
    held: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        given = dict(case.record.case.options)
        quantization = given.pop("quantization", None)
        name = case.method if quantization is None else f"{case.method} on {quantization} weights"
        options = held.setdefault(name, {})
        for name, value in given.items():
            if str(value) not in options.setdefault(name, []):
                options[name].append(str(value))
    return [
        (method, ", ".join(f"{name} = {' or '.join(values)}" for name, values in options.items()))
        for method, options in held.items()
        if options
    ]
