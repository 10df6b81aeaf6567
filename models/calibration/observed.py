"""From serving rows of a profile to points that a prior can be calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.workload import Workload
from qplan.models.calibration.parts import RowT
from qplan.models.calibration.priors import ClosedLoad, OpenLoad
from qplan.models.steptimes import Floats

if TYPE_CHECKING:
    import pyarrow as pa

_METRICS = ("ttft", "tpot")


@dataclass(frozen=True, slots=True)
class Observed(Generic[RowT]):
    """Rows and their measured means, seconds (N,) by metric, nan where a row lacks one."""

    rows: tuple[RowT, ...]
    measured: Mapping[str, Floats]


def observed(table: pa.Table, where: str) -> tuple[Observed[ClosedLoad], Observed[OpenLoad]]:
    """Return the closed-loop and the open-loop runs with status ok among the observations of a pack or store.

    Parameters
    ----------
    table
        Observations with the columns of the schema.
    where
        Where they come from, for messages.

    Raises
    ------
    InputError
        A model, GPU or quantization is unknown to the catalogue, or a row lacks its lengths.
    """
    serving = np.array([phase == "serving" for phase in table["phase"].to_pylist()], dtype=bool)
    runs = [row for row in table.filter(serving).to_pylist() if row["status"] == "ok"]
    closed = [row for row in runs if row["concurrency"] is not None]
    opened = [row for row in runs if row["concurrency"] is None and row["offered_qps"] is not None]
    return (
        Observed(tuple(_closed(row, where) for row in closed), _measured(closed)),
        Observed(tuple(_open(row, where) for row in opened), _measured(opened)),
    )


def _closed(row: Mapping[str, Any], where: str) -> ClosedLoad:
    return ClosedLoad(_deployment(row, where), *_lengths(row, where), round(row["concurrency"]))


def _open(row: Mapping[str, Any], where: str) -> OpenLoad:
    name = row["workload"] or ""
    workload = Workload.named(name)
    if workload is None:
        workload = Workload.of(name, "general", [(*_lengths(row, where), 1.0)], f"mean lengths in {where}")
    return OpenLoad(_deployment(row, where), workload, row["offered_qps"])


def _deployment(row: Mapping[str, Any], where: str) -> Deployment:
    return Deployment(
        Model.named(row["model"], where),
        Quantization.parse(row["quantization"], where),
        Gpu.named(row["gpu"], where),
        row["tp"],
        row["engine"],
        row["engine_version"],
    )


def _lengths(row: Mapping[str, Any], where: str) -> tuple[float, float]:
    inputs, outputs = row["input_tokens"], row["output_tokens"]
    if inputs is None or outputs is None:
        raise InputError(f"{where}: a serving row of {row['model']} has no input_tokens or output_tokens")
    return inputs, outputs


def _measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    # Null becomes nan.
    return {metric: np.array([row[f"{metric}_mean_s"] for row in rows], dtype=float) for metric in _METRICS}
