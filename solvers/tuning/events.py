"""What a worker tells of its work, for displays and logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Began:
    """A configuration is being measured."""

    trial: int
    configuration: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a measurement is."""

    trial: int
    note: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial is over: ``measured``, ``abandoned``, ``cannot run``, ``yielded`` or ``stopped``."""

    trial: int
    configuration: str
    how: str
    values: Mapping[str, float]
    reason: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Died:
    """A worker on a cluster has died; another takes its place, and measures what it held."""

    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing is left to choose, but others still measure."""

    others: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The worker ends, and why."""

    reason: str
    interrupted: bool = False


Event = Began | Progressed | Ended | Died | Waiting | Stopped
