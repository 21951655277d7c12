"""Profiles of commits: what their difference names, how they are captured and kept, and what stays of old ones."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.cases import Inputs
from tda.changes.builds import Build
from tda.config import BenchConfig
from tda.history.nights import History, Unit
from tda.history.profiles import ACCOUNT, ProfileComparison, ProfileStore, StoredProfile, alarmed, read_stores
from tda.logs import handled
from tda.nightly.config import load_profiles
from tda.nightly.explain import headline
from tda.nightly.profiling import ProfileRequest, capture
from tda.profiler.difference import ProfileChange, difference, phase_differences, telling
from tda.profiler.records import PYTHON, KernelRow, Profile
from tda.profiler.store import KERNELS, MODULES, RECORD, TRACE
from tests import nights, planted, profiles
from tests.profiles import profile, row

ROOT = Path(__file__).resolve().parent.parent
A, B, C = ("a" * 40, "b" * 40, "c" * 40)
MM, HEAD = (("decode", part, "aten::mm", "aten::mm") for part in ("ffn", "head"))


# The difference.


def processes(count: int = 2, *, noise: float = 0.01, first: int = 0, **told: object) -> list[Profile]:
    """Profiles of one commit from several processes."""
    return [profile("griffin", seed=first + number, noise=noise, **told) for number in range(count)]  # type: ignore[arg-type]


def key(change: ProfileChange) -> tuple[str, str, str, str]:
    return change.phase, change.part, change.op, change.kernel


rows = st.builds(
    row,
    st.sampled_from(("prefill", "decode", "gather")),
    st.sampled_from(("ffn", "attention", "new")),
    st.sampled_from(("aten::mm", "aten::add", "")),
    st.sampled_from(("aten::mm", "kernel", PYTHON)),
    st.floats(0.001, 5.0),
)
sides = st.lists(rows, max_size=4, unique_by=lambda one: (one.phase, one.part, one.op, one.kernel))


@given(sides, sides, st.integers(1, 3), st.integers(1, 3))
def test_shares_sum_to_one(old: list[KernelRow], new: list[KernelRow], before: int, after: int) -> None:
    changes = difference(processes(before, extra=old), processes(after, first=9, extra=new))
    for phase in dict.fromkeys(change.phase for change in changes):
        assert sum(change.share for change in changes if change.phase == phase) == pytest.approx(1, abs=1e-6)


@given(sides, sides)
def test_a_difference_reversed_is_its_opposite(old: list[KernelRow], new: list[KernelRow]) -> None:
    before, after = processes(extra=old), processes(first=9, extra=new)
    mirrored = {"appeared": "vanished", "vanished": "appeared", "grew": "shrank", "shrank": "grew", "same": "same"}
    there, back = ({key(change): change for change in made}
                   for made in (difference(before, after), difference(after, before)))  # fmt: skip
    assert there.keys() == back.keys()
    for name, change in there.items():
        assert back[name].kind == mirrored[change.kind]
        assert back[name].delta_ms == pytest.approx(-change.delta_ms)
        assert back[name].share == pytest.approx(change.share)
    ways = (phase_differences(before, after), phase_differences(after, before))
    for one, other in zip(*ways, strict=True):
        assert (one.phase, one.certain, one.before_ms) == (other.phase, other.certain, other.after_ms)


def test_what_is_planted_is_named_first() -> None:
    cases: Mapping[str, tuple[dict[str, object], tuple[str, ...], str]] = {
        "a product more": ({"extra": [row(*MM, 0.9)]}, MM, "appeared"),
        "a product less": ({"without": [HEAD]}, HEAD, "vanished"),
        "a sleep": ({"slower": {"attention": 9.0}}, ("decode", "attention", "", PYTHON), "grew"),
    }  # fmt: skip
    for name, (told, wanted, kind) in cases.items():
        changes = difference(processes(), processes(first=9, **told))
        first = telling(changes, "decode")[0]
        assert (key(first), first.kind) == (wanted, kind), name
        assert changes[0].kind != "same"


def test_nothing_is_named_where_nothing_changed() -> None:
    for seed in range(0, 40, 4):
        before, after = processes(first=seed, noise=0.02), processes(first=seed + 2, noise=0.02)
        assert [change for change in difference(before, after) if change.kind != "same"] == []


def test_a_growth_within_the_spread_of_the_rows_is_not_certain() -> None:
    quiet, loud = (
        difference(processes(noise=noise), processes(first=9, noise=noise, slower={"head": 1.12}))
        for noise in (0.002, 0.1)
    )
    assert {change.part for change in telling(quiet, "decode")} == {"head"}
    assert telling(loud, "decode") == []


def test_one_process_a_side_rests_on_its_steps() -> None:
    before, after = [profile("griffin")], [profile("griffin", slower={"head": 1.2})]
    (change,) = [one for one in telling(difference(before, after), "decode") if one.op]
    assert (change.part, change.error_ms) == ("head", pytest.approx(0.01 * 0.27 * 2**0.5))


def test_a_difference_needs_one_case_and_machine() -> None:
    with pytest.raises(ValueError, match="got 1 and 0 profiles of 1 cases"):
        difference([profile()], [])
    with pytest.raises(ValueError, match="2 cases and 1 machines"):
        difference([profile()], [profile("griffin")])
    with pytest.raises(ValueError, match="1 cases and 2 machines"):
        difference([profile()], [profile(machine=profiles.CPU.model_copy(update={"torch": "2.14"}))])


def kept(commit: str, made: Profile, session: str = "s", block: int = 1) -> StoredProfile:
    unit = Unit(
        night=session, commit=commit, grid="g", block=block, order=0, status="ok", started=made.started, seconds=1
    )
    return StoredProfile(unit, Path(), made)


def test_a_headline_says_how_much_and_what() -> None:
    before = tuple(kept(A, made) for made in processes())
    after = tuple(kept(B, made) for made in processes(first=9, extra=[row(*MM, 0.9)]))
    told = headline(ProfileComparison(before, after, paired=True), "decode")
    assert told.startswith("decode ")
    assert "aten::mm in ffn appeared, which is " in told
    same = headline(
        ProfileComparison(before, tuple(kept(B, made) for made in processes(first=9)), paired=True), "decode"
    )
    assert same.endswith("the whole did not change beyond the noise.")
    assert headline(ProfileComparison(before, after, paired=True), "nothing") == "nothing: not in these profiles."


# Capturing.

PROFILES = """
import shutil
from pathlib import Path

def run_profile(out, **options):
    site = Path(__file__).parent.parent
    with open(site.parent / "ran.log", "a") as log:
        log.write(site.name + " " + str(options["seed"]) + "\\n")
    shutil.copytree(site / "made", out, dirs_exist_ok=True)
"""
QUESTION = ProfileRequest("cases", BenchConfig(seed=1), processes=2)


def build(folder: Path, commit: str, code: str = PROFILES, methods: Sequence[str] = ("dense", "griffin")) -> Build:
    """An installed package whose profiles are played."""
    site = folder / f"site-{commit[:1]}"
    (site / "tda").mkdir(parents=True)
    (site / "tda" / "__init__.py").write_text(code)
    for method in methods:
        profiles.write(site / "made" / method, profile(method, commit=commit))
    return Build(commit, "commit", site)


def ran(folder: Path) -> list[str]:
    path = folder / "ran.log"
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def take(folder: Path, builds: Sequence[Build], question: ProfileRequest = QUESTION) -> tuple[ProfileStore, list[Unit]]:
    store = ProfileStore(folder / "profiles")
    return store, capture(store, question, builds, "machine")


def test_commits_run_in_turn_and_lie_whole(tmp_path: Path) -> None:
    store, units = take(tmp_path, [build(tmp_path, A), build(tmp_path, B)])
    assert ran(tmp_path) == ["site-a 1", "site-b 1", "site-b 1", "site-a 1"]
    assert [(unit.commit, unit.block, unit.status) for unit in units] == [
        *((A, 1, "ok"), (B, 1, "ok")),
        *((B, 2, "ok"), (A, 2, "ok")),
    ]
    places = sorted(str(path.relative_to(store.folder / A)) for path in (store.folder / A).rglob("*") if path.is_file())
    session = units[0].night
    assert session.startswith("cases-aaaaaaaaaa-bbbbbbbbbb-")
    files = [f"{case}/{name}" for case in ("dense", "griffin") for name in (KERNELS, MODULES, RECORD, TRACE)]
    assert places == sorted(f"{session}-{block}/{name}" for block in (1, 2) for name in (ACCOUNT, *files))
    found = store.read()
    assert (len(found.kept), found.failed, found.problems) == (8, (), ())
    assert [one.paired for one in found.compare(A, B)] == [True, True]


def test_what_is_whole_is_not_measured_again(tmp_path: Path) -> None:
    builds = [build(tmp_path, A), build(tmp_path, B)]
    _, first = take(tmp_path, builds)
    assert take(tmp_path, builds)[1] == first
    assert len(ran(tmp_path)) == 4
    take(tmp_path, builds, ProfileRequest("cases", BenchConfig(seed=2), processes=1))
    assert len(ran(tmp_path)) == 6, "another question is another session"


def test_a_process_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    made = build(tmp_path, A)

    def stop(record: logging.LogRecord) -> None:
        if "block 2" in record.getMessage():
            raise KeyboardInterrupt

    store = ProfileStore(tmp_path / "profiles")
    with pytest.raises(KeyboardInterrupt), handled("tda", stop):
        capture(store, QUESTION, [made], "machine")
    (unit,) = store.units()[0]
    part = store.folder / A / f".{unit.night}-2"
    profiles.write(part / "dense", profile())
    assert len(store.read().kept) == 2, "what is not whole is not seen"
    capture(store, QUESTION, [made], "machine")
    assert len(ran(tmp_path)) == 2
    assert not part.exists()
    assert len(store.read().kept) == 4


def test_a_commit_that_is_too_old_is_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = build(tmp_path, A, "def run_bench(): pass"), build(tmp_path, B)
    store, units = take(tmp_path, [old, new])
    assert "aaaaaaaaaa: it has no tda.run_profile: it is older than profiles" in caplog.messages
    assert [unit.commit for unit in units] == [B, B]
    found = store.read()
    assert [unit.commit for unit in found.failed] == [A]
    assert {one.unit.commit for one in found.kept} == {B}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def run_profile(out, **o): raise OSError('boom')", "exit code 1: OSError: boom"),
        ("def run_profile(out, **o): pass", "it profiled nothing"),
    ],
)
def test_a_process_that_fails_says_why_and_is_tried_again(tmp_path: Path, code: str, reason: str) -> None:
    made = build(tmp_path, A, code)
    store, units = take(tmp_path, [made])
    assert [(unit.status, unit.reason) for unit in units] == [("error", reason)] * 2
    place = store.place(units[0])
    assert [path.name for path in place.iterdir()] == [ACCOUNT]
    (made.site / "tda" / "__init__.py").write_text(PROFILES)
    assert [unit.status for unit in take(tmp_path, [made])[1]] == ["ok", "ok"]
    assert store.read().failed == ()


def test_processes_of_other_sessions_count_where_none_are_shared(tmp_path: Path) -> None:
    for name, commits in (("one", (A,)), ("two", (A, B)), ("three", (C,))):
        profiles.session(tmp_path, {commit: {} for commit in commits}, name=name, methods=("griffin",))
    found = read_stores([tmp_path, tmp_path / "none"])
    (together,), (apart,) = found.compare(A, B), found.compare(A, C)
    assert (together.paired, len(together.before), len(together.after)) == (True, 2, 2)
    assert (apart.paired, len(apart.before), len(apart.after)) == (False, 4, 2)
    assert found.compare(B, "d" * 40) == []


@pytest.mark.parametrize(("one", "other", "compared"), [("", "x", 1), ("x", "x", 1), ("", "", 1), ("x", "y", 0)])
def test_builds_that_told_no_inputs_are_compared(tmp_path: Path, one: str, other: str, compared: int) -> None:
    for commit, text in ((A, one), (B, other)):
        made = profile("griffin", commit=commit).model_copy(update={"inputs": Inputs(documents=text or None)})
        profiles.shelve(tmp_path, commit, [made])
    assert len(read_stores([tmp_path]).compare(A, B)) == compared


def test_damaged_and_played_profiles_are_named(tmp_path: Path) -> None:
    profiles.session(tmp_path, {A: {}}, methods=("dense", "griffin", "tda"), processes=1)
    place = tmp_path / A / "cases-00000000-1"
    (place / "shape-25m-dense" / RECORD).write_text("{")
    fake = profiles.GPU.model_copy(update={"gpu": "FAKE GPU"})
    profiles.write(place / "shape-25m-tda", profile("tda", machine=fake))
    (tmp_path / B / "x").mkdir(parents=True)
    (tmp_path / B / "x" / ACCOUNT).write_text("[]")
    found = ProfileStore(tmp_path).read()
    assert [one.profile.case.method for one in found.kept] == ["griffin"]
    assert len(found.problems) == 3
    assert sum("a device that a test plays" in problem for problem in found.problems) == 1


# What stays.


def test_old_traces_go_and_tables_stay(tmp_path: Path) -> None:
    commits = [f"{number:040d}" for number in range(5)]
    store = ProfileStore(tmp_path / "profiles")
    for number, commit in enumerate(commits):
        profiles.shelve(store.folder, commit, [profile(commit=commit)], started=f"2026-01-0{number + 1}T00:00:00+00:00")
    alarm = nights.night(commits[:2]).model_copy(update={"findings": (finding(commits[1], commits[2]),)})
    history = History(tmp_path)
    history.write(alarm)
    assert alarmed(history) == {commits[1], commits[2]}
    assert store.prune(1) == [commits[0], commits[3]]
    assert store.prune(1) == []
    traced = {one.unit.commit for one in store.read().kept if one.trace is not None}
    assert traced == {commits[1], commits[2], commits[4]}
    for one in store.read().kept:
        assert {path.name for path in one.folder.iterdir()} >= {RECORD, KERNELS, MODULES}
    assert len(store.read().kept) == 5


def finding(good: str, commit: str) -> object:
    from test_night import finding as made

    return made(good=good, commit=commit)


def test_a_branch_keeps_tables_alone(tmp_path: Path) -> None:
    store, _ = take(tmp_path, [build(tmp_path, A)])
    run = lambda *words: subprocess.run(["git", "-C", str(store.folder), *words], capture_output=True, text=True)  # noqa: E731
    run("init", "--quiet")
    (store.folder / A / ".part").mkdir()
    (store.folder / A / ".part" / "half").touch()
    run("add", "--all")
    names = {Path(name).name for name in run("ls-files").stdout.split()}
    assert names == {".gitignore", ACCOUNT, RECORD, KERNELS, MODULES}


# The suite.


def test_the_committed_cases_are_right() -> None:
    for name in ("cases.toml", "cases-gpu.toml"):
        settings = load_profiles(ROOT / "profiles" / name)
        assert {"griffin", "tda"} <= {spec.name for spec in settings.options.methods}


SUITE = nights.FAKE + PROFILES.replace('site / "made"', 'site / "tda" / "made"')


def suite(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tda.cli.main", "history", "profile", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_commits_are_captured_from_the_command_line(tmp_path: Path) -> None:
    """Installed by the real installer: a commit without profiles is a sentence, one that does not build fails."""
    repository = nights.FakeRepository(tmp_path / "repository")
    (tmp_path / "repository" / "tda" / "made").mkdir()
    old = repository.commit("Before profiles", files={"tda/__init__.py": nights.FAKE})
    data = nights.PROJECT.replace('["records.jsonl"]', '["made/*/*"]')
    profiles.write(tmp_path / "repository" / "tda" / "made" / "dense", profile())
    new = repository.commit("Profiles", files={"tda/__init__.py": SUITE, "pyproject.toml": data})
    broken = repository.commit("Breaks", files={"pyproject.toml": "[project\n"})
    cases = tmp_path / "cases.toml"
    cases.write_text("processes = 2\nkeep_traces = 1\n[options]\nseed = 1\n")
    words = ["--repo", str(repository.folder), "--out", str(tmp_path / "out"), "--cases", str(cases)]
    words += ["--work", str(tmp_path / "work")]
    done = suite(old, new, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    assert f"{old[:10]}: it has no tda.run_profile" in done.stderr
    assert len(ProfileStore(tmp_path / "out").read().kept) == 2
    wrong = suite(broken, *words)
    assert wrong.returncode == 1
    assert f"{broken[:10]} does not build" in wrong.stderr
    for bad, message in (("nothing", "no commit 'nothing'"), ("--cases=none.toml", "none.toml")):
        done = suite(bad, *(words if bad == "nothing" else words[:4]))
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    thinned = subprocess.run(
        [sys.executable, "-m", "tda.cli.main", "history", "prune", *words[2:6]],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert thinned.stdout.startswith("traces of 0 commits ")


# Planted changes in real commits, large enough to stand out beside other work too.

PRODUCT = planted.Edit(
    "tda/kernels/compact.py",
    "        z = self.ffn.act(h[..., :K])\n",
    "        z = self.ffn.act(h[..., :K])\n"
    "        for _ in range(20):\n            _linear(rows, self.rows, self.bias)\n",
)
GENERATE = '    overrides.set(model, "generate", _generate(run, model.generate))\n'
SLEEP = planted.Edit(
    "tda/engine/attach.py",
    GENERATE,
    f"{GENERATE}    import time\n\n"
    "    def pause(*_: Any) -> None:\n        time.sleep(0.005)\n\n"
    "    for layer in model.model.layers:\n"
    "        overrides.later(layer.self_attn.register_forward_hook(pause).remove)\n",
)
CASES = """
[options]
models = ["shape:25m"]
methods = ["griffin"]
sparsities = [0.5]
prompt_tokens = 32
new_tokens = 9
execution = "compact"
dtype = "float32"
"""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(3600)
def test_planted_changes_of_real_commits_are_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product more in the FFN, and a sleep in attention: installed, profiled in turn, and named before all else.

    On torch, whose layers run one by one: the changes are planted in Python. In float32: without hardware for bfloat16
    a product is a copy to float32 first, and the copy takes longer.
    """
    monkeypatch.setenv("CC", "/nonexistent/cc")
    plants = [
        planted.Planted("Multiply again and again", (PRODUCT,)),
        planted.Planted("Multiply once, and rest", (PRODUCT.undone, SLEEP)),
    ]
    commits = [commit for commit, _ in planted.build(tmp_path / "repository", planted.Sizes(0, 0, 0), plants)]
    (tmp_path / "cases.toml").write_text(CASES)
    done = suite(
        *(*commits, "--repo", str(tmp_path / "repository"), "--out", str(tmp_path / "out")),
        *("--cases", str(tmp_path / "cases.toml"), "--work", str(tmp_path / "work"), "--processes", "2"),
    )
    assert done.returncode == 0, done.stderr
    found = ProfileStore(tmp_path / "out").read()
    base, multiplied, rested = commits
    product = {one.after[0].profile.case.method: one for one in found.compare(base, multiplied)}
    sleep = {one.after[0].profile.case.method: one for one in found.compare(base, rested)}
    assert product.keys() == sleep.keys() == {"dense", "griffin"}
    first = product["griffin"].changes[0]
    assert (key(first), first.kind) == (MM, "appeared"), product["griffin"].changes[:5]
    assert MM not in [key(change) for change in telling(product["dense"].changes, "decode")], (
        "dense has no such product"
    )
    for method in ("dense", "griffin"):
        first = sleep[method].changes[0]
        assert (first.part, first.kernel, first.kind) == ("attention", PYTHON, "grew"), sleep[method].changes[:5]
        assert key(telling(sleep[method].changes, "decode")[0]) == ("decode", "attention", "", PYTHON)
