from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.energy.replay import ReplayMeter
from qplan.measure.energy.timeline import Sample, Timeline, read_window, save_timelines

PERIOD_S, TICK_S = 0.05, 0.1


def recorded(watts: list[float], counter: bool = True, power: bool = True, offset_s: float = 0.013) -> Timeline:
    """Sample a device that draws each of `watts` for one second, its counter ticking every 100 ms."""
    edges = np.arange(len(watts) + 1.0)
    joules = np.concatenate([[0.0], np.cumsum(watts)])
    samples = []
    for t in np.arange(offset_s, len(watts), PERIOD_S):
        ticked = np.interp(np.floor(t / TICK_S) * TICK_S, edges, joules)
        samples.append(
            Sample(
                float(t),
                counter_j=float(1e6 + ticked) if counter else None,
                power_w=watts[int(t)] if power else None,
            )
        )
    return Timeline("GPU 0", samples)


def truth(watts: list[float], start_s: float, end_s: float) -> float:
    edges, joules = np.arange(len(watts) + 1.0), np.concatenate([[0.0], np.cumsum(watts)])
    return float(np.interp(end_s, edges, joules) - np.interp(start_s, edges, joules))


@given(
    watts=st.lists(st.floats(50, 700), min_size=6, max_size=12),
    start_s=st.floats(0.5, 2),
    length_s=st.floats(0.5, 3),
    offset_s=st.floats(0, PERIOD_S),
)
def test_a_window_is_read_to_the_sampling_period_not_to_the_counters_tick(
    watts: list[float], start_s: float, length_s: float, offset_s: float
) -> None:
    end_s = start_s + length_s
    reading = read_window("nvml", [recorded(watts, offset_s=offset_s)], start_s, end_s)
    true_j, resolution_j = truth(watts, start_s, end_s), max(watts) * PERIOD_S
    assert reading.energy_counter_j == pytest.approx(true_j, abs=1.01 * resolution_j + 1e-3)
    # A step of power between two samples is seen half a period early or late.
    assert reading.energy_polled_j == pytest.approx(true_j, abs=(len(watts) / 2) * resolution_j)


def test_constant_power_is_exact() -> None:
    reading = read_window("nvml", [recorded([200.0] * 6)], 1.234, 4.567)
    assert reading.energy_polled_j == pytest.approx(200 * 3.333, rel=1e-9)
    assert reading.energy_counter_j == pytest.approx(200 * 3.333, rel=0.02)


def test_several_devices_are_summed_and_one_without_numbers_takes_the_sum_away() -> None:
    both = read_window("nvml", [recorded([100.0] * 4), recorded([300.0] * 4)], 1, 3)
    assert both.energy_polled_j == pytest.approx(800)
    mixed = read_window("nvml", [recorded([100.0] * 4), recorded([300.0] * 4, counter=False)], 1, 3)
    assert mixed.energy_counter_j is None
    assert mixed.energy_j == pytest.approx(800)
    silent = Timeline("GPU 1", (), "MIG is on")
    assert read_window("nvml", [recorded([100.0] * 4), silent], 1, 3).energy_j is None


def test_a_window_that_the_samples_do_not_cover_is_null_with_the_reason() -> None:
    line = recorded([100.0] * 4)
    early = read_window("nvml", [line], -1, 2)
    assert early.energy_j is None
    assert early.note is not None
    assert "before the window" in early.note
    late = read_window("nvml", [line], 2, 9)
    assert late.note is not None
    assert "after the window" in late.note


def test_a_hole_in_the_samples_voids_polled_power_but_not_the_counter() -> None:
    line = recorded([100.0] * 8)
    holed = Timeline("GPU 0", [s for s in line.samples if not 3 < s.time_s < 5])
    reading = read_window("nvml", [holed], 1, 7)
    assert reading.energy_polled_j is None
    assert reading.energy_j == pytest.approx(600, rel=0.02)
    assert reading.note is not None
    assert "no sample for more than" in reading.note


def test_a_counter_that_goes_backwards_is_not_believed() -> None:
    line = recorded([100.0] * 4)
    reset = Timeline("GPU 0", [Sample(s.time_s, (s.counter_j or 0) - 1e5 * (s.time_s > 2)) for s in line.samples])
    reading = read_window("nvml", [reset], 1, 3)
    assert reading.energy_j is None
    assert reading.note is not None
    assert "backwards" in reading.note


def test_a_stuck_counter_is_flagged_by_polled_power() -> None:
    line = recorded([100.0] * 4)
    stuck = Timeline("GPU 0", [Sample(s.time_s, 5.0, s.power_w) for s in line.samples])
    reading = read_window("nvml", [stuck], 1, 3)
    assert reading.energy_counter_j == 0
    assert reading.note is not None
    assert "differ by 100%" in reading.note


def test_a_window_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(MeasurementError, match="must end after it starts"):
        read_window("nvml", [recorded([100.0] * 4)], 2, 2)


def test_a_replayed_meter_stands_in_for_the_recorded_one_from_its_entering_on(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    save_timelines(file, "nvml", "570", [recorded([100.0, 100.0, 400.0, 400.0])])
    with ReplayMeter(file) as meter:
        entered_s = time.perf_counter()
        low, high = meter.between(entered_s + 0.5, entered_s + 1.5), meter.between(entered_s + 2.5, entered_s + 3.5)
    assert low.power_w == pytest.approx(100, rel=0.1)
    assert high.power_w == pytest.approx(400, rel=0.1)
    assert low.start_s == entered_s + 0.5
    assert (meter.source, meter.driver) == ("nvml", "570")
    again = tmp_path / "again.jsonl"
    meter.save(again)
    assert again.read_text() == file.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1"),
        ("hello\n", "line 1"),
        ('{"format": "other"}\n', "expected 'qplan-energy-1'"),
        ("HEADER\n{}\n", "line 2"),
        ('HEADER\n{"device": 3, "time_s": 1}\n', "line 2"),
        ('HEADER\n{"device": 0, "time_s": 1, "volts": 2}\n', "volts"),
    ],
)
def test_a_file_that_is_no_timeline_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    header = {"format": "qplan-energy-1", "source": "nvml", "driver": None, "devices": [{"device": "a", "note": None}]}
    file = tmp_path / "broken.jsonl"
    file.write_text(text.replace("HEADER", json.dumps(header)))
    with pytest.raises(InputError, match="broken") as caught:
        ReplayMeter(file)
    assert said in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a recorded timeline"):
        ReplayMeter(tmp_path / "none.jsonl")
