"""The rig: a server that runs, its energy meter, and whom to tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.measure.campaign.block import Stopped
from qplan.measure.campaign.rows import server_columns
from qplan.measure.energy import open_meter
from qplan.measure.energy.meter import SHORT_WINDOW_S, measure_idle
from qplan.measure.energy.null import NullMeter

if TYPE_CHECKING:
    from qplan.measure.campaign.block import Job
    from qplan.measure.campaign.events import Emit, Stopping
    from qplan.measure.energy.meter import Meter
    from qplan.measure.engines.contract import Prepared, Server
    from qplan.measure.load.prompts import Vocabulary

IDLE_S = SHORT_WINDOW_S
"""Length of the window in which a server's idle power is measured."""


@dataclass(slots=True)
class Rig:
    """What a point is measured with.

    Attributes
    ----------
    columns
        What every observation says of this server.
    idle_power_w
        Power with the model loaded and no request; ``None`` where there is no meter.
    saturation_qps
        Saturation rates that are known, by workload; each search adds its own.
    vocabulary
        Words that the server's tokenizer keeps whole; ``None`` until prompts are first made.
    """

    job: Job
    server: Server
    meter: Meter
    emit: Emit
    stopping: Stopping
    columns: dict[str, Any]
    idle_power_w: float | None
    saturation_qps: dict[str, float]
    vocabulary: Vocabulary | None = None


@contextmanager
def make_rig(job: Job, server: Server, prepared: Prepared, emit: Emit, stopping: Stopping) -> Iterator[Rig]:
    """Start the meter of a server and measure its idle power, where there is something to measure it with."""
    if not job.energy:
        meter: Meter = NullMeter("energy was not asked for")
    elif server.pid is None:
        meter = NullMeter("the server runs elsewhere: its energy cannot be read from here")
    else:
        meter = open_meter(job.devices)
    with meter:
        idle_power_w = None if meter.source == "none" else _idle_power_w(meter, stopping)
        columns = server_columns(server, prepared, meter)
        yield Rig(job, server, meter, emit, stopping, columns, idle_power_w, dict(job.saturation_qps))


def _idle_power_w(meter: Meter, stopping: Stopping) -> float | None:
    """Measure the power of a server that has nothing to do; ``None`` where the meter could not say."""

    def look(_: float) -> None:
        if stopping():
            raise Stopped

    return measure_idle(meter, IDLE_S, look).power_w
