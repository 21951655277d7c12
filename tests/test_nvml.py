"""NVIDIA's driver through the real pynvml, on a library with known answers: see fake_nvml/nvml.c."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tda.cli import main as cli
from tda.telemetry import nvml
from tda.telemetry.fields import GPU_FIELDS
from tda.telemetry.gpu import gpu_source
from tests import nights
from tests.fake_nvml.player import Player, build

TWO = "* gpus 2"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    yield from _play(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    """Without energy counter, GPM, field values and the newer names of the rest."""
    yield from _play(tmp_path_factory.mktemp("old-driver"), "-DOLD")


def _play(folder: Path, *options: str) -> Iterator[Player]:
    try:
        build(folder, *options)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    player = Player(folder)
    yield player
    player.close()


SAMPLE = """
import time, torch
from tda.telemetry import Sampler
with Sampler({devices}) as sampler:
    time.sleep({seconds})
result = sampler.telemetry.model_dump(mode="json")
"""


def sample(player: Player, *state: str, devices: int = 1, seconds: float = 0.0, **environment: str) -> dict[str, Any]:
    """What the sampler says of the first GPUs."""
    named = ", ".join(f"torch.device('cuda', {index})" for index in range(devices))
    return player.run(SAMPLE.format(devices=named, seconds=seconds), *state, **environment)


def joules(ms: int) -> float:
    """Energy of the played power, from the first millisecond on, by summing it up."""
    return sum(300 if now // 100 % 2 else 100 for now in range(ms)) / 1000


def test_energy_is_that_of_a_known_power(driver: Player) -> None:
    told = sample(driver, seconds=0.35)
    energy, power = (told["series"][f"gpu0/{name}"] for name in ("energy_j", "power_w"))
    times = range(25, 25 * len(energy["samples"]) + 1, 25)
    assert len(times) >= 2
    assert energy["samples"] == pytest.approx([joules(now) for now in times], abs=1e-9)
    assert power["samples"] == [300 if now // 100 % 2 else 100 for now in times]
    assert told["gpus"] == {"gpu0": "FAKE H100"}


def test_energy_per_token_is_the_rise_of_the_counter(driver: Player) -> None:
    code = SAMPLE.format(devices="torch.device('cuda')", seconds=0.25) + (
        "from tda.bench.window import measurements\n"
        "found = measurements(sampler.telemetry, 5)\n"
        "result = [result, {name: list(part.samples) for name, part in found.items()}]\n"
    )
    told, found = driver.run(code)
    count = len(told["series"]["gpu0/energy_j"]["samples"])
    assert found["energy_j_per_token"] == pytest.approx([(joules(25 * count) - joules(25)) / 5])
    assert found["gpu_utilization_percent"] == [80] * count
    assert found["power_w"] == told["series"]["gpu0/power_w"]["samples"]


def test_measurements_of_a_driver_without_an_energy_counter_say_so(old_driver: Player) -> None:
    code = SAMPLE.format(devices="torch.device('cuda')", seconds=0) + (
        "from tda.bench.window import measurements\n"
        "found = measurements(sampler.telemetry, 5)\n"
        "result = {name: [len(part.samples), part.missing] for name, part in found.items()}\n"
    )
    found = old_driver.run(code)
    assert found["energy_j_per_token"] == [0, "Function Not Found (nvmlDeviceGetTotalEnergyConsumption)"]
    assert found["power_w"] == [2, None]


def test_every_field_has_a_value_or_a_reason(driver: Player) -> None:
    series = sample(driver, TWO, devices=2)["series"]
    for gpu in ("gpu0", "gpu1"):
        told = {name.removeprefix(f"{gpu}/"): one for name, one in series.items() if one["device"] == gpu}
        assert set(told) == set(GPU_FIELDS)
        for name, one in told.items():
            assert one["samples"] or one["missing"], name
            assert one["unit"] == GPU_FIELDS[name].unit
            assert len(one["samples"]) == len(one["stamps"])


REFUSED = {
    "nvmlDeviceGetTotalEnergyConsumption": ["energy_j"],
    "nvmlDeviceGetPowerUsage": ["power_w"],
    "nvmlDeviceGetUtilizationRates": ["utilization_percent", "memory_utilization_percent"],
    "nvmlDeviceGetClockInfo": ["sm_clock_mhz", "memory_clock_mhz"],
    "nvmlDeviceGetTemperature": ["temperature_c"],
    "nvmlDeviceGetTotalEccErrors": ["corrected_errors", "uncorrected_errors"],
    "nvmlDeviceGetComputeRunningProcesses_v3": ["foreign_processes", "unexplained_memory_bytes"],
    "nvmlDeviceGetFieldValues": ["slowed_s"],
    "nvmlGpmQueryDeviceSupport": ["sm_activity_percent", "dram_activity_percent"],
}


@pytest.mark.parametrize("function", REFUSED)
def test_an_unsupported_call_is_a_reason_and_the_rest_goes_on(driver: Player, function: str) -> None:
    series = sample(driver, f"* unsupported {function}")["series"]
    for name in REFUSED[function]:
        assert series[f"gpu0/{name}"]["samples"] == []
        assert series[f"gpu0/{name}"]["missing"].startswith("Not Supported (nvml")
    assert series["gpu0/memory_bytes"]["samples"]


def test_what_an_old_driver_lacks_is_a_reason_or_read_in_its_own_way(old_driver: Player) -> None:
    series = sample(old_driver, "* hidden 1000", "* reasons 4")["series"]
    for name in ("energy_j", "slowed_s", "sm_activity_percent", "foreign_processes"):
        assert series[f"gpu0/{name}"]["missing"].startswith("Function Not Found (nvml"), name
    assert set(series["gpu0/memory_bytes"]["samples"]) == {1000}
    assert set(series["gpu0/clock_event_reasons"]["samples"]) == {4}


def test_a_gpu_that_is_lost_keeps_what_was_sampled(driver: Player) -> None:
    code = (
        "import torch\n"
        "from tda.telemetry.gpu import gpu_source\n"
        "source = gpu_source(torch.device('cuda'))\n"
        "result = [[dict(source.read()) for _ in range(5)], source.missing]\n"
    )
    rounds, missing = driver.run(code, "* lost_after 3")
    assert [one["energy_j"] for one in rounds[:3]] == pytest.approx([joules(25), joules(50), joules(75)])
    assert ["power_w" in one for one in rounds] == [True, True, False, False, False]
    assert rounds[3:] == [{}, {}]
    assert missing["power_w"] == "GPU is lost (nvmlDeviceGetPowerUsage)"
    series = sample(driver, "* lost_after 1")["series"]["gpu0/energy_j"]
    assert series["samples"] == pytest.approx([joules(25)])
    assert series["missing"].startswith("GPU is lost")


def test_activity_counters_are_means_between_neighbouring_samples(driver: Player) -> None:
    code = (
        "import torch\n"
        "from tda.telemetry.gpu import gpu_source\n"
        "source = gpu_source(torch.device('cuda'))\n"
        "rounds = [dict(source.read()) for _ in range(4)]\n"
        "missing = source.missing['tensor_activity_percent']\n"
        "before = nvml.library().nvmlLib.fake_samples_out()\n"
        "del source\n"
        "result = [rounds, missing, before, nvml.library().nvmlLib.fake_samples_out()]\n"
    )
    rounds, missing, held, left = driver.run("from tda.telemetry import nvml\n" + code)
    assert "sm_activity_percent" not in rounds[0]
    for one in rounds[1:]:
        assert (one["sm_activity_percent"], one["sm_occupancy_percent"], one["dram_activity_percent"]) == (21, 31, 101)
    assert "does not tell this GPM metric" in missing
    assert held - left == 2  # the samples are given back with the source


def test_pcie_is_read_only_where_nothing_waits_for_it(driver: Player) -> None:
    code = (
        "import torch\n"
        "from tda.telemetry.gpu import gpu_source\n"
        "source = gpu_source(torch.device('cuda'))\n"
        "result = [dict(source.read()), dict(source.read(slow=True))]\n"
    )
    quick, slow = driver.run(code)
    assert slow == {"pcie_sent_kb_per_s": 100, "pcie_received_kb_per_s": 200}
    assert not quick.keys() & slow.keys()


# Which GPU is meant.

UUIDS = ["GPU-00000000-0000", "GPU-10000000-0000"]
MIG = "MIG-20000000-0000"
VISIBLE = {
    None: UUIDS,
    "0": UUIDS[:1],
    "1": UUIDS[1:],
    "1,0": UUIDS[::-1],
    " 1 , 0 ": UUIDS[::-1],
    "": [],
    "-1": [],
    "0,-1,1": UUIDS[:1],
    "7": [],
    "0,7,1": UUIDS[:1],
    "0,0": [],
    UUIDS[1]: UUIDS[1:],
    "GPU-1": UUIDS[1:],
    f"{UUIDS[1]},{UUIDS[0]}": UUIDS[::-1],
    "GPU-1,GPU-10": [],
    "GPU-": [],
    "GPU-f": [],
    MIG: [MIG],
    "MIG-f": [],
    "none": [],
    "0x1": [],
    "²": [],
    "0,,1": UUIDS[:1],
}


@pytest.mark.parametrize("told", VISIBLE)
def test_visible_devices_are_read_as_cuda_reads_them(driver: Player, told: str | None) -> None:
    code = (
        "from tda.telemetry.nvml import call, visible\nresult = [call('nvmlDeviceGetUUID', gpu) for gpu in visible()]"
    )
    environment = {} if told is None else {"CUDA_VISIBLE_DEVICES": told}
    assert driver.run(code, TWO, **environment) == VISIBLE[told]


def test_what_a_container_runtime_was_told_hides_nothing_more(driver: Player) -> None:
    """NVIDIA_VISIBLE_DEVICES decides which GPUs a container gets; within it the driver has no others."""
    assert busy_percent(sample(driver, TWO, devices=2, NVIDIA_VISIBLE_DEVICES="1")) == [[80], [81]]


def busy_percent(told: dict[str, Any]) -> list[Any]:
    return [told["series"][f"gpu{index}/utilization_percent"]["samples"][:1] for index in (0, 1)]


def test_two_gpus_are_told_apart_by_the_number_that_cuda_counts(driver: Player) -> None:
    assert busy_percent(sample(driver, TWO, devices=2)) == [[80], [81]]
    assert busy_percent(sample(driver, TWO, devices=2, CUDA_VISIBLE_DEVICES="1,0")) == [[81], [80]]
    hidden = sample(driver, TWO, devices=2, CUDA_VISIBLE_DEVICES="1")
    assert busy_percent(hidden) == [[81], []]
    reason = hidden["series"]["gpu1/power_w"]["missing"]
    assert re.search(r"cuda:1 .*1 GPUs \(CUDA_VISIBLE_DEVICES=1\)", reason)


@pytest.mark.parametrize(
    ("lost", "told", "busy"),
    [
        (1, "0", [[80], []]),
        (0, "1", [[81], []]),
        (0, UUIDS[1], [[81], []]),
        (1, None, [[80], []]),
        (0, None, [[], [81]]),
        (0, "1,0", [[81], []]),
        (0, UUIDS[0], [[], []]),
    ],
)
def test_a_lost_gpu_hides_no_other(driver: Player, lost: int, told: str | None, busy: list[list[int]]) -> None:
    environment = {} if told is None else {"CUDA_VISIBLE_DEVICES": told}
    found = sample(driver, TWO, f"{lost} lost_after 0", devices=2, **environment)
    assert busy_percent(found) == busy
    if told is None:
        assert found["series"][f"gpu{lost}/power_w"]["missing"] == "GPU is lost (nvmlDeviceGetHandleByIndex)"
        facts = driver.run(
            "from tda.telemetry.gpu import gpu_facts\nfrom tda.telemetry.nvml import gpus\n"
            "result = [gpu_facts(gpu)['name'] for gpu in gpus()]",
            *(TWO, f"{lost} lost_after 0"),
        )
        assert facts[lost] == "unreadable: GPU is lost (nvmlDeviceGetHandleByIndex)"
        assert facts[1 - lost] == "FAKE H100"


@pytest.mark.parametrize(("lost", "readable"), [(0, [None, 81]), (1, [80, None])])
def test_a_lost_gpu_hides_no_other_from_a_torch_that_has_cuda(
    driver: Player, lost: int, readable: list[int | None]
) -> None:
    code = """
from types import SimpleNamespace
from unittest.mock import patch
import torch
from tda.telemetry.gpu import gpu_source
from tda.telemetry.nvml import NvmlDevice, call, gpus
def properties(index):
    return SimpleNamespace(uuid=f"{index}0000000-0000")
with patch.multiple(torch.cuda, is_available=lambda: True, device_count=lambda: 2, get_device_properties=properties):
    found = gpus()
    busy = [call("nvmlDeviceGetUtilizationRates", gpu.handle).gpu if isinstance(gpu, NvmlDevice) else None
            for gpu in found]
    missing = [gpu_source(torch.device("cuda", index)).missing.get("power_w") for index in (0, 1, 7)]
    result = busy, missing
"""
    busy, missing = driver.run(code, TWO, f"{lost} lost_after 0")
    assert busy == readable
    assert missing[1 - lost] is None
    assert missing[lost] is not None
    assert missing[2] == "no cuda:7 among 2 GPUs"


def test_an_old_pynvml_answers_in_bytes(driver: Player) -> None:
    """The functions as they were before pynvml turned text into str, and took it."""
    code = """
from unittest.mock import patch
import pynvml
from tda.telemetry.gpu import gpu_facts
from tda.telemetry.nvml import driver_version, gpus
names = ("nvmlSystemGetDriverVersion", "nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetHandleByUUID")
with patch.multiple(pynvml, **{name: getattr(pynvml, name).__wrapped__ for name in names}):
    assert isinstance(pynvml.nvmlSystemGetDriverVersion(), bytes)
    facts = [gpu_facts(gpu) for gpu in gpus()]
    result = [driver_version(), [(one["name"], one["UUID"]) for one in facts]]
"""
    for told, uuid in (("GPU-1", UUIDS[1]), (UUIDS[1], UUIDS[1]), (MIG, MIG)):
        assert driver.run(code, TWO, CUDA_VISIBLE_DEVICES=told) == ["FAKE.1", [["FAKE H100", uuid]]]


def test_the_doctor_says_why_there_is_no_gpu(driver: Player) -> None:
    code = "from tda.doctor.checkup import _gpus\nresult = _gpus()"
    for told in ("", "-1", "7"):
        reason = f"CUDA_VISIBLE_DEVICES={told!r} leaves none of 2"
        assert driver.run(code, TWO, CUDA_VISIBLE_DEVICES=told) == [[], reason]
    assert driver.run(code, "* gpus 0") == [[], "the driver has none"]
    (facts,), reason = driver.run(code)
    assert (facts["name"], reason) == ("FAKE H100", None)


@pytest.mark.parametrize(
    ("environment", "sure"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, False),
        ({"CUDA_VISIBLE_DEVICES": "1"}, False),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True),
        ({"CUDA_VISIBLE_DEVICES": ",".join(UUIDS)}, True),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, False),
        ({"CUDA_VISIBLE_DEVICES": f"0,{UUIDS[1]}"}, False),
    ],
)
def test_numbers_among_unlike_gpus_are_not_guessed(driver: Player, environment: dict[str, str], sure: bool) -> None:
    """CUDA counts the fastest first, the driver in PCI order."""
    unlike = (TWO, "0 name FAKE A100", "1 name FAKE H100")
    power = sample(driver, *unlike, **environment)["series"]["gpu0/power_w"]
    assert bool(power["samples"]) == sure
    assert sure or power["missing"].endswith("set CUDA_DEVICE_ORDER=PCI_BUS_ID")


# Flags.

FLAGS = """
import torch
from tda.telemetry import ConditionMonitor, flags_of
flags = flags_of(ConditionMonitor(torch.device("cuda")).read())
result = {name: [flag.raised, flag.detail] for name, flag in flags.items()}
"""


def test_a_foreign_process_raises_foreign_load(driver: Player) -> None:
    raised, detail = driver.run(FLAGS, "* process 4242 2000000000")["foreign_load"]
    assert raised
    assert "other processes on the GPU: 1" in detail
    _, detail = driver.run(FLAGS, f"* process {driver.pid} 2000000000")["foreign_load"]
    assert "other processes on the GPU" not in detail
    assert "0.0 GB of GPU memory that no listed process holds" in detail


def test_memory_that_nobody_explains_raises_foreign_load(driver: Player) -> None:
    own = f"* process {driver.pid} 2000000000"
    raised, detail = driver.run(FLAGS, own, "* hidden 3000000000")["foreign_load"]
    assert raised
    assert "3.0 GB of GPU memory that no listed process holds" in detail
    assert "0.5 GB of GPU memory" in driver.run(FLAGS, own, "* hidden 500000000")["foreign_load"][1]


def test_processes_whose_memory_is_not_told_still_count(driver: Player) -> None:
    assert "other processes on the GPU: 1" in driver.run(FLAGS, "* process 4242 -1")["foreign_load"][1]
    assert "no other process on the GPU" in driver.run(FLAGS, f"* process {driver.pid} -1")["foreign_load"][1]


@pytest.mark.parametrize(
    ("reasons", "raised"), [(0, False), (1, False), (2, False), (4, True), (64, True), (256, False)]
)
def test_reasons_that_slow_raise_throttling(driver: Player, reasons: int, raised: bool) -> None:
    assert driver.run(FLAGS, f"* reasons {reasons}")["throttling"][0] == raised


def test_throttling_between_the_readings_is_counted_by_the_driver(driver: Player) -> None:
    raised, detail = driver.run(FLAGS, "* slowed_ns 1000000000")["throttling"]
    assert raised
    assert "not slowed when read; slowed for 1.00 of" in detail


def test_throttling_that_no_call_tells_is_not_observable(driver: Player) -> None:
    functions = ("CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "FieldValues")
    raised, detail = driver.run(FLAGS, *(f"* unsupported nvmlDeviceGet{name}" for name in functions))["throttling"]
    assert raised is None
    assert "not observable: Not Supported" in detail


def test_a_drift_of_the_clock_raises_clocks(driver: Player) -> None:
    assert driver.run(FLAGS, "* clock_end 1200")["clocks"] == [True, "the clock went from 1980 to 1200 MHz"]
    assert driver.run(FLAGS, "* clock_end 1950")["clocks"][0] is False


# What people see.


def test_facts_are_words(driver: Player) -> None:
    code = (
        "from tda.telemetry.gpu import gpu_facts\n"
        "from tda.telemetry.nvml import driver_version, gpus\n"
        "result = [driver_version(), [gpu_facts(gpu) for gpu in gpus()]]\n"
    )
    version, (one, other) = driver.run(
        code, TWO, "1 mig 1", "1 unsupported nvmlDeviceGetEccMode", "* process 42 1500000000"
    )
    assert version == "FAKE.1"
    assert one == {
        "name": "FAKE H100",
        "UUID": UUIDS[0],
        "ECC": "on",
        "MIG": "off",
        "uncorrected errors": "0",
        "power limit": "700 W",
        "SM clock": "1980 of 1980 MHz",
        "processes": "42 (1.5 GB)",
    }
    assert (other["MIG"], other["ECC"]) == ("on", "unknown: Not Supported (nvmlDeviceGetEccMode)")


def test_a_record_of_a_played_gpu_is_refused_by_the_report(
    driver: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, version = driver.run("from tda.telemetry.nvml import *\nresult = [gpus()[0].name, driver_version()]")
    machine = nights.MACHINE.model_copy(update={"gpu": name, "driver": version})
    (tmp_path / "results.jsonl").write_text(nights.record(machine=machine).model_dump_json() + "\n")
    monkeypatch.setattr(sys, "argv", ["tda", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "records refused, whose GPU 'FAKE H100' is a simulated device" in capsys.readouterr().err


def test_without_a_driver_every_field_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    nvml.library.cache_clear()
    source = gpu_source(torch.device("cuda"))
    assert dict(source.read()) == {}
    assert source.missing == dict.fromkeys(GPU_FIELDS, "no driver: NVML Shared Library Not Found")
    json.dumps(source.missing)


@pytest.mark.gpu
def test_a_real_gpu_tells_what_it_does() -> None:
    from tda.telemetry import ConditionMonitor, Sampler, flags_of

    device = torch.device("cuda")
    a = torch.ones(4096, 4096, device=device)
    monitor = ConditionMonitor(device)
    with Sampler(device) as sampler:
        for _ in range(300):
            a @ a
        torch.cuda.synchronize()
    told = sampler.telemetry
    assert told.gpus["gpu0"] == torch.cuda.get_device_name()
    memory = told.series["gpu0/memory_bytes"]
    assert memory.samples
    assert memory.samples[-1] >= a.nbytes
    assert all(one.samples or one.missing for one in told.series.values())
    assert flags_of(monitor.read())["clocks"].detail
