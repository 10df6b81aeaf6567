"""How a figure changes from period to period: a number, a list of them, a named shape, or that of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from qplan.core.demand import DIURNAL, Trace
from qplan.core.errors import InputError, nearest
from qplan.core.units import parse_number
from qplan.profiles.lengths.buckets import bucket_of
from qplan.profiles.workloads import read_trace_rows
from qplan.profiles.yamlfile import Entry

SHAPES = ("flat", "diurnal", "trace")
_BY_PERIOD = ("demand", "price", "carbon")  # keys that may hold a list with a figure for each period


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The requests of a trace in the order in which they came.

    Attributes
    ----------
    times_s : (N,)
        Seconds from the first.
    tokens : (N,)
        Input and output tokens.
    """

    times_s: tuple[float, ...]
    tokens: tuple[tuple[float, float], ...]

    @classmethod
    def read(cls, path: Path, where: str) -> Arrivals:
        """Read the arrivals of an Azure-like CSV file.

        Raises
        ------
        InputError
            A column or a time is missing or unreadable, with its line; or all requests came at once.
        """
        requests = []
        for line, (text, given, made) in enumerate(read_trace_rows(path, where, timed=True), start=2):
            try:
                requests.append((datetime.fromisoformat(text).timestamp(), (given, made)))
            except ValueError:
                raise InputError(
                    f"{where}: {path}, line {line}: TIMESTAMP is '{text}'; expected such as 2023-11-16 18:17:03.98"
                ) from None
        requests.sort(key=lambda request: request[0])
        if not requests or requests[0][0] == requests[-1][0]:
            raise InputError(f"{where}: {path} holds no two requests at different times")
        first = requests[0][0]
        return cls(tuple(time - first for time, _ in requests), tuple(tokens for _, tokens in requests))

    def rates(self, periods: int) -> tuple[float, ...]:
        """Return the mean requests/s in each of so many equal parts of the trace."""
        counts, _ = np.histogram(self.times_s, bins=periods)
        return tuple((counts * periods / self.times_s[-1]).tolist())

    def trace(self, file: Path, *, lengths: bool, by_period: bool) -> Trace:
        """Return the requests as they came: with their `lengths`, or for their times alone.

        With lengths, requests without a token in or out are left out, as a workload leaves them out
        (:func:`~qplan.profiles.workloads.read_workload`).
        """
        if not lengths:
            return Trace(str(file), self.times_s, (), by_period)
        tokens = np.array(self.tokens)
        kept = (tokens >= 1).all(axis=1)
        rows = np.column_stack([np.rint(tokens[kept]), bucket_of(tokens[kept])]).astype(int).tolist()
        times = np.array(self.times_s)[kept].tolist()
        return Trace(str(file), tuple(times), tuple((given, made, one) for given, made, one in rows), by_period)


def count_periods(root: Entry) -> tuple[int, str]:
    """Return how many periods a demand file speaks of, and the place that says so."""
    fields = root.fields or {}
    if "periods" in fields:
        return fields["periods"].count(most=8784), fields["periods"].where
    shaped = ""
    for entry in _by_period(root):
        if entry.items is not None:
            return len(entry.items), entry.where
        if entry.text in ("diurnal", "trace"):
            shaped = shaped or entry.where
    return (len(DIURNAL), shaped) if shaped else (1, root.where)


def figures(
    entry: Entry, periods: tuple[int, str], read: Callable[[Entry], float], what: str = "a number"
) -> tuple[float, ...]:
    """Read a figure for each period, or one for all."""
    count, said = periods
    if entry.items is None:
        return (read(entry),) * count
    if len(entry.items) != count:
        raise InputError(
            f"{entry.where}: found {len(entry.items)} figures; expected {what}, or {count} of them, one a period "
            f"(as {said} says)"
        )
    return tuple(read(item) for item in entry.items)


def factors(entry: Entry, periods: tuple[int, str], arrivals: Arrivals | None) -> tuple[float, ...]:
    """Read the shape of a demand: its rates by period over that of the busiest."""
    count, said = periods
    if entry.items is not None:
        rates = figures(entry, periods, at_least_zero, "flat, diurnal, trace")
    else:
        shape = entry.string("flat, diurnal, trace or a list with a figure for each period")
        if shape not in SHAPES:
            raise InputError(
                f"{entry.where}: found '{shape}'; expected {', '.join(SHAPES)} or a list with a figure for each period"
                f"{nearest(shape, SHAPES)}"
            )
        if shape == "diurnal" and count != len(DIURNAL):
            raise InputError(
                f"{entry.where}: diurnal is the shape of 24 periods, but {said} makes it {count}; expected a list of "
                f"{count} figures"
            )
        if shape == "trace" and arrivals is None:
            raise InputError(f"{entry.where}: this class has no trace; add the key 'trace', or use diurnal or a list")
        shapes: Mapping[str, Callable[[], tuple[float, ...]]] = {
            "flat": lambda: (1.0,) * count,
            "diurnal": lambda: DIURNAL,
            "trace": lambda: arrivals.rates(count) if arrivals else (),
        }
        rates = shapes[shape]()
    if max(rates) <= 0:
        raise entry.wrong("a figure above 0 for one period at least")
    return tuple(rate / max(rates) for rate in rates)


def at_least_zero(entry: Entry) -> float:
    """Return a number of at least 0."""
    number = parse_number(entry.string("a number"), entry.where)
    if number < 0:
        raise entry.wrong("a number of at least 0")
    return number


def _by_period(entry: Entry) -> Iterator[Entry]:
    for key, child in (entry.fields or {}).items():
        if key in _BY_PERIOD:
            yield child
        yield from _by_period(child)
    for item in entry.items or ():
        yield from _by_period(item)
