"""Fits the step-time surrogate to latencies under load, where nobody timed single iterations.

A run under load shows mean TTFT and TPOT at a request rate or a concurrency. The analytic serving model
(:mod:`qplan.models.sharing`, :mod:`qplan.models.closedloop`) turns step times into these, so step times can be
inferred from them; but a few latencies cannot tell fifty parts of an iteration apart. What is fitted is three numbers:
how much longer than a prior says it takes to move memory, to compute, and to launch and synchronise. First for all
runs of an engine on a GPU together, then for each deployment, each held near the one before::

    min  Σ (log predicted/measured / σ)²  +  Σ ((log multiple - log multiple₀) / τ)²

The number of running requests is not used: by Little's law it is rate x time in system, which TTFT and TPOT give.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.core.workload import Workload
from qplan.models.closedloop import closed_loop
from qplan.models.profiled import KEYS, codes_of, deployment_of, keys_of, numbers_of
from qplan.models.sharing import SharingModel
from qplan.models.steps.parts import NAMES
from qplan.models.steps.surrogate import StepSurrogate, branch_of
from qplan.models.steptimes import Floats, Ints, StepTimes

if TYPE_CHECKING:
    import pyarrow as pa

LOAD_COLUMNS = (
    *KEYS,
    *("phase", "status", "input_tokens", "output_tokens", "offered_qps", "concurrency", "ttft_mean_s", "tpot_mean_s"),
)
_COMPUTE = ("gemm", "head", "sampling", "prefill attention")
_OVERHEAD = ("launch", "allreduce")
_GROUPS: Floats = np.array(
    [
        [not name.startswith((*_COMPUTE, *_OVERHEAD)) for name in NAMES],
        [name.startswith(_COMPUTE) for name in NAMES],
        [name.startswith(_OVERHEAD) for name in NAMES],
    ],
    dtype=float,
)  # (3, M): memory, compute, overhead
# Standard deviations of logarithms. Of the serving model's error against real closed loops, TPOT is near and TTFT is
# far off (the card of trtllm-composed); an engine may be half or twice as fast as another, its deployments are alike.
_TTFT_ERROR, _TPOT_ERROR = 0.5, 0.1
_ENGINE_SPREAD, _DEPLOYMENT_SPREAD = 0.7, 0.2
_NEAR_SATURATION = 0.98  # of the stable rate: beyond, the queue has no mean and the excess is the error
_DIFFERENCE = 1e-4


@dataclass(frozen=True, slots=True)
class LoadPoints:
    """N runs under load of D deployments.

    Attributes
    ----------
    deployments : (D,)
    index : (N,)
        Which of them.
    input_tokens, output_tokens : (N,)
        Means of a request; at least 2 output tokens.
    rate_qps, concurrency : (N,)
        Requests/s of an open loop, or requests in flight of a closed one; NaN in the other.
    ttft_s, tpot_s : (N,)
        Mean latencies; TTFT may be NaN where it is not known.
    """

    deployments: tuple[Deployment, ...]
    index: Ints
    input_tokens: Floats
    output_tokens: Floats
    rate_qps: Floats
    concurrency: Floats
    ttft_s: Floats
    tpot_s: Floats

    def __post_init__(self) -> None:
        """Check that each run has one load and a TPOT; raise :class:`InputError`."""
        if (np.isfinite(self.rate_qps) == np.isfinite(self.concurrency)).any():
            raise InputError("runs under load: expected either a request rate or a concurrency of each")
        if not (self.tpot_s > 0).all() or (self.ttft_s <= 0).any() or (self.output_tokens < 2).any():
            raise InputError("runs under load: expected latencies above 0 s and at least 2 output tokens")

    @classmethod
    def of_table(cls, table: pa.Table, where: str) -> LoadPoints:
        """Take the serving rows with status ok and a TPOT of a pack or store.

        Parameters
        ----------
        table
            Rows with (at least) the columns :data:`LOAD_COLUMNS`.
        where
            Where they come from, for messages.

        Raises
        ------
        StoreError
            When there is no such row.
        InputError
            When a model, GPU or quantization is unknown to the catalogue.
        """
        phase, phases = codes_of(table, "phase")
        status, statuses = codes_of(table, "status")
        serving = (np.array(phases)[phase] == "serving") & (np.array(statuses)[status] == "ok")
        chosen = serving & np.isfinite(numbers_of(table, "tpot_mean_s")) & (numbers_of(table, "output_tokens") >= 2)
        if not chosen.any():
            raise StoreError(f"{where} has no serving row with status ok and a mean TPOT")
        good = table.filter(chosen)
        keys, index = keys_of(good)
        values = [numbers_of(good, name) for name in LOAD_COLUMNS[len(KEYS) + 2 :]]
        return cls(tuple(deployment_of(key, where) for key in keys), index, *values)


def fit_loads(points: LoadPoints, prior: StepSurrogate) -> StepSurrogate:
    """Return `prior` with the engines and deployments of `points` added, or corrected, to agree with them.

    An engine that `prior` does not know starts as the one that :meth:`StepSurrogate.engine_for` names. Deployments that
    were run get branches of their own; others of the same engine are predicted with what the runs share.

    Raises
    ------
    InputError
        When scikit-learn's extra, which brings SciPy, is not installed.
    """
    factors, residuals = dict(prior.factors), dict(prior.residuals)
    for engine in sorted({branch_of(deployment)[:3] for deployment in points.deployments}):
        runs = [
            _Runs(points, n, prior)
            for n, one in enumerate(points.deployments)
            if branch_of(one)[:3] == engine and (points.index == n).any()
        ]
        if not runs:
            continue
        shared = _fit(runs, np.zeros(3), _ENGINE_SPREAD)
        if engine in prior.factors:
            known = {branch: values for branch, values in prior.factors.items() if branch[:3] == engine}
        else:
            like = engine[0], *prior.engine_for(runs[0].deployment)
            known = {engine: prior.factors.get(like, prior.factors_of(runs[0].deployment))}
        factors |= {branch: values * (np.exp(shared) @ _GROUPS) for branch, values in known.items()}
        for run in runs:
            own = np.exp(_fit([run], shared, _DEPLOYMENT_SPREAD))
            factors[branch_of(run.deployment)] = prior.factors_of(run.deployment) * (own @ _GROUPS)
            residual = prior.residuals.get(prior.branch_for(run.deployment))
            if residual is not None:
                residuals[branch_of(run.deployment)] = residual
    return StepSurrogate(factors, residuals)


@dataclass(frozen=True)
class _Runs:
    """The runs of one deployment."""

    points: LoadPoints
    number: int
    prior: StepSurrogate

    @property
    def deployment(self) -> Deployment:
        return self.points.deployments[self.number]

    @cached_property
    def by_group(self) -> StepTimes:
        """Step times of memory, compute and overhead alone, as if three deployments: (3, ...)."""
        factors, whole = self.prior.factors_of(self.deployment), branch_of(self.deployment)
        tables = [
            StepSurrogate({whole: factors * group, whole[:3]: factors}).step_times([self.deployment])
            for group in _GROUPS
        ]
        prefill_s, decode_s = (np.concatenate([getattr(t, name) for t in tables]) for name in ("prefill_s", "decode_s"))
        together = self.prior.step_times([self.deployment])  # with the deployment's residual, which all share
        decode_s *= together.decode_s / decode_s.sum(axis=0)
        return replace(together, prefill_s=prefill_s, decode_s=decode_s)

    def errors(self, variants: Floats) -> Floats:
        """Return the errors in standard deviations, (V, 2 N), for logarithms of the multiples, (V, 3)."""
        table, multiples = self.by_group, np.exp(variants)
        decode_s = np.einsum("vg,gbc->vbc", multiples, table.decode_s)
        steps = replace(table, prefill_s=multiples @ table.prefill_s, decode_s=decode_s)
        columns = []
        for n in map(int, np.flatnonzero(self.points.index == self.number)):
            ttft, tpot = self._closed(n, steps) if np.isnan(self.points.rate_qps[n]) else self._open(n, steps)
            measured = self.points.ttft_s[n]
            known = np.isfinite(measured)
            columns += [np.log(tpot / self.points.tpot_s[n]) / _TPOT_ERROR]
            columns += [np.log(ttft / measured) / _TTFT_ERROR] if known else []
        return np.stack(columns, axis=1)

    def _closed(self, n: int, steps: StepTimes) -> tuple[Floats, Floats]:
        points = self.points
        concurrency = max(1, round(points.concurrency[n]))
        return closed_loop(steps, float(points.input_tokens[n]), float(points.output_tokens[n]), concurrency)

    def _open(self, n: int, steps: StepTimes) -> tuple[Floats, Floats]:
        lengths = max(1, round(self.points.input_tokens[n])), round(self.points.output_tokens[n])
        workload = Workload.of("run", "load", [(*lengths, 1.0)], "mean lengths of a run")
        model = SharingModel.of([self.deployment] * len(steps.prefill_s), steps)
        rate = np.full(len(steps.prefill_s), self.points.rate_qps[n])
        stable = np.minimum(rate, _NEAR_SATURATION * model.saturation_qps(workload, ()))
        loaded = model.at(workload, stable)
        excess = rate / np.maximum(stable, 1e-12)
        return loaded.mean("ttft") * excess, loaded.mean("tpot") * excess


def _fit(runs: list[_Runs], start: Floats, spread: float) -> Floats:
    """Return the logarithms of the multiples, (3,), of `runs` together, held near `start`."""
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise InputError("fitting step times needs SciPy: pip install 'qplan[models]'") from None

    def errors(variants: Floats) -> Floats:
        return np.concatenate([*(run.errors(variants) for run in runs), (variants - start) / spread], axis=1)

    def residuals(at: Floats) -> Floats:
        single: Floats = errors(at[None])[0]
        return single

    def jacobian(at: Floats) -> Floats:
        around = errors(at + np.vstack([np.zeros(3), _DIFFERENCE * np.eye(3)]))
        slopes: Floats = (around[1:] - around[0]).T / _DIFFERENCE
        return slopes

    found: Floats = least_squares(residuals, start, jac=jacobian, loss="soft_l1", max_nfev=30, bounds=(-4.0, 4.0)).x
    return found
