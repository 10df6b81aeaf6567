"""What happens in a campaign, as plain data: the journal, the live display, the JSON log and tests consume the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """What measuring a point gave.

    Attributes
    ----------
    state
        ``done``, ``failed`` or ``invalid``.
    rows
        Observations, as column values.
    raw
        Request records.
    metrics
        What later points need: the saturation rate, per-item results of a quality task.
    last_lines
        The engine's, of a failure.
    seconds
        How long it took.
    final
        Whether another attempt under the same plan would end the same way.
    """

    state: str
    rows: tuple[Mapping[str, Any], ...] = ()
    reason: str | None = None
    raw: bytes | None = field(default=None, repr=False)
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)
    last_lines: tuple[str, ...] = ()
    seconds: float = 0.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class CampaignStarted:
    """The grid is made and the journal read."""

    name: str
    points: int
    open_points: int
    refused: int
    estimate_s: float


@dataclass(frozen=True, slots=True)
class EngineStarting:
    """An engine is about to be started."""

    block: int
    target: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineReady:
    """An engine serves."""

    block: int
    target: str
    version: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineStopped:
    """An engine was stopped, or was found dead and its remains were removed."""

    block: int
    target: str


@dataclass(frozen=True, slots=True)
class PointStarted:
    """A point is being measured."""

    key: str
    point: str


@dataclass(frozen=True, slots=True)
class PointProgress:
    """How far a point is, in whatever it counts: requests, probes, items; `of` is 0 where nobody knows."""

    key: str
    count: int
    of: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProbeFinished:
    """One probe of a saturation search is over; `result` resumes the search, `raw` are its request records."""

    key: str
    result: Mapping[str, Any]
    raw: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class PointRetried:
    """An attempt failed; the point is tried again after `wait_s`."""

    key: str
    point: str
    reason: str
    last_lines: tuple[str, ...]
    wait_s: float


@dataclass(frozen=True, slots=True)
class PointFinished:
    """A point is closed."""

    key: str
    point: str
    result: Result


@dataclass(frozen=True, slots=True)
class PointPutBack:
    """An attempt was stopped on request; the point is still to be measured."""

    key: str
    point: str


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A block is over; `error` says why its worker died, if it did."""

    block: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CampaignEnded:
    """The campaign is over, or was stopped."""

    done: int
    failed: int
    invalid: int
    left: int
    stopped: bool


Event = (
    CampaignStarted
    | EngineStarting
    | EngineReady
    | EngineStopped
    | PointStarted
    | PointProgress
    | ProbeFinished
    | PointRetried
    | PointFinished
    | PointPutBack
    | BlockEnded
    | CampaignEnded
)

Emit = Callable[[Event], None]
Stopping = Callable[[], bool]
