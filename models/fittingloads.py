"""Fits a surrogate with intervals to every metric that was measured under load, and finds how far off each is.

For each metric the surrogate is chosen by what it does on rows held out of the training rows, one for loads of measured
configurations and one for configurations that were not measured; its intervals are conformal (:mod:`qplan.models.
intervals.conformal`). Held-out errors and coverages repeat all of that, the choice too, without the rows they are
judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError, StoreError
from qplan.models.fittedloads import Configuration, FittedLoads, described
from qplan.models.heldout import HeldOutLoads, Trials
from qplan.models.intervals.support import Support
from qplan.models.load.features import (
    CONFIGURATION,
    GROUPS,
    LENGTHS,
    LOAD,
    LoadEncoder,
    LoadRows,
    configuration_key,
    load_rows,
    served_rows,
)
from qplan.models.quality import QualityModel, measured, published
from qplan.models.steptimes import Floats

if TYPE_CHECKING:
    import pyarrow as pa

    from qplan.models.intervals.conformal import ConformalRegressor

_PERCENTILES = ("p50", "p90")
_OTHERS = ("output_tokens_per_s", "power_w", "j_per_output_token")
_FEWEST_ROWS = 12
_QUICK = ("pooled-curves",)  # where nobody will ask
_FOLDS = 5
_SEED = 0

Progress = Callable[[int, int], object]


def fit_loads(table: pa.Table, source: str, progress: Progress) -> tuple[FittedLoads, tuple[HeldOutLoads, ...]]:
    """Fit to the serving rows of a pack or store.

    Parameters
    ----------
    source
        Name of the pack or store.
    progress
        Told how many fits are over, and of how many.

    Raises
    ------
    StoreError
        No metric has enough rows under load.
    InputError
        scikit-learn's extra is not installed, or a row names a model, GPU or quantization that is not known.
    """
    data = _Data.of(table, source)
    trials = {metric: Trials.of(metric, one) for metric, one in data.rows.items()}
    total, done = len(data.rows) + sum(map(len, trials.values())), count(1)

    def step() -> None:
        progress(next(done), total)

    progress(0, total)
    fitted = _fitted(table, source, data, step)
    held: list[HeldOutLoads] = []
    for metric, one in data.rows.items():
        held += trials[metric].run(partial(_regressor, one.elasticity), step)
    return fitted, tuple(held)


def fit_loads_alone(table: pa.Table, source: str, progress: Progress) -> FittedLoads:
    """Fit as :func:`fit_loads` does, without finding how far off it is on its own rows."""
    data, done = _Data.of(table, source), count(1)
    return _fitted(table, source, data, lambda: progress(next(done), len(data.rows)))


@dataclass(frozen=True, slots=True)
class _Data:
    """What there is to fit to: rows under load, and those of each metric; why other metrics have none."""

    axis: str
    served: Sequence[Mapping[str, Any]]
    encoder: LoadEncoder
    rows: Mapping[str, LoadRows]
    missing: Mapping[str, str]

    @classmethod
    def of(cls, table: pa.Table, source: str) -> _Data:
        axis, served = served_rows(table)
        if not served:
            raise StoreError(f"{source} has no serving row that went well with a load and lengths: nothing to fit")
        encoder = LoadEncoder.of(served, axis)
        rows, missing = _metrics(table, encoder)
        if not rows:
            why = "; ".join(f"{metric}: {reason}" for metric, reason in missing.items())
            raise StoreError(f"{source} has no metric under load to fit: {why}")
        return cls(axis, served, encoder, rows, missing)


def _fitted(table: pa.Table, source: str, data: _Data, step: Callable[[], object]) -> FittedLoads:
    """Fit every metric; `step` is called after each."""
    surrogates, chosen = {}, {}
    for metric, one in data.rows.items():
        surrogates[metric], chosen[metric] = _fit(one.elasticity, one.X, one.y)
        step()
    scored = table.filter(np.array([phase == "quality" for phase in table["phase"].to_pylist()])).to_pylist()
    kinds = sorted({str(kind) for kind in table["provenance"].unique().to_pylist()})
    return FittedLoads(
        source,
        ", ".join(kinds),
        data.encoder,
        Support.of(described(data.served, data.axis)),
        _configurations(table, data.encoder, data.served),
        surrogates,
        chosen,
        data.missing,
        QualityModel((*published(), *measured(scored))),
    )


def _metrics(table: pa.Table, encoder: LoadEncoder) -> tuple[dict[str, LoadRows], dict[str, str]]:
    """Return the rows of each metric that has enough, and why the others have none."""
    data: dict[str, LoadRows] = {}
    missing: dict[str, str] = {}

    def take(metric: str) -> bool:
        try:
            rows = load_rows(table, metric, encoder=encoder)
        except InputError as error:
            if "no serving row" not in str(error):
                raise
            missing[metric] = _why(table, metric)
            return False
        if len(rows.y) < _FEWEST_ROWS:
            missing[metric] = f"only {len(rows.y)} rows have it; {_FEWEST_ROWS} are needed"
            return False
        data[metric] = rows
        return True

    for latency in ("ttft", "tpot"):
        found = [take(f"{latency}_{one}_s") for one in _PERCENTILES]
        if not any(found):
            take(f"{latency}_mean_s")
    for metric in _OTHERS:
        take(metric)
    return data, missing


def _why(table: pa.Table, metric: str) -> str:
    """Return why no row has a metric: for energy, what the rows themselves say."""
    if metric in ("power_w", "j_per_output_token") and "energy_note" in table.column_names:
        notes = [str(note) for note in table["energy_note"].to_pylist() if note]
        if notes:
            return max(set(notes), key=notes.count)
    return "not measured"


def _fit(
    elasticity: tuple[float, float], X: Floats, y: Floats, questions: Sequence[str] = ("load", "configuration")
) -> tuple[ConformalRegressor, tuple[str, str]]:
    """Return a surrogate with intervals, and the names of what was chosen for measured configurations and others.

    Only what answers `questions` is chosen with care.
    """
    try:
        from qplan.models.intervals.conformal import ConformalRegressor
        from qplan.models.load.selection import CANDIDATES, choose
    except ModuleNotFoundError as error:
        raise InputError(f"fitting needs {error.name}: pip install 'qplan[models]'") from None

    roles = (LOAD, GROUPS)
    known = unseen = choose(X, y, roles, elasticity, "load", CANDIDATES if "load" in questions else _QUICK)
    levels = _levels(X)
    if "configuration" not in questions:
        levels = ()
    elif np.ptp(X[:, CONFIGURATION]) > 0:
        unseen = choose(X, y, roles, elasticity, "configuration", CANDIDATES)
    other = None if unseen.name == known.name else unseen.surrogate
    regressor = ConformalRegressor(known.surrogate, other, groups=GROUPS, folds=_FOLDS, seed=_SEED, levels=levels)
    return regressor.fit(X, y), (known.name, unseen.name)


def _regressor(elasticity: tuple[float, float], X: Floats, y: Floats, question: str) -> ConformalRegressor:
    """Return a surrogate with intervals that is to answer one question."""
    return _fit(elasticity, X, y, (question,))[0]


def _levels(X: Floats) -> tuple[int, ...]:
    """Return the groups that can be held out on their own; of two with the same members, the coarser."""
    levels: list[int] = []
    counts = [len(np.unique(X[:, group])) for group in GROUPS]
    for group, own, finer in zip(GROUPS, counts, [*counts[1:], -1], strict=True):
        if own != finer or group == CONFIGURATION:
            levels.append(group)
    return tuple(levels)


def _configurations(
    table: pa.Table, encoder: LoadEncoder, rows: Sequence[Mapping[str, Any]]
) -> tuple[Configuration, ...]:
    """Return what is known of each measured configuration, in the order of the codes."""
    X = encoder.encode(rows)
    saturations = _saturations(table)
    found = []
    for code, key in enumerate(encoder.groups[-1]):
        own = X[X[:, CONFIGURATION] == code]
        prompt, generated = map(float, np.exp(own[:, LENGTHS].mean(axis=0)))
        rate, slo = saturations.get(key, (None, None))
        found.append(Configuration(prompt, generated, float(own[:, LOAD].min()), float(own[:, LOAD].max()), rate, slo))
    return tuple(found)


def _saturations(table: pa.Table) -> dict[tuple[Any, ...], tuple[float, str | None]]:
    """Return the highest rate that kept its SLO by configuration: the median of repeats, the least of several SLOs."""
    if "saturation_qps" not in table.column_names:
        return {}
    rates: dict[tuple[Any, ...], dict[str | None, list[float]]] = {}
    for row in table.to_pylist():
        if row["phase"] == "saturation" and row["status"] == "ok" and row["saturation_qps"]:
            rates.setdefault(configuration_key(row), {}).setdefault(row.get("slo"), []).append(row["saturation_qps"])
    medians = {key: [(float(np.median(found)), slo) for slo, found in by.items()] for key, by in rates.items()}
    return {key: min(found, key=lambda one: one[0]) for key, found in medians.items()}
