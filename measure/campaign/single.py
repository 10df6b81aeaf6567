"""One measurement of a server that somebody else runs: a campaign of one point, without plan or journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.campaign.block import Job
from qplan.measure.campaign.measuring import measure_point
from qplan.measure.campaign.plan import Deadlines
from qplan.measure.campaign.points import UNSAID, Point, Target
from qplan.measure.campaign.rig import make_rig
from qplan.measure.campaign.runner import cache_folder
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.blocking_http import fetch_json
from qplan.measure.engines.contract import Prepared
from qplan.measure.engines.remote import RemoteServer

if TYPE_CHECKING:
    from qplan.measure.campaign.events import Emit, Result, Stopping
    from qplan.profiles.store import ProfileStore

_TIMEOUT_S = 30.0
_FLAGS = {"quantization": "--quant", "gpu": "--gpu", "engine": "--engine"}


@dataclass(frozen=True, slots=True)
class Identity:
    """What runs behind an address, as far as its owner says; needed only to keep what was measured.

    Attributes
    ----------
    quantization, gpu
        Canonical notation, and name of the GPU.
    engine, engine_version
        Adapter's name, and the version.
    """

    quantization: str = UNSAID
    gpu: str = UNSAID
    tp: int = 1
    engine: str = UNSAID
    engine_version: str = UNSAID

    def target(self, endpoint: Endpoint) -> Target:
        """Return the deployment behind `endpoint`."""
        return Target(endpoint.model, endpoint.url, self.quantization, self.gpu, self.tp, self.engine)


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a single measurement is made.

    Attributes
    ----------
    request_s, limit_s
        Longest time of a request, and of a saturation search or quality task.
    processes
        Load-generating processes.
    """

    request_s: float = 120.0
    limit_s: float = 600.0
    processes: int = 1
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def find_model(endpoint: Endpoint) -> str:
    """Return the name of the one model that a server lists.

    Raises
    ------
    MeasurementError
        The server is not there, or wants another key.
    InputError
        It lists none or several models.
    """
    listed = fetch_json(endpoint, "/v1/models", timeout_s=_TIMEOUT_S)
    try:
        names = [str(model["id"]) for model in listed["data"]]
    except (KeyError, TypeError):
        raise MeasurementError(f"{endpoint.url}/v1/models answered no list of models") from None
    if len(names) != 1:
        raise InputError(f"--model: {endpoint.url} serves {', '.join(names) or 'no model'}; say which to ask")
    return names[0]


def measure_single(
    endpoint: Endpoint, point: Point, identity: Identity, conditions: Conditions, *, emit: Emit, stopping: Stopping
) -> Result:
    """Measure one point of a server.

    Raises
    ------
    MeasurementError
        The server is dead, or nothing could be measured.
    Stopped
        The user asked for an end.
    """
    job = Job(
        number=0,
        target=point.target,
        points=(point,),
        devices=(),
        folder="",
        cache=str(cache_folder() / "weights"),
        source=f"qplan measure {point.kind} {endpoint.url} {datetime.now(UTC).isoformat(timespec='seconds')}",
        processes=conditions.processes,
        deadlines=Deadlines(
            request_s=conditions.request_s, saturation_s=conditions.limit_s, quality_s=conditions.limit_s
        ),
        baselines=conditions.baselines,
    )
    server = RemoteServer(endpoint, identity.engine_version)
    server.check()
    with make_rig(job, server, Prepared(endpoint.url, None, "served by somebody else"), emit, stopping) as rig:
        return measure_point(point, rig)


def keep_rows(store: ProfileStore, result: Result) -> None:
    """Write the observations of a single measurement, beside those of earlier ones."""
    with store.transaction(write=True) as connection:
        store.put(connection, result.rows, where="this measurement")


def require_names(identity: Identity) -> None:
    """Refuse to keep observations of a deployment that is not named, before anything is measured."""
    missing = [flag for field_name, flag in _FLAGS.items() if getattr(identity, field_name) == UNSAID]
    if missing:
        raise InputError(f"--store: an observation says what was served; add {', '.join(missing)}")
