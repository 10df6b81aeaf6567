from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pynvml
import pytest

from qplan.measure.energy.nvml import MEANINGS, THROTTLE_REASONS, visible_devices
from qplan.measure.energy.replay import ReplayMeter
from qplan.measure.energy.timeline import Timeline, load_timelines

Shim = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVML is stood in for by an ELF library")

LOW_W, HIGH_W = (100.0, 200.0), (300.0, 350.0)


def largest_gap_s(timelines: tuple[Timeline, ...]) -> float:
    times = [sample.time_s for sample in timelines[0].samples]
    return max(later - earlier for earlier, later in pairwise(times))


@pytest.fixture(scope="module")
def stepped(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, float]:
    """A window of two GPUs whose power steps up inside it, the recording, and the true energy."""
    file = tmp_path_factory.mktemp("recorded") / "timeline.jsonl"
    switch_s = time.perf_counter() + 2.0
    found = shim(
        "measure",
        "2",
        "0,1",
        str(file),
        SHIM_GPUS=2,
        SHIM_LOW_W="100,200",
        SHIM_HIGH_W="300,350",
        SHIM_SWITCH_S=switch_s,
        SHIM_THROTTLE=0x1 | 0x4 | 0x40,
    )
    before_s = min(max(switch_s - found["start_s"], 0.0), 2.0)
    return found, file, sum(LOW_W) * before_s + sum(HIGH_W) * (2.0 - before_s)


def test_counter_and_polled_power_find_the_energy_within_a_tick(stepped: tuple[dict[str, Any], Path, float]) -> None:
    found, file, truth_j = stepped
    resolution_j = sum(HIGH_W) * (0.1 + largest_gap_s(load_timelines(file)[2]))
    assert found["energy_counter_j"] == pytest.approx(truth_j, abs=resolution_j)
    assert found["energy_polled_j"] == pytest.approx(truth_j, abs=resolution_j)
    assert found["energy_j"] == found["energy_counter_j"]
    assert found["power_w"] == pytest.approx(found["energy_j"] / 2)


def test_the_state_of_all_gpus_is_logged_with_the_window(stepped: tuple[dict[str, Any], Path, float]) -> None:
    found, _, _ = stepped
    assert found["temperature_max_c"] == 65
    assert found["sm_clock_mean_mhz"] == pytest.approx(1550, rel=0.01)  # an end may lie between two GPUs' samples
    assert found["throttle_reasons"] == ["hw_thermal", "sw_power_cap"]
    assert found["devices"] == ["GPU 0 (Shim 100)", "GPU 1 (Shim 100)"]
    assert found["driver"] == "570.00-shim"
    assert "shorter than 30 s" in found["note"]


def test_the_replayed_recording_answers_as_the_meter_did(stepped: tuple[dict[str, Any], Path, float]) -> None:
    found, file, _ = stepped
    replayed = ReplayMeter(file).between(found["start_s"], found["end_s"])
    assert replayed.energy_counter_j == pytest.approx(found["energy_counter_j"])
    assert replayed.energy_polled_j == pytest.approx(found["energy_polled_j"])
    assert list(replayed.throttle_reasons) == found["throttle_reasons"]
    assert replayed.note == found["note"]


def test_a_gpu_without_counter_is_integrated_from_power_and_says_so(shim: Shim, tmp_path: Path) -> None:
    found = shim(
        "measure", "0.4", "0", str(tmp_path / "t"), SHIM_LOW_W=250, SHIM_NO_COUNTER=0, SHIM_NO_INSTANT=0, SHIM_GPUS=1
    )
    assert found["energy_counter_j"] is None
    assert found["energy_j"] == found["energy_polled_j"] == pytest.approx(100, rel=1e-3)
    assert "no energy counter: not supported by this GPU" in found["note"]
    assert "average over the last second" in found["note"]


def test_one_gpu_without_counter_leaves_the_sum_to_polled_power(shim: Shim, tmp_path: Path) -> None:
    found = shim("measure", "0.4", "default", str(tmp_path / "t"), SHIM_LOW_W="250,50", SHIM_NO_COUNTER=1, SHIM_GPUS=2)
    assert found["energy_counter_j"] is None
    assert found["energy_j"] == pytest.approx(120, rel=1e-3)


def test_a_sensor_that_disagrees_with_the_counter_is_flagged(shim: Shim, tmp_path: Path) -> None:
    found = shim("measure", "0.4", "0", str(tmp_path / "t"), SHIM_LOW_W=200, SHIM_SENSOR=0.5)
    assert found["energy_polled_j"] == pytest.approx(40, rel=1e-3)
    assert "GPU 0 (Shim 100): counter" in found["note"]
    assert "differ by" in found["note"]


def test_a_gpu_that_is_lost_in_the_window_takes_its_energy_along_not_the_run(shim: Shim, tmp_path: Path) -> None:
    found = shim("measure", "1.5", "0", str(tmp_path / "t"), SHIM_LOW_W=200, SHIM_LOST_AFTER_S=1.2, SHIM_GPUS=1)
    assert found["energy_j"] is None
    assert "the GPU is lost" in found["note"]


def test_a_sliced_gpu_has_no_energy(shim: Shim, tmp_path: Path) -> None:
    found = shim("measure", "0.1", "0", str(tmp_path / "t"), SHIM_MIG=0)
    assert found["energy_j"] is None
    assert "MIG is on" in found["note"]


@pytest.mark.parametrize(
    ("which", "settings", "said"),
    [
        ("0,2", {"SHIM_GPUS": 2}, "no GPU '2'; this machine has GPUs 0 to 1"),
        ("GPU-7", {"SHIM_GPUS": 1}, "no GPU 'GPU-7'; this machine has GPU 0"),
        ("default", {"SHIM_GPUS": 2, "CUDA_VISIBLE_DEVICES": "0,5"}, "CUDA_VISIBLE_DEVICES: no GPU '5'"),
        ("default", {"CUDA_VISIBLE_DEVICES": "MIG-1"}, "MIG-1 is a MIG slice"),
        ("default", {"SHIM_GPUS": 0}, "there is no GPU here"),
        ("0", {"SHIM_INIT": 9}, "the NVIDIA kernel driver is not loaded"),
        ("0", {"SHIM_INIT": 18}, "of different versions"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    shim: Shim, tmp_path: Path, which: str, settings: dict[str, object], said: str
) -> None:
    found = shim("measure", "0.1", which, str(tmp_path / "t"), **settings)
    assert said in found["error"]
    assert "\n" not in found["error"]


def test_gpus_are_chosen_as_cuda_chooses_them(shim: Shim, tmp_path: Path) -> None:
    found = shim("measure", "0.1", "default", str(tmp_path / "t"), SHIM_GPUS=3, CUDA_VISIBLE_DEVICES="GPU-2,0,-1,1")
    assert found["devices"] == ["GPU 2 (Shim 100)", "GPU 0 (Shim 100)"]


@pytest.mark.parametrize(
    ("value", "visible"), [("2,1", ("2", "1")), ("0,-1,1", ("0",)), ("", ()), ("-1", ()), (None, None)]
)
def test_visible_devices_end_where_cuda_ends_them(
    monkeypatch: pytest.MonkeyPatch, value: str | None, visible: tuple[str, ...] | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_devices() == visible


def test_every_error_code_of_the_binding_has_a_meaning() -> None:
    codes = {value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
    assert codes == set(MEANINGS)


def test_every_throttle_reason_of_the_binding_has_a_name() -> None:
    bits = {
        value
        for name, value in vars(pynvml).items()
        if name.startswith(("nvmlClocksThrottleReason", "nvmlClocksEventReason")) and isinstance(value, int)
    }
    single = {value for value in bits if value and value & (value - 1) == 0}
    assert single - {pynvml.nvmlClocksEventReasonGpuIdle} == set(THROTTLE_REASONS)


def test_open_meter_prefers_the_gpus_and_never_counts_a_cpu_for_them(shim: Shim) -> None:
    assert shim("open", "default")["source"] == "nvml"
    refused = shim("open", "0", SHIM_INIT=12)
    assert refused["source"] == "none"
    assert "no NVML library" in refused["note"]
    assert "RAPL" not in refused["note"]
    hidden = shim("open", "default", CUDA_VISIBLE_DEVICES="")
    assert hidden["source"] in ("rapl", "none")
