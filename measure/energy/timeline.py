"""Samples of a device over time, and the energy between two moments of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.energy.meter import SHORT_WINDOW_S, EnergyReading

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MAX_GAP_S = 1.0
"""Longest time without a sample that is interpolated over."""

DIVERGENCE = 0.10
"""Share by which counter and polled power may differ before the reading says so."""

_FORMAT = "qplan-energy-1"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one device said at one moment; ``None`` where it did not say.

    Attributes
    ----------
    time_s
        :func:`time.perf_counter` when the counter was read.
    counter_j
        Energy since some fixed moment, in joules, wrap-around taken out.
    error
        Why the device could not be read.
    """

    time_s: float
    counter_j: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The samples of one device, in the order of time.

    Attributes
    ----------
    note
        What to know of the device before trusting its numbers, such as why it has no counter.
    """

    device: str
    samples: Sequence[Sample]
    note: str | None = None


def read_window(source: str, timelines: Sequence[Timeline], start_s: float, end_s: float) -> EnergyReading:
    """Sum the energy of several devices between `start_s` and `end_s`.

    A sum is ``None`` as soon as one device lacks it: part of a replica's energy is not its energy.
    """
    if not end_s > start_s:
        raise MeasurementError(f"an energy window must end after it starts; got {end_s - start_s:.3g} s")
    notes: list[str] = []
    counters: list[float | None] = []
    polled: list[float | None] = []
    for line in timelines:
        counter_j, counter_note = _counter_energy(line.samples, start_s, end_s)
        polled_j, polled_note = _polled_energy(line.samples, start_s, end_s)
        counters.append(counter_j)
        polled.append(polled_j)
        notes += [f"{line.device}: {note}" for note in (line.note, counter_note, polled_note) if note]
        notes += [f"{line.device}: {error}" for error in _errors(line.samples, start_s, end_s)]
        if counter_j is not None and polled_j is not None and _diverge(counter_j, polled_j):
            notes.append(
                f"{line.device}: counter ({counter_j:.4g} J) and polled power ({polled_j:.4g} J) differ by "
                f"{abs(polled_j - counter_j) / max(counter_j, polled_j):.0%}"
            )
    if end_s - start_s < SHORT_WINDOW_S:
        notes.append(f"the window of {end_s - start_s:.3g} s is shorter than {SHORT_WINDOW_S:g} s: repeat it")
    inside = [s for line in timelines for s in line.samples if start_s <= s.time_s <= end_s]
    temperatures = [s.temperature_c for s in inside if s.temperature_c is not None]
    clocks = [s.sm_clock_mhz for s in inside if s.sm_clock_mhz is not None]
    return EnergyReading(
        start_s=start_s,
        end_s=end_s,
        source=source,
        devices=tuple(line.device for line in timelines),
        energy_counter_j=_total(counters),
        energy_polled_j=_total(polled),
        temperature_max_c=max(temperatures, default=None),
        sm_clock_mean_mhz=sum(clocks) / len(clocks) if clocks else None,
        throttle_reasons=tuple(sorted({reason for s in inside for reason in s.throttle_reasons})),
        note="; ".join(dict.fromkeys(notes)) or None,
    )


def save_timelines(path: Path, source: str, driver: str | None, timelines: Sequence[Timeline]) -> None:
    """Write timelines as JSON lines: one that says what follows, then a line for each sample."""
    header = {
        "format": _FORMAT,
        "source": source,
        "driver": driver,
        "devices": [{"device": line.device, "note": line.note} for line in timelines],
    }
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        for number, line in enumerate(timelines):
            for sample in line.samples:
                said = {name: value for name, value in asdict(sample).items() if value not in (None, ())}
                file.write(json.dumps({"device": number, **said}) + "\n")


def load_timelines(path: Path) -> tuple[str, str | None, tuple[Timeline, ...]]:
    """Read what :func:`save_timelines` wrote: source, driver and timelines.

    Raises
    ------
    InputError
        The file cannot be read or a line is not what was expected; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a recorded timeline: {error}") from None
    read = 0
    try:
        header = json.loads(lines[0])
        if header["format"] != _FORMAT:
            raise ValueError(f"format is {header['format']!r}; expected '{_FORMAT}'")
        timelines = tuple(Timeline(device["device"], [], device["note"]) for device in header["devices"])
        samples: list[list[Sample]] = [[] for _ in timelines]
        for read, line in enumerate(lines[1:], 1):  # noqa: B007  # the error below names the line
            fields = json.loads(line)
            device = fields.pop("device")
            samples[device].append(Sample(**fields | {"throttle_reasons": tuple(fields.get("throttle_reasons", ()))}))
        timelines = tuple(replace(line, samples=tuple(s)) for line, s in zip(timelines, samples, strict=True))
        return header["source"], header["driver"], timelines
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}, line {read + 1}: not a recorded timeline: {error}") from None


def _counter_energy(samples: Sequence[Sample], start_s: float, end_s: float) -> tuple[float | None, str | None]:
    """Energy between two moments from a counter, and why it is ``None`` or doubtful."""
    seen = [(s.time_s, s.counter_j) for s in samples if s.counter_j is not None]
    if not seen:
        return None, None  # a device without a counter says so in its own note
    times, values = np.asarray(seen, dtype=np.float64).T
    if why := _uncovered(times, start_s, end_s):
        return None, f"energy counter: {why}"
    around = (times >= start_s - MAX_GAP_S) & (times <= end_s + MAX_GAP_S)
    times, values = times[around], values[around]
    if (np.diff(values) < 0).any():
        return None, "energy counter went backwards in the window"
    at = np.interp([start_s, end_s], *_ticks(times, values))
    return float(at[1] - at[0]), None


def _ticks(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Moments at which a counter's steps happened and the value after each, with the outermost samples.

    A step lies somewhere between the last sample of the old value and the first of the new: the middle is off by
    half a sampling period at most. Interpolating between samples would be off by up to a whole tick of the counter.
    """
    stepped = np.flatnonzero(np.diff(values)) + 1
    if stepped.size == 0:
        return times[[0, -1]], values[[0, -1]]
    moments = (times[stepped - 1] + times[stepped]) / 2
    return np.concatenate([times[:1], moments, times[-1:]]), np.concatenate([values[:1], values[stepped], values[-1:]])


def _polled_energy(samples: Sequence[Sample], start_s: float, end_s: float) -> tuple[float | None, str | None]:
    """Integral of polled power between two moments, and why it is ``None``."""
    seen = [(s.time_s, s.power_w) for s in samples if s.power_w is not None]
    if not seen:
        return None, None
    times, watts = np.asarray(seen, dtype=np.float64).T
    if why := _uncovered(times, start_s, end_s):
        return None, f"polled power: {why}"
    inside = (times > start_s) & (times < end_s)
    if np.diff(np.concatenate([[start_s], times[inside], [end_s]])).max() > MAX_GAP_S:
        return None, f"polled power: no sample for more than {MAX_GAP_S:g} s"
    ends = np.interp([start_s, end_s], times, watts)
    at = np.concatenate([[start_s], times[inside], [end_s]])
    power = np.concatenate([ends[:1], watts[inside], ends[1:]])
    return float(np.sum(np.diff(at) * (power[1:] + power[:-1]) / 2)), None


def _uncovered(times: Floats, start_s: float, end_s: float) -> str | None:
    """Say which end of the window no sample is near, or return ``None``."""
    if times[0] > start_s or not ((times <= start_s) & (times >= start_s - MAX_GAP_S)).any():
        return f"no sample in the {MAX_GAP_S:g} s before the window"
    if not ((times >= end_s) & (times <= end_s + MAX_GAP_S)).any():
        return f"no sample in the {MAX_GAP_S:g} s after the window"
    return None


def _errors(samples: Sequence[Sample], start_s: float, end_s: float) -> Iterator[str]:
    """Each different error of a window, with how often it came."""
    errors = [s.error for s in samples if s.error is not None and start_s <= s.time_s <= end_s + MAX_GAP_S]
    for error in dict.fromkeys(errors):
        yield f"{error} ({errors.count(error)} of the window's samples)"


def _diverge(counter_j: float, polled_j: float) -> bool:
    return abs(polled_j - counter_j) > DIVERGENCE * max(counter_j, polled_j)


def _total(parts: Sequence[float | None]) -> float | None:
    present = [part for part in parts if part is not None]
    return sum(present) if present and len(present) == len(parts) else None
