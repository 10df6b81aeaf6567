"""From a tuning file to what a worker works on: space, expectations, sampler and study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qplan.profiles.store import ProfileStore
from qplan.solvers.tuning.engines import EngineMeasure, measurable
from qplan.solvers.tuning.expectations import expected
from qplan.solvers.tuning.features import features_of
from qplan.solvers.tuning.measuring import Measure
from qplan.solvers.tuning.objectives import Row
from qplan.solvers.tuning.space import Enumerated, enumerate_space, groups_of, memory_groups_of
from qplan.solvers.tuning.study import REFUSED, start_study
from qplan.solvers.tuning.tables import Table, TableMeasure
from qplan.solvers.tuning.tunefile import Tuning
from qplan.solvers.tuning.worker import Job

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from qplan.solvers.tuning.sampler import FrontSampler

MEASURED = "measured"


def enumerate_table(tuning: Tuning, source: str) -> tuple[Enumerated, Measure]:
    """Return the configurations of a study that a table has, and the function that looks them up.

    Raises
    ------
    InputError, StoreError
        There is no such table, it has nothing of an objective, or nothing of any configuration.
    """
    table = Table.read(source, tuning)
    table.check(tuning.quantities, tuning.places)
    enumerated = enumerate_space(tuning.space, lambda one: table.refusal(one, tuning.quantities))
    return enumerated, TableMeasure(table)


def enumerate_machine(tuning: Tuning, store: ProfileStore, cache: Path | None = None) -> tuple[Enumerated, Measure]:
    """Return the configurations that this machine can measure, and the function that measures them into a store.

    Raises
    ------
    InputError, MeasurementError
        The study cannot be measured, or an engine is not installed.
    """
    return measurable(tuning), EngineMeasure(tuning, lambda rows: keep_rows(tuning, store, rows), cache)


def keep_rows(tuning: Tuning, store: ProfileStore, rows: Sequence[Row]) -> None:
    """Put observations of a study into a store."""
    with store.transaction(write=True) as connection:
        store.put(connection, rows, where=f"study {tuning.name}")


def sampler_of(tuning: Tuning, enumerated: Enumerated, threshold: float = 0.01) -> FrontSampler:
    """Return the sampler of a study: with what data sheets tell, what is expected and shared, and what measuring costs.

    Parameters
    ----------
    threshold
        Probability of being on the front below which a configuration is not measured; 0 leaves out none.
    """
    from qplan.solvers.tuning.sampler import FrontSampler

    judged, held = groups_of(enumerated.configurations), memory_groups_of(enumerated.configurations)
    gpus = np.array([one.gpus for one in enumerated.configurations], dtype=float)
    candidates = enumerated.candidates(
        features=features_of(enumerated.configurations),
        prior_mean=expected(tuning, enumerated.configurations),
        groups=tuple(judged if one.task else held if one.name == "memory" else None for one in tuning.objectives),
        cost=gpus if len(set(gpus)) > 1 else None,
    )
    return FrontSampler(
        candidates, [one.axis for one in tuning.objectives], seed=tuning.conditions.seed, threshold=threshold
    )


def open_job(
    tuning: Tuning,
    storage: BaseStorage,
    enumerated: Enumerated,
    measure: Measure,
    source: str,
    sampler: FrontSampler | None = None,
) -> Job:
    """Create the study, or go on with it, and return what a worker works on.

    Parameters
    ----------
    source
        Name of the table, or :data:`MEASURED`.
    sampler
        By default that of :func:`sampler_of`.
    """
    sampler = sampler or sampler_of(tuning, enumerated)
    return Job(open_study(tuning, storage, enumerated, source, sampler), tuning, enumerated, measure, sampler)


def open_study(
    tuning: Tuning, storage: BaseStorage, enumerated: Enumerated, source: str, sampler: FrontSampler
) -> Study:
    """Create the study, or go on with it."""
    study = start_study(tuning, storage, source, sampler)
    study.set_user_attr(REFUSED, [asdict(refused) for refused in enumerated.refused])
    return study
