"""Records keep what ran and give it back; the results file survives a kill."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tda.cases import Case
from tda.records import (
    MEASUREMENTS,
    Commit,
    Flag,
    LeftOut,
    Machine,
    Measurement,
    Record,
    few_samples,
    json_schema,
    measurement_kind,
    merge,
)
from tda.results import LEFT_OUT, append, check_writable, load, results_path, write_whole

MACHINE = Machine(
    cpu="x", cores=2, threads=2, memory_bytes=1, python="3", torch="2", transformers="5", tda="0", system="Linux"
)


def case(**changes: Any) -> Case:
    return Case(**{"model": "m", "method": "griffin", "sparsity": 0.5, "prompt_tokens": 4, "new_tokens": 4, **changes})


def record(number: int = 0, samples: list[float] | None = None, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "case": case(),
        "round": number,
        "commit": Commit(hash="abc", dirty=False),
        "machine": MACHINE,
        "status": "ok",
        "started": f"2026-01-01T00:00:{number:02d}Z",
        "seconds": 1.0,
        **changes,
    }
    if samples is not None:
        fields["measurements"] = {"decode_ms": Measurement.of("decode_ms", samples)}
    return Record(**fields)


class TestMachine:
    def test_without_limits_it_is_the_machine_of_older_records(self) -> None:
        older = Machine.model_validate(MACHINE.model_dump(exclude={"allowed_cores", "cpu_quota"}))
        assert older == MACHINE
        assert MACHINE.fingerprint == "e789c5231a7078fe"  # as it was before records told of limits
        assert (MACHINE.usable_cores, MACHINE.cores_told) == (2, "2 cores")

    @pytest.mark.parametrize(
        ("limits", "usable", "told"),
        [
            ({"allowed_cores": 1}, 1, "1 of 64 cores"),
            ({"cpu_quota": 1.5}, 1.5, "64 cores with a quota of 1.5"),
            ({"allowed_cores": 4, "cpu_quota": 8.0}, 4, "4 of 64 cores with a quota of 8"),
        ],
    )
    def test_limits_make_another_machine(self, limits: dict[str, Any], usable: float, told: str) -> None:
        whole = MACHINE.model_copy(update={"cores": 64})
        limited = whole.model_copy(update=limits)
        assert limited.fingerprint != whole.fingerprint
        assert (limited.usable_cores, limited.cores_told) == (usable, told)


class TestRecord:
    def test_round_trip(self) -> None:
        made = record(
            3,
            achieved_sparsity=(0.5, 0.25),
            execution="compact",
            backend="torch",
            measurements={
                "decode_ms": Measurement.of("decode_ms", [1.5, 2.5], [0, 0]),
                "power_w": Measurement.absent("power_w", "no NVIDIA driver"),
            },
            flags={"foreign_load": Flag(raised=True, detail="12%"), "clocks": Flag(raised=None, detail="no GPU")},
            conditions={"load": 0.5, "note": "x", "none": None},
        )
        again = Record.model_validate_json(made.model_dump_json())
        assert again == made
        assert again.samples("decode_ms") == (1.5, 2.5)
        assert again.samples("power_w") == again.samples("ttft_ms") == ()
        assert again.raised() == ["background load: 12%"]
        assert json.loads(made.model_dump_json())["version"] == 3

    @given(st.lists(st.floats(1e-6, 1e9), min_size=1))
    def test_samples_come_back_to_the_last_bit(self, samples: list[float]) -> None:
        made = record(0, samples)
        assert Record.model_validate_json(made.model_dump_json()).samples("decode_ms") == tuple(samples)

    @pytest.mark.parametrize(
        ("name", "sample"),
        [
            ("decode_ms", 0.0),
            ("decode_ms", -1.0),
            ("decode_ms", math.nan),
            ("decode_ms", math.inf),
            ("perplexity", 0.5),
            ("top1_disagreement", 1.5),
            ("peak_memory_bytes", 1e300),
            ("task_recall_nll", math.nan),
        ],
    )
    def test_what_nothing_can_measure_is_refused(self, name: str, sample: float) -> None:
        with pytest.raises(ValidationError, match=name):
            record(0, measurements={name: Measurement.of(name, [sample])})

    @pytest.mark.parametrize(
        "change",
        [
            {"status": "fine"},
            {"version": 4},
            {"control": "a_a"},
            {"round": -1},
            {"surprise": 1},
            {"flags": {"moon_phase": Flag(raised=True, detail="")}},
            {"seconds": "long"},
        ],
    )
    def test_strictness(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            record(**change)

    @pytest.mark.parametrize("change", [{"batch": 0}, {"prompt_tokens": 0}, {"new_tokens": 1}, {"colour": "red"}])
    def test_case_bounds(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            case(**change)

    def test_frozen(self) -> None:
        with pytest.raises(ValidationError):
            record().status = "error"

    def test_keys_tell_cases_apart(self) -> None:
        same = case()
        assert case().key == same.key
        assert hash(case()) == hash(same)
        changed = [
            case(sparsity=0.25),
            case(method="tda"),
            case(options={"rows": "shared"}),
            case(execution="masked"),
            case(batch=2),
            case(seed=1),
            case(dtype="bfloat16"),
            case(device="cuda"),
        ]
        assert len({found.key for found in [same, *changed]}) == 9
        assert all(found.setting == same.setting for found in changed[:4])
        assert len({found.setting for found in [same, *changed[4:]]}) == 5
        assert record().series != record(case=case(control="a_a")).series

    def test_fingerprint_is_of_the_machine(self) -> None:
        assert MACHINE.fingerprint == MACHINE.model_copy().fingerprint
        assert MACHINE.fingerprint != MACHINE.model_copy(update={"threads": 1}).fingerprint

    def test_schema_names_every_field(self) -> None:
        assert set(json_schema()["properties"]) == set(Record.model_fields)


class TestMeasurement:
    def test_samples_or_reason(self) -> None:
        for wrong in ({"samples": ()}, {"samples": (1.0,), "missing": "why"}):
            with pytest.raises(ValidationError, match="samples or a reason"):
                Measurement(unit="ms", **wrong)
        with pytest.raises(ValidationError, match="1 groups for 2 samples"):
            Measurement(unit="ms", samples=(1.0, 2.0), groups=(0,))

    def test_kinds(self) -> None:
        assert all(kind.unit and kind.meaning for kind in MEASUREMENTS.values())
        assert measurement_kind("task_recall_accuracy").better == "higher"
        assert measurement_kind("task_recall_nll").better == "lower"
        assert Measurement.of("decode_ms", [1]).better == "lower"
        with pytest.raises(ValueError, match="'speed'; known: prefill_ms"):
            Measurement.of("speed", [1])


class TestMerge:
    def test_rounds_join_in_order_and_are_the_groups(self) -> None:
        joined = merge([record(2, [5.0]), record(1, [1.0, 2.0]), record(3, [7.0])])
        assert len(joined) == 1
        found = joined[0].measurements["decode_ms"]
        assert found.samples == (1.0, 2.0, 5.0, 7.0)
        assert found.groups == (1, 1, 2, 3)
        assert joined[0].seconds == 3.0
        assert joined[0].started == "2026-01-01T00:00:01Z"

    def test_groups_of_their_own_stay(self) -> None:
        quality = Measurement.of("nll_nats", [1.0, 2.0], [10, 11])
        joined = merge([record(0, measurements={"nll_nats": quality}), record(1, [3.0])])[0]
        assert joined.measurements["nll_nats"] == quality
        assert joined.samples("decode_ms") == (3.0,)

    def test_series_keep_their_order_and_apart(self) -> None:
        lines = [
            record(0, [1.0], case=case(control="a_a")),
            record(0, [2.0]),
            record(0, [3.0], case=case(batch=2)),
            record(1, [4.0]),
        ]
        assert [(r.case.control, r.samples("decode_ms")) for r in merge(lines)] == [
            ("a_a", (1.0,)),
            (None, (2.0, 4.0)),
            (None, (3.0,)),
        ]

    def test_a_failed_round_is_left_out_and_told(self) -> None:
        joined = merge([record(1, [1.0]), record(2, status="timeout", reason="60 s"), record(3, [3.0])])[0]
        assert joined.status == "ok"
        assert joined.samples("decode_ms") == (1.0, 3.0)
        assert joined.reason == "1 of 3 rounds failed: 60 s"

    def test_only_failures_keep_the_last(self) -> None:
        joined = merge([record(1, status="error", reason="a"), record(2, status="oom", reason="b")])[0]
        assert (joined.status, joined.reason) == ("oom", "b")

    def test_a_repeated_round_counts_once(self) -> None:
        """A resumed run writes a round again: the later line counts, and no failure displaces a success."""
        joined = merge([record(1, [1.0]), record(1, [2.0])])[0]
        assert joined.samples("decode_ms") == (2.0,)
        joined = merge([record(1, [1.0]), record(1, status="error", reason="x")])[0]
        assert (joined.status, joined.samples("decode_ms"), joined.reason) == ("ok", (1.0,), None)
        joined = merge([record(1, status="error", reason="x"), record(1, [1.0])])[0]
        assert (joined.status, joined.samples("decode_ms"), joined.reason) == ("ok", (1.0,), None)

    def test_missing_is_not_zero(self) -> None:
        absent = {"power_w": Measurement.absent("power_w", "no driver")}
        present = {"power_w": Measurement.of("power_w", [50.0])}
        assert merge([record(1, measurements=absent)])[0].measurements["power_w"].missing == "no driver"
        joined = merge([record(1, measurements=absent), record(2, measurements=present)])[0]
        assert joined.measurements["power_w"].samples == (50.0,)
        assert joined.measurements["power_w"].groups == (2,)

    def test_flags_and_sparsity(self) -> None:
        calm, raised, unknown = (
            {"foreign_load": Flag(raised=state, detail=text)}
            for state, text in ((False, "0%"), (True, "40%"), (None, "not seen"))
        )
        joined = merge(
            [record(1, flags=calm, achieved_sparsity=(0.4, 0.6)), record(2, flags=raised, achieved_sparsity=(0.6, 0.6))]
        )[0]
        assert joined.flags["foreign_load"].raised
        assert "40%" in joined.flags["foreign_load"].detail
        assert joined.achieved_sparsity == pytest.approx((0.5, 0.6))
        assert not merge([record(1, flags=calm), record(2, flags=unknown)])[0].raised()

    def test_nothing(self) -> None:
        assert merge([]) == []


class TestFile:
    def test_append_and_load(self, tmp_path: Path) -> None:
        lines = [record(number, [float(number)]) for number in range(1, 4)]
        append(tmp_path, lines[:1])
        append(tmp_path, lines[1:])
        append(tmp_path, [])
        found = load(tmp_path)
        assert found.records == lines
        assert found.problems == []
        assert load(results_path(tmp_path)) == found

    def test_a_truncated_last_line_is_named_and_closed(self, tmp_path: Path) -> None:
        append(tmp_path, [record(1, [1.0]), record(2, [2.0])])
        path = results_path(tmp_path)
        path.write_bytes(path.read_bytes()[:-40])
        found = load(tmp_path)
        assert [r.round for r in found.records] == [1]
        assert len(found.problems) == 1
        assert "line 2 skipped" in found.problems[0]
        append(tmp_path, [record(3, [3.0])])
        found = load(tmp_path)
        assert [r.round for r in found.records] == [1, 3]
        assert len(found.problems) == 1

    @pytest.mark.parametrize(
        ("line", "where"),
        [
            (b"hello", "Invalid JSON"),
            (b'{"version": 1}', "case: Field required"),
            (b"[]", "Input should be an object"),
            (b"\xff\xfe\x00", "Invalid JSON"),
            (b"null", "Input should be an object"),
        ],
    )
    def test_foreign_lines_are_skipped_and_named(self, line: bytes, where: str, tmp_path: Path) -> None:
        path = results_path(tmp_path)
        good = record(1, [1.0]).model_dump_json().encode()
        path.write_bytes(b"\n".join([good, line, b"", b"  ", good, b""]))
        found = load(tmp_path)
        assert len(found.records) == 2
        assert len(found.problems) == 1
        assert f"{path}, line 2 skipped: {where}" in found.problems[0]

    def test_an_older_record_is_read_without_what_has_another_meaning_now(self, tmp_path: Path) -> None:
        old = record(1, [1.0]).model_dump(mode="json") | {"version": 1}
        absent = {"unit": "ms", "better": "lower", "samples": [], "groups": [], "missing": "x"}
        old["measurements"] |= {
            name: absent | {"samples": [-2.0], "missing": None} for name in ("select_ms", "ttft_ms")
        }
        results_path(tmp_path).write_text(json.dumps(old) + "\n")
        found = load(tmp_path)
        assert found.problems == []
        assert set(found.records[0].measurements) == {"decode_ms"}

    def test_records_of_another_version_are_named(self, tmp_path: Path) -> None:
        line = record(1, [1.0]).model_dump_json().replace('"version":3', '"version":99')
        results_path(tmp_path).write_text(line + "\n")
        assert "version" in load(tmp_path).problems[0]

    def test_what_was_left_out_is_read_beside_and_a_damaged_line_is_named(self, tmp_path: Path) -> None:
        append(tmp_path, [])
        item = LeftOut(model="m", what="quality of griffin 0.5", reason="no time", command="tda bench")
        write_whole(tmp_path / LEFT_OUT, item.model_dump_json() + "\nnot json\n")
        found = load(tmp_path)
        assert found.left_out == [item]
        assert [problem.split(" skipped: ")[0] for problem in found.problems] == [f"{tmp_path / LEFT_OUT}, line 2"]

    def test_a_missing_file_says_what_writes_it(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"results\.jsonl; `tda bench --out"):
            load(tmp_path / "nowhere")

    def test_append_after_a_kill(self, tmp_path: Path) -> None:
        """A process killed while it appends leaves at most one damaged line; all whole ones are there."""
        script = (
            "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_results as t\n"
            "for number in range(10**6): t.append(Path(sys.argv[1]), [t.record(number, [number + 1.0] * 50)])"
        )
        command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        path = results_path(tmp_path)
        try:
            deadline = time.monotonic() + 300
            while not path.exists() or path.stat().st_size < 50_000:
                assert process.poll() is None, "the writer died by itself"
                assert time.monotonic() < deadline, "the writer wrote nothing"
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = load(tmp_path)
        assert len(before.problems) <= 1
        assert [r.round for r in before.records] == list(range(len(before.records)))
        append(tmp_path, [record(59, [0.5])])
        assert load(tmp_path).records == [*before.records, record(59, [0.5])]


class TestWriteWhole:
    def test_replaces_and_makes_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b.txt"
        write_whole(path, "one")
        write_whole(path, b"two")
        assert path.read_text() == "two"
        assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
        assert path.stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
    def test_a_failure_keeps_the_old_file_and_no_rest(
        self, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "b.txt"
        write_whole(path, "one")

        def fail(descriptor: int) -> None:
            raise error

        monkeypatch.setattr("tda.results.os.fsync", fail)
        with pytest.raises(type(error)):
            write_whole(path, "two")
        assert path.read_text() == "one"
        assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]

    def test_check_writable(self, tmp_path: Path) -> None:
        check_writable(tmp_path / "new" / "x.json")
        assert list((tmp_path / "new").iterdir()) == []
        with pytest.raises(IsADirectoryError, match="is a folder"):
            check_writable(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            check_writable(tmp_path / "file" / "x.json")


def test_few_samples_counts_the_rounds_that_there_are_also_when_joined_twice():
    lines = [record(number, [5.0, 6.0]) for number in range(1, 4)]
    lines = [line.model_copy(update={"flags": {"few_samples": few_samples(9)}}) for line in lines]
    once = merge(lines)
    for joined in (once, merge(once)):
        assert joined[0].flags["few_samples"].raised
        assert joined[0].flags["few_samples"].detail.startswith("3 rounds")


def test_an_error_that_utf_8_cannot_hold_is_written(tmp_path: Path) -> None:
    """As Python reads a file's name that is no UTF-8."""
    append(tmp_path, [record(status="error", reason="no file b\udcff.txt", measurements={})])
    assert load(tmp_path).records[0].reason == "no file b\\udcff.txt"
