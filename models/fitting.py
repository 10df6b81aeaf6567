"""Fits every surrogate that a set of profiles has rows for, and finds how far off it is on what it has not seen.

Held-out errors answer the questions that are asked of a surrogate: a load, or lengths, between and beyond those
profiled; a tensor parallelism, a quantization, a model that was not profiled. Whatever is left out is predicted by a
fit to everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import StoreError
from qplan.models.fitted import COVERAGE, Fitted
from qplan.models.fittingloads import fit_loads
from qplan.models.heldout import HeldOutLoads
from qplan.models.power.curves import Ratio
from qplan.models.quality import QualityModel, measured, published
from qplan.models.steps.fitting import fit_steps
from qplan.models.steps.points import StepPoints
from qplan.models.steptimes import Bools, Floats
from qplan.models.surrogates import Surrogates

if TYPE_CHECKING:
    import pyarrow as pa

_SEED = 0
_MOST_POINTS = 40_000  # that errors are found on: a quarter of the time of all, for the same two digits
_FEWEST_ERRORS = 20  # fewer have no 5th percentile to speak of
_LEAVES_OUT: Mapping[str, Callable[[Deployment], str]] = {
    "tensor parallelism": lambda one: f"TP{one.tp}",
    "quantization": lambda one: str(one.quantization),
    "model": lambda one: one.model.name,
}

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Errors of step times on one kind of rows left out of the fit.

    Attributes
    ----------
    what
        What was left out.
    points
        How many errors.
    median_error, p90_error
        Of the absolute relative error.
    by_level
        True over predicted time, central 90 %, by what the predictions fell back on.
    """

    what: str
    points: int
    median_error: float
    p90_error: float
    by_level: Mapping[str, Ratio]


@dataclass(frozen=True, slots=True)
class Report:
    """What was fitted to a pack or store, and its errors on what was left out.

    Attributes
    ----------
    steps, loads
        Errors of step times, and of metrics over load; empty where the rows tell nothing of them.
    note
        Why rows under load were left alone, if they were.
    """

    fitted: Surrogates
    steps: tuple[HeldOut, ...]
    loads: tuple[HeldOutLoads, ...]
    note: str | None = None


def fit_rows(table: pa.Table, source: str, card_error: Mapping[str, Any] | None, progress: Progress) -> Report:
    """Fit to the rows of a pack or store whatever they tell: step times, metrics over load, or both.

    Parameters and errors are those of :func:`fit_profiles` and :func:`qplan.models.fittingloads.fit_loads`.
    """
    phases = set(table["phase"].unique().to_pylist())
    if not phases & {"prefill", "decode", "serving"}:
        raise StoreError(f"{source} has no prefill, decode or serving row: nothing to fit")
    if not phases & {"prefill", "decode"}:
        loads, load_errors = fit_loads(table, source, progress)
        return Report(Surrogates(None, loads), (), load_errors)
    steps, step_errors = fit_profiles(table, source, card_error, progress)
    if "serving" not in phases:
        return Report(Surrogates(steps, None), step_errors, ())
    try:
        loads, load_errors = fit_loads(table, source, progress)
    except StoreError as error:
        return Report(Surrogates(steps, None), step_errors, (), str(error))
    return Report(Surrogates(steps, loads), step_errors, load_errors)


def fit_profiles(
    table: pa.Table, source: str, card_error: Mapping[str, Any] | None, progress: Progress
) -> tuple[Fitted, tuple[HeldOut, ...]]:
    """Fit to the rows of a pack or store.

    Parameters
    ----------
    source
        Name of the pack or store.
    card_error
        What a pack's card knows of its error against real serving (``known_error``).
    progress
        Told how many fits are over, and of how many.

    Raises
    ------
    StoreError
        When there is no prefill or decode row.
    InputError
        When scikit-learn's extra is not installed.
    """
    points = StepPoints.of_table(table, source)
    held = tuple(_hold_out(points, progress))
    by_level: dict[str, Ratio] = {}
    for level, ratio in ((level, ratio) for one in held for level, ratio in one.by_level.items()):
        known = by_level.get(level, ratio)
        by_level[level] = Ratio(min(known.lower, ratio.lower), max(known.upper, ratio.upper))
    judged = table.filter(np.array([phase == "quality" for phase in table["phase"].to_pylist()])).to_pylist()
    evidence = (*published(), *measured(judged))
    kinds = sorted({str(kind) for kind in table["provenance"].unique().to_pylist()})
    return (
        Fitted(source, ", ".join(kinds), fit_steps(points), by_level, _card_ratios(card_error), QualityModel(evidence)),
        held,
    )


def _card_ratios(card_error: Mapping[str, Any] | None) -> dict[str, Ratio]:
    """Read the ratios of measured over predicted latency out of a pack's card; none where nobody measured."""
    if card_error is None:
        return {}
    found = card_error["measured_over_predicted"]
    return {metric: Ratio(found[metric]["lower"], found[metric]["upper"]) for metric in ("ttft", "tpot")}


def _hold_out(points: StepPoints, progress: Progress) -> Iterator[HeldOut]:
    """Yield the errors of each kind of rows left out."""
    if len(points) > _MOST_POINTS:
        some = np.zeros(len(points), dtype=bool)
        some[np.random.default_rng(_SEED).permutation(len(points))[:_MOST_POINTS]] = True
        points = points.take(some)
    parts = dict(_left_out(points))
    total, done = sum(map(len, parts.values())), 0
    for what, masks in parts.items():
        ratios, levels = [], []
        for mask in masks:
            progress(done, total)
            ratio, level = _errors(points.take(~mask), points.take(mask))
            ratios.append(ratio)
            levels.append(level)
            done += 1
        if ratios:
            yield _summary(what, np.concatenate(ratios), np.concatenate(levels))
    progress(done, total)


def _left_out(points: StepPoints) -> Iterator[tuple[str, list[Bools]]]:
    """Yield kinds of rows to leave out, and the parts, each (N,), in which they are left out."""
    decode = points.batch > 0
    context = points.kv_tokens / np.maximum(points.batch, 1)
    prompt = points.prefill_tokens / points.prompts
    yield "load, in between", [decode & _every_second(points.batch, decode)]
    yield "load, the largest", [decode & _top(points.batch, decode)]
    yield (
        "length, in between",
        [(decode & _every_second(context, decode)) | (~decode & _every_second(prompt, ~decode))],
    )
    yield "length, the longest", [(decode & _top(context, decode)) | (~decode & _top(prompt, ~decode))]
    for what, of in _LEAVES_OUT.items():
        names = np.array([of(one) for one in points.deployments])[points.index]
        kinds = np.unique(names)
        yield what, [names == kind for kind in kinds] if len(kinds) > 1 else []


def _every_second(values: Floats, among: Bools) -> Bools:
    """Mark the rows at every second of the distinct values, the ends left in."""
    chosen: Bools = np.isin(values, np.unique(values[among])[1:-1:2])
    return chosen


def _top(values: Floats, among: Bools) -> Bools:
    """Mark the rows at the largest fifth of the distinct values."""
    distinct = np.unique(values[among])
    chosen: Bools = np.isin(values, distinct[-max(1, len(distinct) // 5) :]) & (len(distinct) > 2)
    return chosen


def _errors(train: StepPoints, test: StepPoints) -> tuple[Floats, Any]:
    """Return true over predicted times of `test`, and what each prediction fell back on, both (N,)."""
    if not len(train) or not len(test):
        return np.empty(0), np.empty(0, dtype=str)
    surrogate = fit_steps(train)
    ratio, level = np.empty(len(test)), np.empty(len(test), dtype="U120")
    for d in np.unique(test.index):
        mine = test.index == d
        one = test.deployments[d]
        work = (x[mine] for x in (test.prefill_tokens, test.batch, test.kv_tokens, test.prompts))
        ratio[mine] = test.time_s[mine] / surrogate.iteration_s(one, *work)
        level[mine] = surrogate.level(one)
    return ratio, level


def _summary(what: str, ratio: Floats, level: Any) -> HeldOut:
    size = np.abs(1 / ratio - 1)
    ends = np.array([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    by_level = {
        str(name): Ratio(*map(float, np.quantile(ratio[level == name], ends)))
        for name in np.unique(level)
        if (level == name).sum() >= _FEWEST_ERRORS
    }
    median, p90 = (float(np.quantile(size, share)) if len(size) else float("nan") for share in (0.5, 0.9))
    return HeldOut(what, len(ratio), median, p90, by_level)
