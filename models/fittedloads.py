"""What was measured under load, as surrogates with intervals: the metrics of a deployment at a request rate.

A rate is looked up on the axis that was measured. Where that is the concurrency of a closed loop, the rate is first
turned into the number of requests in flight that serves it, by the throughput predicted there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.core.gpu import Gpu
from qplan.core.plan import Prediction
from qplan.core.workload import Workload
from qplan.models.intervals.support import REFUSED_FACTOR, Support, Verdict
from qplan.models.load.features import LOAD, LoadEncoder
from qplan.models.quality import QualityModel

if TYPE_CHECKING:
    from qplan.models.intervals.conformal import ConformalRegressor

THROUGHPUT = "output_tokens_per_s"
_SAME_LENGTHS = 0.05  # two mixes whose mean lengths differ by less are one
_ROUNDING = 1 + 1e-9
_GRID = 200  # loads at which a rate is looked for


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is known of one measured configuration besides its metrics.

    Attributes
    ----------
    input_tokens, output_tokens
        Mean lengths of its requests.
    lowest, highest
        Loads it was measured at.
    saturation_qps
        Highest rate that was found to keep `slo`, the median of repeats; ``None`` where nobody searched.
    """

    input_tokens: float
    output_tokens: float
    lowest: float
    highest: float
    saturation_qps: float | None = None
    slo: str | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A query on the axes that were measured.

    Attributes
    ----------
    row
        The query as an observation.
    known
        Its configuration, if that was measured.
    outside
        Whether its load is none that the configuration was measured at, nor between two.
    verdict
        What is to be said of it.
    """

    row: Mapping[str, Any]
    known: Configuration | None
    outside: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class FittedLoads:
    """Load-level surrogates fitted to a pack or store.

    Attributes
    ----------
    source
        Name of the pack or store.
    evidence
        Kinds of evidence of its rows.
    encoder
        Turns queries into the rows that the surrogates take.
    support
        What the rows cover.
    configurations
        In the order of their codes.
    surrogates
        By metric.
    chosen
        By metric: the names of the surrogates that answer for measured configurations, and for others.
    missing
        By metric that could not be fitted: why.
    quality
        Quality of any model and quantization.
    """

    source: str
    evidence: str
    encoder: LoadEncoder
    support: Support
    configurations: tuple[Configuration, ...]
    surrogates: Mapping[str, ConformalRegressor]
    chosen: Mapping[str, tuple[str, str]]
    missing: Mapping[str, str]
    quality: QualityModel

    @property
    def gpus(self) -> frozenset[str]:
        """Names of the GPUs that were measured."""
        return frozenset(str(key[2]) for key in self.encoder.groups[1])

    def engines(self, gpu: Gpu) -> tuple[tuple[str, str], ...]:
        """Return the engines, each with its version, that were measured on `gpu`; all, if none was."""
        measured = self.encoder.groups[1]
        here = [key for key in measured if key[2] == gpu.name]
        return tuple(sorted({(str(key[4]), str(key[5])) for key in here or measured}))

    def has(self, deployment: Deployment) -> bool:
        """Return whether `deployment` was measured, with any settings."""
        return bool(self._measured(deployment))

    def place(self, deployment: Deployment, workload: Workload, qps: float) -> Placed:
        """Find where a query lies among what was measured.

        Raises
        ------
        InputError
            It is too far from anything measured, or no rate can be looked up on the axis that was measured.
        """
        code, row, warnings = self._row(deployment, workload)
        known = None if code is None else self.configurations[code]
        load, said = self._load(row, known, qps)
        row = {**row, self.encoder.axis: load}
        beyond = [] if known is None else _beyond(known, load, self.encoder.axis)
        covered = self.support.check(_described(row, self.encoder.axis))
        covered.require()
        verdict = Verdict((*warnings, *said, *beyond, *covered.warnings))
        outside = known is not None and not known.lowest <= load <= known.highest
        return Placed(row, known, outside, verdict)

    def at(self, placed: Placed, coverage: float) -> dict[str, tuple[Prediction, bool]]:
        """Return each metric with its interval, and whether it reaches beyond what was measured."""
        X = self.encoder.encode([placed.row])
        found = {}
        for metric, surrogate in self.surrogates.items():
            bounds = surrogate.bounds(X, coverage)
            beyond = bool(bounds.beyond[0] or not bounds.known[0] or placed.outside)
            prediction = bounds.prediction(0, Verdict())
            if placed.outside and prediction.coverage is not None:
                basis = f"{prediction.basis}; beyond the loads measured there: the interval is a guess"
                prediction = replace(prediction, coverage=None, basis=basis)
            found[metric] = prediction, beyond
        return found

    def _measured(self, deployment: Deployment) -> list[tuple[Any, ...]]:
        """Return the keys of `deployment` in the data, one for each of its settings."""
        return [key for key in self.encoder.groups[1] if key[:6] == _identity(deployment)]

    def _row(self, deployment: Deployment, workload: Workload) -> tuple[int | None, dict[str, Any], list[str]]:
        """Return the code of the configuration, if it was measured, the query without a load, and what was assumed."""
        own = [
            (code, key)
            for code, key in enumerate(self.encoder.groups[2])
            if key[:6] == _identity(deployment) and self._alike(code, key[7], workload)
        ]
        lengths = {"input_tokens": workload.mean_input_tokens, "output_tokens": workload.mean_output_tokens}
        identity = dict(zip(_IDENTITY, _identity(deployment), strict=True))
        if not own:
            settings = sorted({str(key[6]) for key in self._measured(deployment) if key[6] is not None})
            bare = any(key[6] is None for key in self._measured(deployment))
            row = {**identity, "settings": None if bare or not settings else settings[0]}
            return None, {**row, "workload": workload.name, "arrivals": "poisson", **lengths}, []
        # The adapter's own settings and Poisson arrivals, or else what comes first.
        code, key = min(own, key=lambda one: (one[1][6] is not None, one[1][8] != "poisson", repr(one[1])))
        _, _, _, _, _, _, settings, mix, arrivals = key
        warnings = []
        if len({one[6] for _, one in own}) > 1:
            warnings.append(f"measured with several settings; this is for {settings or 'those of the adapter'}")
        if arrivals not in ("poisson", None):
            warnings.append(f"measured with arrivals {arrivals}, not poisson")
        return code, {**identity, "settings": settings, "workload": mix, "arrivals": arrivals, **lengths}, warnings

    def _alike(self, code: int, mix: str | None, workload: Workload) -> bool:
        """Return whether a measured mix is `workload`: by name, or else by its mean lengths."""
        one = self.configurations[code]
        measured = np.array([one.input_tokens, one.output_tokens])
        asked = np.array([workload.mean_input_tokens, workload.mean_output_tokens])
        return mix == workload.name or bool((np.abs(np.log(asked / measured)) < _SAME_LENGTHS).all())

    def _load(self, row: Mapping[str, Any], known: Configuration | None, qps: float) -> tuple[float, list[str]]:
        """Return the load on the measured axis at a rate, and what is to be said of that."""
        axis = self.encoder.axis
        if axis == "offered_qps":
            return qps, []
        if axis != "concurrency" or THROUGHPUT not in self.surrogates:
            raise InputError(f"--qps: {self.source} was measured over {axis}, where a request rate has no place")
        lowest, highest = self._loads(known)
        loads = np.geomspace(lowest, highest, _GRID)
        X = np.repeat(self.encoder.encode([{**row, axis: highest}]), _GRID, axis=0)
        X[:, LOAD] = loads
        rates = self.surrogates[THROUGHPUT].predict(X) / row["output_tokens"]
        if qps > rates[-1] * _ROUNDING:
            raise InputError(
                f"--qps: {qps:g} is more than was measured: {highest:g} in flight served {rates[-1]:.3g} req/s"
            )
        load = float(loads[np.argmax(rates >= min(qps, rates[-1]))])
        return load, [
            f"measured in a closed loop: {load:.3g} in flight serve {qps:g} req/s; open loops have longer tails"
        ]

    def _loads(self, known: Configuration | None) -> tuple[float, float]:
        """Return the loads that a configuration was measured at; of one that was not, those of all."""
        among: Sequence[Configuration] = self.configurations if known is None else (known,)
        return min(one.lowest for one in among), max(one.highest for one in among)

    def rates(self, placed: Placed) -> tuple[float, float]:
        """Return the request rates between which a configuration was measured; of one that was not, those of all."""
        lowest, highest = self._loads(placed.known)
        if self.encoder.axis == "offered_qps":
            return lowest, highest
        X = np.repeat(self.encoder.encode([placed.row]), 2, axis=0)
        X[:, LOAD] = lowest, highest
        low, high = self.surrogates[THROUGHPUT].predict(X) / placed.row["output_tokens"]
        return float(low), float(high)

    def to_parts(self) -> dict[str, Any]:
        """Return the parts of a saved model, which :meth:`from_parts` reads: plain data, and the surrogates."""
        about = {
            "source": self.source,
            "evidence": self.evidence,
            "encoder": self.encoder.to_data(),
            "support": self.support.to_data(),
            "configurations": [asdict(one) for one in self.configurations],
            "chosen": {metric: list(names) for metric, names in self.chosen.items()},
            "missing": dict(self.missing),
            "quality": self.quality.to_data(),
        }
        return {"loads": about, **{f"loads_{metric}": one for metric, one in self.surrogates.items()}}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any], where: str) -> FittedLoads:
        """Read what :meth:`to_parts` returned.

        Raises
        ------
        StoreError
            The parts are anything else; `where` names them.
        """
        from qplan.models.intervals.conformal import ConformalRegressor

        try:
            about = parts["loads"]
            found = cls(
                str(about["source"]),
                str(about["evidence"]),
                LoadEncoder.from_data(about["encoder"]),
                Support.from_data(about["support"]),
                tuple(Configuration(**one) for one in about["configurations"]),
                {metric: parts[f"loads_{metric}"] for metric in about["chosen"]},
                {metric: (str(known), str(unseen)) for metric, (known, unseen) in about["chosen"].items()},
                {str(metric): str(why) for metric, why in about["missing"].items()},
                QualityModel.from_data(about["quality"]),
            )
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where}: not a fitted model: {type(error).__name__} {error}") from None
        whole = len(found.configurations) == len(found.encoder.groups[-1])
        if not whole or not all(isinstance(one, ConformalRegressor) for one in found.surrogates.values()):
            raise StoreError(f"{where}: not a fitted model: its parts do not belong together")
        return found


_IDENTITY = ("model", "quantization", "gpu", "tp", "engine", "engine_version")


def _identity(deployment: Deployment) -> tuple[Any, ...]:
    return (
        deployment.model.name,
        str(deployment.quantization),
        deployment.gpu.name,
        deployment.tp,
        deployment.engine,
        deployment.engine_version,
    )


def described(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[str, list[Any]]:
    """Return the columns of `rows` by which their support is judged."""
    one_by_one = [_described(row, axis) for row in rows]
    return {name: [one[name] for one in one_by_one] for name in one_by_one[0]}


def _described(row: Mapping[str, Any], axis: str) -> dict[str, str | float]:
    names = {name: str(row[name]) for name in ("gpu", "model", "quantization")}
    engine = f"{row['engine']} {row['engine_version']}".strip()
    numbers = {name: float(row[name]) for name in ("tp", "input_tokens", "output_tokens", axis)}
    return {**names, "engine": engine, **numbers}


def _beyond(known: Configuration, load: float, axis: str) -> list[str]:
    """Return what is to be said of a load outside those that a configuration was measured at.

    Raises
    ------
    InputError
        It is so far above them that no answer is worth anything.
    """
    said = []
    if known.saturation_qps is not None and axis == "offered_qps" and load > known.saturation_qps:
        kept = f", the highest rate that was measured to keep {known.slo}" if known.slo else ""
        said.append(f"{load:g} req/s is above saturation, {known.saturation_qps:.3g} req/s{kept}: queues build up")
    span = f"this configuration was measured at {axis}={known.lowest:.3g} to {known.highest:.3g}"
    if load > REFUSED_FACTOR * known.highest:
        raise InputError(f"{span}; {load:g} is more than {REFUSED_FACTOR:g} times that: refused")
    if not known.lowest <= load <= known.highest:
        said.append(f"{span}; {load:g} is beyond")
    return said
