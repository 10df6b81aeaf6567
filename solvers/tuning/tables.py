"""Configurations that were measured before: a study over a finished table, and expectations from one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.core.errors import InputError, nearest
from qplan.core.slo import Slo
from qplan.measure.campaign.rows import share_of
from qplan.profiles.sources import read_profiles
from qplan.solvers.tuning.conditions import Conditions
from qplan.solvers.tuning.measuring import CannotRun, Halted, Hooks, Measured
from qplan.solvers.tuning.objectives import QUALITY, SATURATION, SERVING, Objective, Row, bounds_of_saturation
from qplan.solvers.tuning.space import Configuration
from qplan.solvers.tuning.tunefile import Tuning

_OF_SLOS = ("saturation", "goodput")
_SEARCHED = ("saturation_qps", "saturation_low_qps", "saturation_high_qps")
_IDENTITY = ("model", "quantization", "gpu", "tp", "engine", "settings")
_JUDGED_ALIKE = ("model", "quantization", "engine")  # whatever it is served on, as in a study


class Table:
    """Observations by configuration, of the workload and load that a study asks for.

    Parameters
    ----------
    source
        Name of the store or pack, for errors.
    rows
        Observations, as column values.
    """

    def __init__(self, source: str, rows: Sequence[Row], conditions: Conditions) -> None:
        self.source = source
        self._conditions = conditions
        self._rows: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        self._judged: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in rows:
            self._rows[_key(row)].append(row)
            if row["phase"] == QUALITY and row["status"] == "ok":
                self._judged[_key(row, _JUDGED_ALIKE)].append(row)

    @classmethod
    def read(cls, source: str, tuning: Tuning) -> Table:
        """Read a store or a pack.

        Raises
        ------
        InputError, StoreError
            There is none of that name, or it cannot be read.
        """
        models = [model.name for model in tuning.space.models]
        return cls(source, read_profiles(source, models=models).table.to_pylist(), tuning.conditions)

    @property
    def workloads(self) -> tuple[str, ...]:
        """Request mixes that were measured."""
        return tuple(sorted({str(row["workload"]) for row in self._ok() if row.get("workload")}))

    def _ok(self) -> list[Row]:
        return [row for rows in self._rows.values() for row in rows if row["status"] == "ok"]

    def rows(self, one: Configuration) -> tuple[Row, ...]:
        """Return what was observed of a configuration that matters to the study; failures are not among it.

        Quality that was judged under other settings counts where its own was not; what was held to other SLOs does not.
        """
        asked = self._conditions
        mine = [row for row in self._rows.get(_key(one.columns), ()) if row["status"] == "ok"]
        if mine and not any(row["phase"] == QUALITY for row in mine):
            mine += self._judged.get(_key(one.columns, _JUDGED_ALIKE), ())
        mine = [self._held_to(row) for row in mine if row.get("workload") in (None, asked.workload)]
        rate: float | None = asked.qps
        if asked.share is not None:
            found = [row["saturation_qps"] for row in mine if row.get("saturation_qps")]
            rate = share_of(float(np.median(found)), asked.share) if found else None
        return tuple(row for row in mine if row["phase"] != SERVING or _is_at(row, rate))

    def refusal(self, one: Configuration, objectives: Sequence[Objective]) -> str | None:
        """Say what the table lacks of a configuration, or return ``None``."""
        rows = self.rows(one)
        if not rows:
            return f"{self.source} has nothing of it"
        lacking = [objective for objective in objectives if objective.value(one, rows) is None]
        if not lacking:
            return None
        reason = f"{self.source} has no {', '.join(objective.name for objective in lacking)} of it"
        bounds = bounds_of_saturation(rows)
        if bounds is None:
            return reason
        if any(objective.phase == SATURATION for objective in lacking):
            return f"{reason}, only that {bounds}; measure it again, with more time or laxer SLOs"
        if self._conditions.share is not None and any(objective.phase == SERVING for objective in lacking):
            return (
                f"{reason}: loads are shares of a rate of which it only has that {bounds}; ask for a rate as the load"
            )
        return reason

    def values(self, configurations: Sequence[Configuration], objectives: Sequence[Objective]) -> NDArray[np.float64]:
        """Return what the table says of configurations, shape (N, M), NaN where it says nothing."""
        found = [[objective.value(one, self.rows(one)) for objective in objectives] for one in configurations]
        return np.array([[np.nan if value is None else value for value in row] for row in found], dtype=float)

    def check(self, objectives: Sequence[Objective], places: Mapping[str, str]) -> None:
        """Refuse a study of which no configuration has an objective.

        Raises
        ------
        InputError
            With the objective's line, and what the table has instead.
        """
        every = [self._held_to(row) for row in self._ok()]
        if not every:
            raise InputError(f"{self.source} has nothing of the models that the study is of")
        for objective in objectives:
            columns = _SEARCHED if objective.phase == SATURATION else (objective.column,) if objective.column else ()
            if columns and not any(row.get(column) is not None for row in every for column in columns):
                others = self._other_slos() if objective.name in _OF_SLOS else ""
                raise InputError(f"{places[objective.name]}: {self.source} has no data for {objective.name}{others}")
            if objective.name == "energy" and not any(row.get("energy_j") for row in every):
                raise InputError(f"{places[objective.name]}: {self.source} has no data for energy{_why(every)}")
            if objective.task and not any(_judges(objective, row) for row in every):
                judged = sorted({f"{row['task']}/{row['metric']}" for row in every if row.get("task")})
                has = f"; of quality it has {', '.join(judged)}" if judged else ""
                raise InputError(f"{places[objective.name]}: {self.source} has no data for {objective.name}{has}")
        asked = self._conditions
        if asked.workload and asked.workload not in self.workloads and any(not one.task for one in objectives):
            raise InputError(
                f"{self.source} has no data for workload {asked.workload}; expected one of {', '.join(self.workloads)}"
                f"{nearest(asked.workload, self.workloads)}"
            )

    def _held_to(self, row: Row) -> Row:
        """Return a row without the rates that it was found to sustain under SLOs that the study does not ask for."""
        asked, held = self._conditions.slos, row.get("slo")
        if not asked or not held or _slos(held) == frozenset(asked):
            return row
        return {**row, **dict.fromkeys(("goodput_qps", *_SEARCHED))}

    def _other_slos(self) -> str:
        held = sorted({str(row["slo"]) for row in self._ok() if row.get("slo")})
        asked = ",".join(map(str, self._conditions.slos))
        return f" under {asked}; it was measured under {' and under '.join(held)}" if held and asked else ""


class TableMeasure:
    """Looks configurations up; that takes no time, but is charged the time that it took when it was measured."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __call__(self, one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:  # noqa: ARG002
        """Return the rows of `one`."""
        if hooks.stopping():
            raise Halted
        rows = self._table.rows(one)
        if not rows:
            raise CannotRun(f"{self._table.source} has nothing of it")
        return Measured(rows, sum(float(row["duration_s"]) for row in rows if row.get("duration_s") is not None))


def _key(row: Mapping[str, Any], names: Sequence[str] = _IDENTITY) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in names)


@cache
def _slos(text: str) -> frozenset[Slo] | None:
    try:
        return frozenset(Slo.parse_all([text]))
    except InputError:
        return None


def _is_at(row: Row, rate: float | None) -> bool:
    offered = row.get("offered_qps")
    return rate is not None and offered is not None and abs(float(offered) - rate) <= 0.01 * rate


def _judges(objective: Objective, row: Row) -> bool:
    return row.get("task") == objective.task and row.get("metric") == objective.metric


def _why(rows: Sequence[Row]) -> str:
    note = next((str(row["energy_note"]) for row in rows if row.get("energy_note")), None)
    return f": {note}" if note else ""
