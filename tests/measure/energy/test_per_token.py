from __future__ import annotations

from pathlib import Path

import pytest

from qplan.core.errors import MeasurementError
from qplan.measure.energy.meter import EnergyReading, measure_energy, measure_idle
from qplan.measure.energy.null import NullMeter
from qplan.measure.energy.per_token import (
    PhaseEnergy,
    TokenWindow,
    joules_per_token,
    observation_columns,
    separate,
)
from qplan.profiles.schema import columns

IDLE_W, PREFILL_J, DECODE_J = 80.0, 0.004, 0.5


def window(seconds: float, prompt: float, decode: float, off: float = 1.0) -> TokenWindow:
    """A window of a replica whose energies are known; its reading is `off` by a factor."""
    joules = (IDLE_W * seconds + PREFILL_J * prompt + DECODE_J * decode) * off
    return TokenWindow(EnergyReading(0, seconds, "nvml", ("GPU 0",), joules, joules), prompt, decode)


def test_joules_per_token_gross_and_above_idle() -> None:
    assert joules_per_token(900.0, 10.0, 100, 50.0) == (9.0, 4.0)
    assert joules_per_token(900.0, 10.0, 100, None) == (9.0, None)
    assert joules_per_token(None, 10.0, 100, 50.0) == (None, None)
    assert joules_per_token(900.0, 10.0, 0, 50.0) == (None, None)


def test_a_window_of_prefill_alone_and_a_mixed_one_tell_the_phases_apart() -> None:
    phases = separate([window(60, 3_000_000, 0), window(60, 600_000, 40_000)], IDLE_W)
    assert phases.prefill_j_per_token == pytest.approx(PREFILL_J)
    assert phases.decode_j_per_token == pytest.approx(DECODE_J)
    assert phases.prefill_error_j is not None
    assert phases.prefill_error_j < 0.1 * PREFILL_J
    assert phases.note is None


def test_the_error_estimate_covers_readings_that_are_off_by_the_sensors_error() -> None:
    for first, second in ((1.025, 0.975), (0.975, 1.025)):
        phases = separate([window(60, 3_000_000, 0, first), window(60, 600_000, 40_000, second)], IDLE_W)
        assert phases.prefill_j_per_token is not None
        assert phases.prefill_error_j is not None
        assert abs(phases.prefill_j_per_token - PREFILL_J) < 1.5 * phases.prefill_error_j
        assert phases.decode_j_per_token is not None
        assert phases.decode_error_j is not None
        assert abs(phases.decode_j_per_token - DECODE_J) < 1.5 * phases.decode_error_j


def test_windows_of_one_mix_do_not_tell_the_phases_apart() -> None:
    phases = separate([window(60, 300_000, 40_000), window(30, 150_000, 20_000)], IDLE_W)
    assert (phases.prefill_j_per_token, phases.decode_j_per_token) == (None, None)
    assert phases.note is not None
    assert "same mix" in phases.note


def test_nearly_one_mix_leaves_the_weaker_phase_unknown() -> None:
    phases = separate([window(60, 300_000, 40_000), window(60, 330_000, 40_000)], IDLE_W)
    assert phases.prefill_j_per_token is None
    assert phases.decode_j_per_token == pytest.approx(DECODE_J)
    assert phases.note is not None
    assert "prefill energy is not told apart" in phases.note


def test_windows_that_contradict_each_other_widen_the_error() -> None:
    agreeing = separate([window(60, 3e6, 0), window(60, 6e5, 4e4), window(60, 1e6, 2e4)], IDLE_W)
    contradicting = separate([window(60, 3e6, 0), window(60, 6e5, 4e4, 1.4), window(60, 6e5, 4e4, 0.8)], IDLE_W)
    assert agreeing.decode_error_j is not None
    assert contradicting.decode_error_j is None or contradicting.decode_error_j > 2 * agreeing.decode_error_j


@pytest.mark.parametrize(
    ("windows", "idle_w", "said"),
    [
        ([window(60, 1e6, 0), window(60, 1e5, 1e4)], None, "idle power was not measured"),
        ([window(60, 1e6, 0)], IDLE_W, "two are needed"),
        ([window(60, 1e6, 0), TokenWindow(EnergyReading(0, 60, "none"), 1e5, 1e4)], IDLE_W, "1 windows with energy"),
    ],
)
def test_what_is_missing_is_said(windows: list[TokenWindow], idle_w: float | None, said: str) -> None:
    phases = separate(windows, idle_w)
    assert phases.prefill_j_per_token is None
    assert phases.note is not None
    assert said in phases.note


def test_an_observation_gets_columns_that_the_schema_has() -> None:
    reading = EnergyReading(
        0, 60, "nvml", ("GPU 0",), 6000.0, 6100.0, 71.0, 1400.0, ("hw_thermal", "sw_power_cap"), "a note"
    )
    row = observation_columns(reading, idle_power_w=80.0, phases=PhaseEnergy(0.004, 0.0001, None, None, "no decode"))
    assert set(row) <= {column.name for column in columns()}
    assert row["energy_j"] == 6000.0
    assert row["throttle_reasons"] == "hw_thermal,sw_power_cap"
    assert row["energy_note"] == "a note; no decode"


def test_a_machine_without_a_counter_gives_null_with_the_reason_never_zero(tmp_path: Path) -> None:
    with NullMeter("no energy counter: looked for NVML and RAPL") as meter:
        row = observation_columns(measure_energy(meter, 0.01))
        assert measure_idle(meter, 0.01).power_w is None
        with pytest.raises(MeasurementError, match="no samples to write: no energy counter"):
            meter.save(tmp_path / "t.jsonl")
    assert row.pop("energy_note") == "no energy counter: looked for NVML and RAPL"
    assert set(row.values()) == {None}


def test_progress_adds_up_to_the_window() -> None:
    seconds: list[float] = []
    with NullMeter("nothing") as meter:
        measure_energy(meter, 0.6, seconds.append)
    assert sum(seconds) == pytest.approx(0.6)
    assert len(seconds) >= 2
