"""`tda profile`: the split of a step, the page, the command."""

import csv
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import tda
from tda.bench.profile import folder_name
from tda.cli.main import app
from tda.profiler.parts import FFN_PARTS, WEIGHT_PARTS
from tda.profiler.records import GAPS, HOST, KernelRow, Profile
from tda.profiler.roofline import points
from tda.profiler.split import gap, split
from tda.profiler.store import KERNELS, MODULES, RECORD, read_profile, read_profiles
from tda.web.profile import build_profile_report
from tda.web.profile.groups import PIECES, gather_profiles, piece_of, step_rows
from tests import profiles


def folder(place: Path, *methods: str, **told: Any) -> Path:
    for method in methods or ("dense", "griffin", "tda"):
        profiles.write(place / method, profiles.profile(method, **told), traced=False)
    return place


# The split.


def test_a_split_sums_to_the_timed_step() -> None:
    dense = profiles.profile()
    found = split(dense)
    assert found.total == pytest.approx(median(dense.timed.decode_ms))
    assert found.bandwidth == pytest.approx(dense.weight_bytes / median(dense.timed.stream_gb_per_s) / 1e6)
    rows = dense.rows("decode")
    assert found.other == pytest.approx(sum(row.self_ms for row in rows if row.role == "other"))
    assert found.framework == pytest.approx(sum(row.self_ms for row in rows if not row.op))


@given(st.floats(0.05, 0.95), st.floats(0.5, 2.0))
def test_a_gap_is_explained_whole(sparsity: float, slower: float) -> None:
    """The components' gaps sum to what the method takes beyond its limit, however fast it is."""
    dense = profiles.profile()
    method = profiles.profile("griffin", sparsity=sparsity, slower={"attention": slower})
    found = gap(method, dense)
    at_limit = median(dense.timed.decode_ms) / (dense.step_bytes / method.step_bytes)
    assert sum(found.components) == pytest.approx(median(method.timed.decode_ms) - at_limit)
    assert found.at_limit.total == pytest.approx(at_limit)


def test_what_does_not_shrink_with_the_bytes_is_the_gap() -> None:
    slow, plain = (profiles.profile("griffin", slower={"attention": factor}) for factor in (3.0, 1.0))
    dense = profiles.profile()
    assert gap(slow, dense).components[2] > gap(plain, dense).components[2] > 0


def test_points_stand_under_both_roofs() -> None:
    profile = profiles.profile()
    found = points(profile)
    assert {point.family for point in found} == {"FFN", "projections", "head"}
    bandwidth, peak = median(profile.timed.stream_gb_per_s), profile.matmul_tflop_per_s * 1e3
    for point in found:
        assert point.bound_gflop_per_s == pytest.approx(min(peak, point.intensity * bandwidth))
        rows = [r for r in profile.rows(point.phase) if r.flops and r.part in ("gate", "up", "down")]
        if point.family == "FFN":
            flops, ms = sum(r.flops or 0 for r in rows), sum(r.self_ms for r in rows)
            assert point.gflop_per_s == pytest.approx(flops / ms / 1e6)


# The folder.


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = profiles.profile("tda")
    profiles.write(tmp_path / "a", made, traced=False)
    assert read_profile(tmp_path / "a") == made
    with open(tmp_path / "a" / KERNELS) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(made.kernels)
    assert set(KernelRow.model_fields) < set(rows[0])
    assert float(rows[0]["self_ms"]) == made.kernels[0].self_ms
    with open(tmp_path / "a" / MODULES) as file:
        assert len(list(csv.DictReader(file))) == len(made.modules)


def test_a_folder_without_profiles_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no profile"):
        read_profiles(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / RECORD).write_text('{"version": 7}')
    with pytest.raises(ValueError, match=r"profile\.json .*version 1"):
        read_profiles(tmp_path)


# The page.


def test_every_row_is_in_one_piece() -> None:
    profile = profiles.profile("griffin")
    for phase in profile.phases:
        assert {piece_of(row) for row in profile.rows(phase)} <= set(PIECES)
    (row,) = step_rows([profile])
    assert sum(row[piece] for piece in PIECES) == pytest.approx(sum(r.self_ms for r in profile.rows("decode")))


@pytest.mark.parametrize("part", WEIGHT_PARTS)
def test_what_reads_weights_has_a_piece_of_its_own(part: str) -> None:
    piece = piece_of(profiles.row("decode", part, "aten::mm", "mm", 1.0))
    assert piece == ("FFN projections" if part in FFN_PARTS else piece)
    assert piece not in ("other operators", "framework")


def test_the_page_answers_where_the_time_goes(tmp_path: Path) -> None:
    html = build_profile_report(folder(tmp_path)).index.read_text()
    assert "A dense decode step takes" in html
    assert re.search(r"griffin 0\.5 takes [\d.]+ ms, [\d.]+× of a possible [\d.]+×; it saves [\d.]+ ms in FFN", html)
    for name in ("step-1", "gap-1-1", "gap-1-2", "roofline-1"):
        assert (tmp_path / "figures" / f"{name}.svg").is_file()
        assert (tmp_path / "figures" / f"{name}.png").is_file()
    for path in re.findall(r'href="([^"#:]+)"', html):
        if not path.endswith(".json.gz"):
            assert (tmp_path / path).exists(), path
    assert not re.search(r'(src|href)="https?://(?!ui\.perfetto\.dev)', html)
    assert "no such counter here" in html


@pytest.mark.parametrize(("dense", "warned"), [("torch (products of 4 rows run there)", True), ("c", False)])
def test_a_gap_to_a_dense_step_on_other_kernels_is_in_doubt(dense: str, warned: bool, tmp_path: Path) -> None:
    for method, backend in (("dense", dense), ("griffin", "c")):
        made = profiles.profile(method).model_copy(update={"backend": backend})
        profiles.write(tmp_path / method, made, traced=False)
    html = build_profile_report(tmp_path).index.read_text()
    sentence = "because dense ran on torch&#39;s kernels (products of 4 rows run there) and this on kernels in C"
    assert (sentence in html) == warned
    assert ("griffin 0.5 on shape:25m cannot be trusted" in html) == warned


def test_equal_profiles_give_equal_pages(tmp_path: Path) -> None:
    pages = [build_profile_report(folder(tmp_path / name)).index.read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_what_a_kernel_is_called_cannot_harm_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made = profiles.profile(extra=[profiles.row("decode", "gate", evil, evil, 9.0)])
    profiles.write(tmp_path / "a", made, traced=False)
    html = build_profile_report(tmp_path).index.read_text()
    assert evil not in html
    assert "&lt;script&gt;alert(1)" in html


def test_kernels_that_could_not_be_told_apart_are_named(tmp_path: Path) -> None:
    made = profiles.profile(machine=profiles.GPU).model_copy(update={"untold": ("1 × memset<void> has no place",)})
    profiles.write(tmp_path / "a", made, traced=False)
    assert read_profile(tmp_path / "a").untold == made.untold
    html = build_profile_report(tmp_path).index.read_text()
    assert "Not distinguished: 1 × memset&lt;void&gt; has no place." in html


def test_gaps_between_kernels_are_a_piece_of_their_own() -> None:
    made = profiles.profile(
        machine=profiles.GPU,
        without=[("decode", "decode", "", GAPS)],
        extra=[profiles.row("decode", "decode", "", GAPS, 0.7), profiles.row("decode", "decode", "", HOST, 0.2)],
    )
    assert piece_of(next(row for row in made.rows("decode") if row.kernel == GAPS)) == "gaps between kernels"
    assert piece_of(next(row for row in made.rows("decode") if row.kernel == HOST)) == "framework"
    (shown,) = step_rows([made])
    assert shown["framework"] == pytest.approx(
        sum(row.self_ms for row in made.rows("decode") if not row.op and row.kernel != GAPS)
    )
    assert sum(shown[piece] for piece in PIECES) == pytest.approx(sum(row.self_ms for row in made.rows("decode")))


def test_without_dense_no_saving_is_told(tmp_path: Path) -> None:
    html = build_profile_report(folder(tmp_path, "griffin")).index.read_text()
    assert "no dense profile of this setting" in html


def test_other_machines_and_commits_are_groups_of_their_own(tmp_path: Path) -> None:
    folder(tmp_path / "one")
    folder(tmp_path / "two", commit="1" * 40)
    folder(tmp_path / "three", machine=profiles.GPU)
    assert [len(group.shown) for group in gather_profiles(tmp_path)] == [3, 3, 3]
    assert build_profile_report(tmp_path).index.read_text().count("A dense decode step takes") == 3


def test_profiles_of_a_played_device_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "dense", machine=profiles.GPU.model_copy(update={"gpu": "FAKE H100"}))
    with pytest.raises(ValueError, match="a device that a test plays"):
        build_profile_report(tmp_path)


# The command.


def test_run_profile_names_what_it_does_not_accept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 9 new tokens; got 3"):
        tda.run_profile(tmp_path, models=["shape:25m"], methods=["griffin"], sparsities=[0.5], new_tokens=3)
    with pytest.raises(ValueError, match="griffon"):
        tda.run_profile(tmp_path, models=["shape:25m"], methods=["griffon"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_a_folder_for_each_case_and_a_page(tmp_path: Path) -> None:
    words = ["profile", "--model", "shape:25m", "--method", "griffin", "--sparsity", "0.5", "--prompt-tokens", "8"]
    done = CliRunner().invoke(app, [*words, "--new-tokens", "9", "--json", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["case"] for row in rows] == ["dense", "griffin 0.5"]
    found: dict[str, Profile] = {profile.case.method: profile for _, profile in read_profiles(tmp_path)}
    assert set(found) == {"dense", "griffin"}
    for profile in found.values():
        place = tmp_path / folder_name(profile.case, profile.inputs)
        assert (place / profile.trace).is_file()
        assert profile.weight_bytes > 0
        assert len(profile.timed.decode_ms) == 5
        assert profile.phases["decode"].parts_ms == pytest.approx(profile.phases["decode"].whole_ms, rel=0.02)
        assert profile.telemetry.series
    assert found["griffin"].achieved_sparsity[0] == pytest.approx(0.5, abs=0.01)
    assert (tmp_path / "index.html").is_file()
