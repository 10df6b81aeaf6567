"""Predictions held against a measured pack that had no part in them.

Every load of the pack is predicted from what was fitted to *other* profiles: latencies, power and energy by the whole
chain (:mod:`qplan.models.forecast`), the decode step at the batch that was measured, and the saturation rate of each
mix at the SLOs that it was measured with. Rows of the pack are taken out of whatever is fitted (:func:`left_out`), and
a fit that was made from it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.calibrated import Calibrated
from qplan.models.fittedloads import FittedLoads
from qplan.models.fitting import fit_profiles
from qplan.models.fittingloads import fit_loads_alone
from qplan.models.forecast import MEASURED, StepsSource, forecast
from qplan.models.profiled import KEYS
from qplan.models.sharing import SharingModel
from qplan.models.surrogates import Surrogates
from qplan.profiles.observations import identities

if TYPE_CHECKING:
    import pyarrow as pa

    from qplan.models.fitting import Progress

STEP, SATURATION = "step", "saturation_qps"
_JUDGED = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "power_w", "j_per_token")  # throughput is the offered load's
QUANTITIES = (STEP, *_JUDGED, SATURATION)
_PERCENTILES = (50.0, 90.0, 95.0, 99.0)  # that observations have


@dataclass(frozen=True, slots=True)
class Compared:
    """One number that was measured and predicted.

    Attributes
    ----------
    system
        Model, engine and GPU, in words.
    offered_qps
        NaN for a saturation rate.
    load
        Rate over the largest of the same mix and quantization.
    quantity
        One of :data:`QUANTITIES`: seconds, watts, J/token, or requests/s.
    low, high
        What was measured: a number, or the range that a saturation rate was bracketed to.
    predicted, lower, upper
        With its interval; NaN and infinity where it has none.
    extrapolates
        Whether the prediction says that it reaches beyond what it was fitted to.
    """

    system: str
    quantization: str
    mix: str
    offered_qps: float
    load: float
    quantity: str
    low: float
    high: float
    predicted: float
    lower: float
    upper: float
    extrapolates: bool

    @property
    def ratio(self) -> float:
        """Measured over predicted, by the nearer end of what was measured; 1 within it."""
        nearest = min(max(self.predicted, self.low), self.high)
        return nearest / self.predicted if self.predicted > 0 else math.inf

    @property
    def covered(self) -> bool | None:
        """Whether the interval meets what was measured; ``None`` where there is none."""
        if not math.isfinite(self.upper):
            return None
        return self.lower <= self.high and self.low <= self.upper


@dataclass(frozen=True, slots=True)
class NotPredicted:
    """What no prediction was made of, and why."""

    system: str
    quantization: str
    mix: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackCheck:
    """A pack held against predictions.

    Attributes
    ----------
    source
        What the predictions were fitted to.
    left_out
        Rows of the pack that were taken out of it.
    notes
        What the predictions say of themselves: what they fall back on.
    """

    source: str
    left_out: int
    compared: tuple[Compared, ...]
    missing: tuple[NotPredicted, ...]
    notes: tuple[str, ...]


def left_out(table: pa.Table, pack: pa.Table) -> tuple[pa.Table, int]:
    """Return `table` without the observations that `pack` has too, and how many those were.

    They are known by their identity, and by the measurement that they come from (`source`), whatever their number of
    the repetition has become. Both tables have every column of the schema.
    """
    known = set(identities(pack))
    sources = {str(source) for source in pack["source"].to_pylist()}
    own = zip(identities(table), table["source"].to_pylist(), strict=True)
    kept = np.array([key not in known and str(source) not in sources for key, source in own], dtype=bool)
    return table.filter(kept), int((~kept).sum())


def fit_to(table: pa.Table, source: str, known_error: Mapping[str, Any] | None, progress: Progress) -> Surrogates:
    """Fit to the step times and the loads of `table`, whichever it has.

    Parameters are those of :func:`qplan.models.fitting.fit_profiles`; errors on its own rows are not looked for, where
    nothing needs them.

    Raises
    ------
    StoreError
        There is nothing to fit to.
    """
    phases = set(table["phase"].unique().to_pylist())
    steps = fit_profiles(table, source, known_error, progress)[0] if phases & {"prefill", "decode"} else None
    loads = fit_loads_alone(table, source, progress) if steps is None or "serving" in phases else None
    return Surrogates(steps, loads)


def check_pack(pack: pa.Table, name: str, fitted: Surrogates, left: int = 0) -> PackCheck:
    """Predict every load of a pack and compare.

    Parameters
    ----------
    pack, name
        The pack's rows, with every column, and its name.
    fitted
        What predicts.
    left
        Rows that were taken out before it was fitted.

    Raises
    ------
    InputError
        `fitted` was made from the pack, or the pack has no load to compare with.
    """
    _refuse_own(fitted, name)
    rows = [r for r in pack.to_pylist() if r["phase"] == "serving" and r["status"] == "ok" and r["offered_qps"]]
    if not rows:
        raise InputError(f"{name}: no run under an open loop that went well: nothing to hold predictions against")
    compared: list[Compared] = []
    missing: list[NotPredicted] = []
    notes: dict[str, None] = {}
    searched = _searched(pack)
    for series in _series(rows):
        for one in _Series.of(series, searched.get(_key(series[0])), fitted, name):
            if isinstance(one, Compared):
                compared.append(one)
            elif isinstance(one, NotPredicted):
                missing.append(one)
            else:
                notes[one] = None
    return PackCheck(fitted.source, left, tuple(compared), tuple(missing), tuple(notes))


def _refuse_own(fitted: Surrogates, name: str) -> None:
    used = {fitted.source}
    if isinstance(fitted.steps, Calibrated):
        used |= {fitted.steps.prior.source, str(fitted.steps.measured_in)}
    if fitted.loads is not None:
        used.add(fitted.loads.source)
    if name in used:
        raise InputError(
            f"{name} is what the model was fitted to: its errors there are no errors of prediction; fit to other "
            "profiles, --from leaves its rows out"
        )


def _series(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Bring the rows of one deployment, mix and SLO together, in rising order of their rates."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["offered_qps"]):
        groups.setdefault(_key(row), []).append(row)
    return [groups[key] for key in sorted(groups, key=lambda key: tuple(map(str, key)))]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in (*KEYS, "settings", "workload", "slo", "arrivals"))


def _searched(pack: pa.Table) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Return the ranges that searches for saturation ended in, those of repeats together."""
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in pack.to_pylist():
        if row["phase"] == "saturation" and row["status"] == "ok":
            low, high = row["saturation_low_qps"] or 0.0, row["saturation_high_qps"] or math.inf
            known = found.get(_key(row), (low, high))
            found[_key(row)] = min(known[0], low), max(known[1], high)
    return found


@dataclass(frozen=True, slots=True)
class _Series:
    """The loads of one deployment and mix, the range of its saturation rate where that was searched, what predicts."""

    rows: Sequence[Mapping[str, Any]]
    searched: tuple[float, float] | None
    deployment: Deployment
    workload: Workload
    answering: StepsSource | FittedLoads

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Any]], searched: tuple[float, float] | None, fitted: Surrogates, name: str
    ) -> Iterator[Compared | NotPredicted | str]:
        """Yield what is compared of these rows, what cannot be predicted, and what predictions say of themselves."""
        first = rows[0]
        try:
            deployment = Deployment(
                Model.named(first["model"], name),
                Quantization.parse(first["quantization"], name),
                Gpu.named(first["gpu"], name),
                first["tp"],
                first["engine"],
                first["engine_version"],
            )
            workload = _workload(first)
            one = cls(rows, searched, deployment, workload, fitted.answering(deployment))
            yield from one._loads()
            if not isinstance(one.answering, FittedLoads):
                yield from one._steps(one.answering)
        except InputError as error:
            yield _missing(first, "every load", str(error))

    def _loads(self) -> Iterator[Compared | NotPredicted | str]:
        """Compare what the whole chain says of each load."""
        for row in self.rows:
            what = f"{row['offered_qps']:g} req/s"
            try:
                found = forecast(self.answering, self.deployment, self.workload, row["offered_qps"])
            except InputError as error:
                yield _missing(row, what, str(error))
                continue
            yield from (warning for warning in found.warnings if "beyond saturation" not in warning)
            for quantity in found.quantities:
                measured = _measured(row, quantity.name)
                if measured is None:
                    continue
                if quantity.prediction is None:
                    yield _missing(row, f"{quantity.name} at {what}", quantity.reason or "not known")
                    continue
                said = quantity.prediction
                bounded = said.coverage is not None
                ends = (said.lower, said.upper) if bounded else (math.nan, math.inf)
                yield self._compared(row, quantity.name, (measured, measured), said.value, ends, quantity.extrapolates)

    def _steps(self, source: StepsSource) -> Iterator[Compared | NotPredicted]:
        """Compare the decode step at the batch that was measured, and the saturation rate."""
        steps = source.steps_of(self.deployment)
        unknown = (math.nan, math.inf)
        context = self.workload.mean_input_tokens + self.workload.mean_output_tokens / 2
        decode_s = steps.times.decode_by_batch(context)[0]
        prompts = np.array([bucket.input_tokens for bucket in self.workload.buckets], dtype=float)
        weights = np.array([bucket.weight for bucket in self.workload.buckets])
        prefill_s = float(weights @ steps.times.prefill(prompts)[0])
        for row in self.rows:
            tokens_per_s, tpot_s = row["output_tokens_per_s"], row["tpot_mean_s"]
            if tokens_per_s and tpot_s:
                own_s = float(np.interp(tokens_per_s * tpot_s, steps.times.batches, decode_s))
                # Prefills stand in the way of decoding for a share of the time: the rate times what each takes.
                busy = min(0.95, (row["achieved_qps"] or 0.0) * prefill_s)
                yield self._compared(row, STEP, (tpot_s, tpot_s), own_s / (1 - busy), unknown, steps.extrapolates)
        bracket = self.searched or _bracket(self.rows)
        if bracket is not None:
            slos = Slo.parse_all([self.rows[0]["slo"]])
            rate = float(SharingModel.of([self.deployment], steps.times).saturation_qps(self.workload, slos)[0])
            if rate > 0:
                yield self._compared(None, SATURATION, bracket, rate, unknown, steps.extrapolates)
            else:
                yield _missing(self.rows[0], SATURATION, "predicted to meet its SLOs at no rate")

    def _compared(
        self,
        row: Mapping[str, Any] | None,
        quantity: str,
        measured: tuple[float, float],
        predicted: float,
        ends: tuple[float, float],
        extrapolates: bool,
    ) -> Compared:
        first = self.rows[0]
        rate = math.nan if row is None else float(row["offered_qps"])
        load = rate / self.rows[-1]["offered_qps"]
        names = _system(first), str(self.deployment.quantization), str(first["workload"])
        return Compared(*names, rate, load, quantity, *measured, predicted, *ends, extrapolates)


def _bracket(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return between which rates the SLOs break; ``None`` where the rows cannot say.

    From the highest rate below the first that missed them (0 where the lowest did) to that one (infinity where none
    did).
    """
    if not rows[0]["slo"]:
        return None
    slos = Slo.parse_all([rows[0]["slo"]])
    if any(slo.percentile not in _PERCENTILES or slo.metric not in ("ttft", "tpot", "e2e") for slo in slos):
        return None
    met: dict[float, bool] = {}
    for row in rows:
        values = [(row[f"{slo.metric}_p{slo.percentile:g}_s"], slo.threshold_s) for slo in slos]
        good = all(value is not None and value <= limit for value, limit in values)
        met[row["offered_qps"]] = met.get(row["offered_qps"], True) and good
    missed = next((rate for rate, good in met.items() if not good), math.inf)
    return max((rate for rate in met if rate < missed), default=0.0), missed


def _measured(row: Mapping[str, Any], name: str) -> float | None:
    """Return what was measured of a quantity of a forecast."""
    if name not in _JUDGED:
        return None
    if name in ("power_w", "j_per_token"):
        if row["energy_j"] is None or not row["duration_s"]:
            return None
        power_w = row["energy_j"] / row["duration_s"]
        if name == "power_w":
            return float(power_w)
        return float(power_w / row["output_tokens_per_s"]) if row["output_tokens_per_s"] else None
    value = row[MEASURED[name][1]]
    return float(value) if value else None


def _workload(row: Mapping[str, Any]) -> Workload:
    """Return the mix of a row: by its name, or else by its mean lengths."""
    name = str(row["workload"] or "")
    found = Workload.named(name)
    if found is not None:
        return found
    try:
        return Workload.fixed(name)
    except InputError:
        if not row["input_tokens"] or not row["output_tokens"]:
            raise InputError(f"{name}: no mix that is known, and the rows do not say how long requests were") from None
        return Workload.fixed(f"isl={round(row['input_tokens'])},osl={round(row['output_tokens'])}")


def _missing(row: Mapping[str, Any], what: str, reason: str) -> NotPredicted:
    return NotPredicted(_system(row), str(row["quantization"]), str(row["workload"]), what, reason)


def _system(row: Mapping[str, Any]) -> str:
    gpus = row["gpu"] if row["tp"] == 1 else f"{row['tp']} x {row['gpu']}"
    return f"{row['model']}, {row['engine']} {row['engine_version']} on {gpus}"
