"""A scratch history with planted changes: real commits of a copy of this package, real extra work.

``python -m tests.planted FOLDER`` makes the repository; `experiments/nightly/proof.py` runs nights over it. Extra work
is products with the model's own weights, as many as make the asked share of a step on this machine.
"""

import functools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("tda", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
MODEL = "shape:25m"

WORK = '''"""Extra work of the planted commits."""

import torch
from torch.nn import functional


def work(ffns, products):
    """Multiply a vector with a part of the first up projection, so many times."""
    weight = ffns[0].up.weight[:96]
    with torch.no_grad():
        for _ in range(products):
            functional.linear(torch.ones(1, weight.shape[1], dtype=weight.dtype), weight)
'''

ATTACHMENT, POLICY = "tda/engine/attachment.py", "tda/engine/policy.py"
# Comments that mark where work is planted: the code around them may change.
EVERY_FORWARD, SPARSE, DENSE, SELECTION = (
    f"        # tests/planted.py: {place}\n"
    for place in ("every forward", "sparse decode", "dense decode", "selection")
)


@dataclass(frozen=True)
class Edit:
    """One change of a file's text."""

    path: str
    old: str
    new: str

    @property
    def undone(self) -> "Edit":
        """The change back."""
        return Edit(self.path, self.new, self.old)

    def apply(self, folder: Path) -> None:
        """Change the file; the old text must be there exactly once."""
        file = folder / self.path
        text = file.read_text()
        assert text.count(self.old) == 1, f"{self.path} has {text.count(self.old)} places like {self.old!r}"
        file.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Expected:
    """What a night must say of a commit: verdict, split and scope; for a drift, the commit at which it begins."""

    verdict: str
    split: str
    scope: str
    since: str | None = None


@dataclass(frozen=True)
class Planted:
    """A commit of the scratch history; `also` are splits that move as well, rightly."""

    subject: str
    edits: tuple[Edit, ...] = ()
    expected: Expected | None = None
    status: str = "measured"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How many products are one percent of a dense decode step, of Griffin's, and of a dense prefill, so many times."""

    decode: float
    griffin: float
    prefill: float
    times: float = 1.0

    @classmethod
    def measured(cls, times: float = 1.0, prompt_tokens: int = 64) -> "Sizes":
        """Measure on this machine what products cost where they will be planted: between a model's own.

        `times` percent of a step, not one, make every plant so many times larger.
        """
        import torch

        import tda
        from tda.engine.phases import decode, prefill
        from tda.families import find_ffns

        model, _ = tda.load_model(MODEL, dtype="bfloat16")
        scope: dict[str, Any] = {}
        exec(WORK, scope)
        ffns, prompt = find_ffns(model), torch.arange(prompt_tokens).view(1, -1)
        found = {}
        dense = tda.Dense(dense_kernel="own")  # as a bench runs it
        with torch.no_grad():
            for name, method in (("decode", dense), ("griffin", tda.Griffin(sparsity=0.5))):
                with tda.attach(model, method):
                    _, cache = prefill(model, prompt)
                    step = functools.partial(decode, model, prompt[:, :1], cache)
                    found[name] = _products_per_percent(step, functools.partial(scope["work"], ffns))
            with tda.attach(model, dense):
                pass_ = functools.partial(prefill, model, prompt)
                found["prefill"] = _products_per_percent(pass_, functools.partial(scope["work"], ffns))
        return cls(**{name: times * products for name, products in found.items()}, times=times)


def _products_per_percent(run: Callable[[], object], work: Callable[[int], None], products: int = 200) -> float:
    """How many products make something a percent slower, with and without them in turn."""
    plain, laden = [], []

    def both_of() -> None:
        work(products)
        run()

    for _ in range(60):
        plain.append(_ms(run))
        laden.append(_ms(both_of))
    alone, both = statistics.median(plain), statistics.median(laden)
    if both <= alone:
        raise RuntimeError("the machine is too busy to measure what extra work costs")
    return alone / 100 / ((both - alone) / products)


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _docs(number: int) -> Planted:
    return Planted(f"Say more in the read-me ({number})")


def _work_in(name: str, products: float) -> str:
    return f"        work({name}, {round(products)})\n"


def _plant(path: str, mark: str, code: str, before: str = "") -> Edit:
    """Code beside a mark, in place of what was planted there before."""
    return Edit(path, before + mark, code + mark)


def history(sizes: Sizes) -> list[Planted]:
    """The commits after the first one, oldest first."""
    only = '        if self.method.name == "griffin":\n    '
    griffin = _plant(POLICY, SPARSE, only + _work_in("self.ffns", 10 * sizes.griffin))
    everything = _plant(ATTACHMENT, EVERY_FORWARD, _in_all(10, sizes, 10 * sizes.prefill))
    again = "            self._load(request, request.choose(self.method, self.ffns))\n"
    selection = _plant(POLICY, SELECTION, f"        for _ in range({round(sizes.times)}):\n{again}")
    threshold = Edit(
        "tda/methods/tda.py", "kept = scores >= cuts.unsqueeze(1)", "kept = scores >= 1.2 * cuts.unsqueeze(1)"
    )
    memory = Edit(
        "tda/kernels/native/ffn.py",
        "        self._descriptions = [self.description]\n",
        "        self._descriptions = [self.description]\n"
        "        self._twins = [linear.weight.detach().clone() for linear in ffn.linears]\n",
    )
    sparser = ("decode", "select", "memory")  # fewer neurons are kept
    broken = Edit("pyproject.toml", "[project]\n", "[project\n")
    crash = Edit("tda/bench/plan.py", "TIMED_METHODS = ", 'raise RuntimeError("planted crash")\nMISSION = ')
    return [
        _docs(1),
        Planted("Griffin checks more in decode", (griffin,), Expected("alarm", "decode", "method")),
        _docs(2),
        Planted("Griffin checks less again", (griffin.undone,), Expected("improvement", "decode", "method")),
        _docs(3),
        Planted("Validate every forward", (everything,), Expected("alarm", "decode", "everything"), also=("prefill",)),
        _docs(4),
        Planted(
            "Validate no forward",
            (everything.undone,),
            Expected("improvement", "decode", "everything"),
            also=("prefill",),
        ),
        Planted("Build differently", (broken,), status="build failed"),
        Planted("Build as before", (broken.undone,)),
        Planted("Dense without its detour", (_dense(sizes).undone,), Expected("improvement", "decode", "dense")),
        _docs(5),
        Planted("Select with care", (selection,), Expected("alarm", "select", "method")),
        _docs(6),
        _docs(7),
        *_drift(sizes),
        _docs(8),
        _docs(9),
        Planted("Simplify the threshold", (threshold,), Expected("alarm", "quality", "method"), also=sparser),
        Planted("Mend the threshold", (threshold.undone,), Expected("improvement", "quality", "method"), also=sparser),
        _docs(10),
        Planted("Keep twins of the weights", (memory,), Expected("alarm", "memory", "method")),
        Planted("Refactor the bench", (crash,), Expected("alarm", "failure", "method"), status="crashed"),
        Planted("Mend the bench", (crash.undone,), Expected("improvement", "failure", "method")),
        _docs(11),
    ]


def _in_all(percent: float, sizes: Sizes, prefill: float = 0) -> str:
    """Work that makes the decode steps of all methods so many percent slower, and prefill by so many products.

    TDA's steps are about as long as Griffin's; the same work would be a larger share of them than of dense's.
    """
    dense, others = round(percent * sizes.decode), round(percent * sizes.griffin)
    decode = f"{dense} if self.method.name == 'dense' else {others}"
    return f"        work(self.ffns, {round(prefill)} if phase == 'prefill' else {decode})\n"


def _dense(sizes: Sizes) -> Edit:
    """Work that only dense decode does, there from the first commit on."""
    return _plant(POLICY, DENSE, _work_in("self.ffns", 10 * sizes.decode))


def _drift(sizes: Sizes, steps: int = 5) -> list[Planted]:
    """Every decode step 2% slower, commit after commit."""
    planted, before = [], ""
    for step in range(1, steps + 1):
        now = _in_all(2 * step, sizes)
        edit = _plant(ATTACHMENT, EVERY_FORWARD, now, before)
        last = step == steps
        expected = Expected("alarm", "decode", "everything", since="Check a little more (1)") if last else None
        planted.append(Planted(f"Check a little more ({step})", (edit,), expected))
        before = now
    return planted


def unchanged(commits: int) -> list[Planted]:
    """Commits that change nothing that runs."""
    return [_docs(number) for number in range(1, commits + 1)]


def build(folder: Path, sizes: Sizes, plants: Sequence[Planted]) -> list[tuple[str, Planted]]:
    """Make the repository; the hash of every commit with what was planted, oldest first."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            large = ("records",) if name == "benchmarks" else ()
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", *large))
        else:
            shutil.copy(source, folder / name)
    (folder / "tda" / "planted.py").write_text(WORK)
    for path in (ATTACHMENT, POLICY):
        with open(folder / path, "a") as file:
            file.write("\n\nfrom tda.planted import work  # noqa: E402\n")
    _dense(sizes).apply(folder)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    first = Planted("Begin")
    made = [(_commit(folder, first.subject), first)]
    for number, planted in enumerate(plants):
        for edit in planted.edits:
            edit.apply(folder)
        if not planted.edits:
            with open(folder / "README.md", "a") as file:
                file.write(f"\nLine {number}.\n")
        made.append((_commit(folder, planted.subject), planted))
    return made


def _commit(folder: Path, subject: str) -> str:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=planter", "-c", "user.email=planter@localhost", "commit", "--quiet", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main(words: Sequence[str]) -> None:
    """Make a scratch history and print its commits."""
    sizes = Sizes.measured()
    for commit, planted in build(Path(words[0]), sizes, history(sizes)):
        print(commit[:10], planted.subject)


if __name__ == "__main__":
    main(sys.argv[1:])
