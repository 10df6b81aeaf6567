"""Joules per token: of a window, and of prefill and decode apart.

A replica that runs draws its idle power whatever it does; what requests add on top is, for a deployment at like
batch sizes, in proportion to the prompt tokens and to the generated tokens::

    E - P_idle T  =  e_prefill x prompt tokens  +  e_decode x generated tokens

One window whose requests ask for a single output token has no decode, because the first token comes out of prefill;
with it and a window of the usual mix there are two equations for two unknowns. Further windows make it a weighted
least-squares fit. Both results are energy *above idle*; gross energy cannot be told apart by phase, since idle power
belongs to neither. That decode costs the same per token in every window holds at like batch sizes only (Samsi et al.,
"From Words to Watts", arXiv 2310.03003, show how it falls with the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from qplan.measure.energy.meter import EnergyReading

    Floats = npt.NDArray[np.float64]

LARGEST_ERROR = 0.5
"""A phase's energy whose relative standard error is larger than this is not told apart from the other's."""

_COUNTER_TICK_S = 0.1
_SENSOR_ERROR = (
    0.02  # NVML's power is good to 5 %, a 95 % interval, by NVIDIA's documentation of nvmlDeviceGetPowerUsage
)


@dataclass(frozen=True, slots=True)
class TokenWindow:
    """A window and the tokens that were worked on in it.

    Attributes
    ----------
    prompt_tokens
        Tokens of the prompts that were prefilled.
    decode_tokens
        Generated tokens without the first of each request, which prefill yields.
    """

    energy: EnergyReading
    prompt_tokens: float
    decode_tokens: float


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """Energy above idle of one token in each phase, in joules, with standard errors; ``None`` with a note.

    Attributes
    ----------
    note
        Why the phases could not be told apart.
    """

    prefill_j_per_token: float | None = None
    prefill_error_j: float | None = None
    decode_j_per_token: float | None = None
    decode_error_j: float | None = None
    note: str | None = None


def joules_per_token(
    energy_j: float | None, duration_s: float, tokens: float | None, idle_power_w: float | None
) -> tuple[float | None, float | None]:
    """Return J/token of a window, gross and above idle; ``None`` for what is not known.

    Parameters
    ----------
    tokens
        Generated tokens of the same window.
    """
    if energy_j is None or not tokens:
        return None, None
    above = None if idle_power_w is None else (energy_j - idle_power_w * duration_s) / tokens
    return energy_j / tokens, above


def separate(windows: Sequence[TokenWindow], idle_power_w: float | None) -> PhaseEnergy:
    """Tell prefill's energy from decode's, by two windows or more with different shares of each.

    The standard errors come from the resolution of each window (a tick of the counter, 2.5 % of the sensor, the
    disagreement of counter and polled power) and, with more than two windows, from how badly the sum fits.
    """
    known = [window for window in windows if window.energy.energy_j is not None]
    if idle_power_w is None:
        return PhaseEnergy(note="prefill and decode not told apart: idle power was not measured")
    if len(known) < 2:
        return PhaseEnergy(note=f"prefill and decode not told apart: {len(known)} windows with energy; two are needed")
    tokens = np.array([(w.prompt_tokens, w.decode_tokens) for w in known], dtype=np.float64)
    above = np.array([_above(w.energy, idle_power_w) for w in known])
    sizes = np.array([_error_j(w.energy) for w in known])
    weighted = tokens / sizes[:, None]
    normal = weighted.T @ weighted
    if not np.isfinite(normal).all() or np.linalg.cond(_scaled(normal)) > 1e12:
        return PhaseEnergy(note="prefill and decode not told apart: every window has the same mix of tokens")
    covariance = np.linalg.inv(normal)
    energies = covariance @ (weighted.T @ (above / sizes))
    misfits = (above - tokens @ energies) / sizes
    excess = max(1.0, float(misfits @ misfits) / (len(known) - 2)) if len(known) > 2 else 1.0
    errors = np.sqrt(np.diag(covariance) * excess)
    return _judged(energies, errors)


def observation_columns(
    reading: EnergyReading, *, idle_power_w: float | None = None, phases: PhaseEnergy | None = None
) -> dict[str, Any]:
    """Return the energy columns of an observation, by their names in the schema."""
    phases = phases or PhaseEnergy()
    notes = [note for note in (reading.note, phases.note) if note]
    return {
        "energy_j": reading.energy_j,
        "energy_polled_j": reading.energy_polled_j,
        "idle_power_w": idle_power_w,
        "energy_prefill_j_per_token": phases.prefill_j_per_token,
        "energy_decode_j_per_token": phases.decode_j_per_token,
        "temperature_max_c": reading.temperature_max_c,
        "sm_clock_mean_mhz": reading.sm_clock_mean_mhz,
        "throttle_reasons": ",".join(reading.throttle_reasons) or None,
        "energy_note": "; ".join(notes) or None,
    }


def _above(reading: EnergyReading, idle_power_w: float) -> float:
    """Energy of a window above idle, in joules."""
    assert reading.energy_j is not None
    return reading.energy_j - idle_power_w * reading.duration_s


def _error_j(reading: EnergyReading) -> float:
    """Return the standard error of a window's energy, in joules."""
    assert reading.energy_j is not None
    tick = _COUNTER_TICK_S * reading.energy_j / reading.duration_s
    counter, polled = reading.energy_counter_j, reading.energy_polled_j
    apart = 0.0 if counter is None or polled is None else abs(counter - polled) / 2
    return max(float(np.sqrt(tick**2 + (_SENSOR_ERROR * reading.energy_j) ** 2 + apart**2)), 1e-9)


def _scaled(normal: Floats) -> Floats:
    """Give the normal equations a unit diagonal, so that their condition tells of shape, not of units."""
    size = np.sqrt(np.maximum(np.diag(normal), np.finfo(np.float64).tiny))
    scaled: Floats = normal / np.outer(size, size)
    return scaled


def _judged(energies: Floats, errors: Floats) -> PhaseEnergy:
    """Keep a phase's energy where its sign and size are certain enough."""
    kept: list[tuple[float, float] | None] = []
    notes = []
    for phase, energy, error in zip(("prefill", "decode"), energies, errors, strict=True):
        if energy > 0 and error <= LARGEST_ERROR * energy:
            kept.append((float(energy), float(error)))
        else:
            kept.append(None)
            notes.append(f"{phase} energy is not told apart: {energy:.3g} J/token with a standard error of {error:.2g}")
    (prefill, decode) = kept
    return PhaseEnergy(
        prefill_j_per_token=prefill[0] if prefill else None,
        prefill_error_j=prefill[1] if prefill else None,
        decode_j_per_token=decode[0] if decode else None,
        decode_error_j=decode[1] if decode else None,
        note="; ".join(notes) or None,
    )
