"""Observations of a point: the columns that say what was measured, on what, and how it is known."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.provenance import Provenance
from qplan.measure.campaign.points import LOAD, QUALITY, SATURATION, Point

if TYPE_CHECKING:
    from qplan.measure.campaign.block import Job
    from qplan.measure.energy.meter import Meter
    from qplan.measure.engines.contract import Prepared, Server

_PHASE = {LOAD: "serving", SATURATION: "saturation", QUALITY: "quality"}


def server_columns(server: Server, prepared: Prepared, meter: Meter) -> dict[str, Any]:
    """Return what is known of the server that runs: version, command, weights, machine."""
    return {
        "engine_version": server.version,
        "command": json.dumps(list(server.command)) if server.command else None,
        "bits_per_weight": prepared.bits_per_weight,
        "host": host() if server.pid is not None else None,
        "driver": meter.driver,
    }


def point_columns(point: Point, source: str, offered_qps: float | None) -> dict[str, Any]:
    """Return the identity of a point's observation, and where it comes from."""
    columns: dict[str, Any] = {
        **point.target.columns(),
        "phase": _PHASE[point.kind],
        "repeat": point.repeat,
        "provenance": Provenance.MEASURED.value,
        "source": f"{source} point {point.key[:12]}",
        "measured_on": datetime.now(UTC).date().isoformat(),
    }
    if point.kind == QUALITY:
        return columns | {"task": point.task}
    return columns | {
        "workload": point.workload,
        "offered_qps": offered_qps,
        "arrivals": point.arrivals,
        "slo": point.slo or None,
    }


def failure_row(point: Point, job: Job, engine_version: str, status: str, reason: str) -> dict[str, Any]:
    """Return the observation of a point that could not be measured."""
    rate = point.qps
    if point.share is not None and point.workload in job.saturation_qps:
        rate = share_of(job.saturation_qps[point.workload], point.share)
    columns = point_columns(point, job.source, rate)
    if point.kind == QUALITY:
        columns["metric"] = "none"
    return columns | {"engine_version": engine_version, "status": status, "reason": reason}


def share_of(saturation_qps: float, share: float) -> float:
    """Return the rate of a share, to three digits: repeats at one load then have one identity."""
    return float(f"{saturation_qps * share:.3g}")


@cache
def host() -> str:
    """Return the CPU model and the number of cores of this machine."""
    import os

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores"
