"""A mean-value model of continuous batching.

One replica runs iterations: a decode iteration of ``b`` sequences takes ``D(b)`` seconds and gives each a token; a
prompt of length ``i`` is prefilled in ``P(i)`` seconds, during which the running sequences wait. Requests arrive as
a Poisson stream of rate ``λ``; one generates ``L`` tokens after the first in the mean. Then

* the prefills of the others stretch a decode step to ``τ = D(b) / (1 - λ P̄)``, the mean TPOT;
* by Little's law ``b = λ L τ``. Both together give the rate that goes with a mean batch in closed form,
  ``λ(b) = b / (L D(b) + b P̄)``, so the fixed point needs no iteration: tabulate and invert;
* ``b`` cannot exceed the sequences whose full length fits the KV cache (TensorRT-LLM's default scheduler,
  GUARANTEED_NO_EVICT, reserves it) nor the engine's largest batch. That batch is the ``m`` slots of a replica.

Spread around the means, per length bucket of the workload:

* TTFT is the residual of the running iteration (uniform on ``[0, D]``) + the wait for a slot (M/M/m, probability by
  Halfin & Whitt 1981, eq. 2.3) + the wait for prefills ahead (M/G/1, Pollaczek-Khinchine; exponential given busy) + ``P(i)``.
* TPOT is normal around ``τ``: the prefills that interrupt a request are Poisson, the batch it meets is Poisson
  around ``b``, averaged over the request's life (M/G/∞ covariance).
* ITL is ``D``, or ``D + P(i)`` in the gaps that hold a prefill. E2E is the sum of TTFT and (output - 1) TPOT.

What it leaves out: chunked prefill and prompts that share an iteration (both soften TTFT at high load), scheduling
overhead of the engine, bursts beyond Poisson. Everything is monotone in ``λ`` for percentiles from the median up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import MAX_SEQUENCES, Deployment
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.steptimes import Floats, StepTimes

_BISECTIONS = 60  # of an interval on a log scale: relative error below 1e-15 of its width
_BATCHES_PER_OCTAVE = 16
_LOWEST_BATCH = 2.0**-20


@dataclass(frozen=True, slots=True)
class MeanValueModel:
    """The model above for D deployments.

    Attributes
    ----------
    steps
        Their step times.
    kv_tokens : (D,)
        Tokens that the KV cache of a replica holds.
    max_context : (D,)
        Longest sequence that the model takes, in tokens.
    """

    steps: StepTimes
    kv_tokens: Floats
    max_context: Floats

    @classmethod
    def of(cls, deployments: Sequence[Deployment], steps: StepTimes) -> MeanValueModel:
        """Make the model of `deployments`, whose memory decides how many sequences run at once."""
        return cls(
            steps,
            np.array([deployment.memory().kv_tokens for deployment in deployments], dtype=float),
            np.array([deployment.model.max_context for deployment in deployments], dtype=float),
        )

    def at(self, workload: Workload, rate_qps: Floats) -> Replicas:
        """Load each deployment with `workload` at its `rate_qps` (D,) requests/s per replica."""
        return _Curves.of(self, workload).at(np.asarray(rate_qps, dtype=float))

    def saturation_qps(self, workload: Workload, slos: Sequence[Slo]) -> Floats:
        """Return the highest rate per replica, (D,) requests/s, that meets all `slos`; 0 where none does."""
        curves = _Curves.of(self, workload)

        def met(rate: Floats) -> Floats:
            replicas = curves.at(rate)
            good = np.isfinite(replicas.tpot_s)
            for slo in slos:
                assert slo.percentile is not None
                good &= replicas.attainment(slo.metric, slo.threshold_s) >= slo.percentile / 100
            return good

        highest = curves.rates[:, -1]
        lowest = highest * 1e-9
        low, high = lowest.copy(), highest * (1 - 1e-9)
        never, always = ~met(low), met(high)
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            good = met(middle)
            low, high = np.where(good, middle, low), np.where(good, high, middle)
        return np.where(never, 0.0, np.where(always, highest * (1 - 1e-9), low))

    def at_concurrency(self, workload: Workload, concurrency: Floats) -> Replicas:
        """Load each deployment with a closed loop of `concurrency` (D,) requests always in flight.

        The rate follows from Little's law over a request's whole life; used to compare with closed-loop benchmarks.
        """
        curves = _Curves.of(self, workload)
        low, high = curves.rates[:, -1] * 1e-9, curves.rates[:, -1] * (1 - 1e-9)
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            replicas = curves.at(middle)
            few = middle * replicas.mean("e2e") < concurrency
            low, high = np.where(few, middle, low), np.where(few, high, middle)
        return curves.at(low)


@dataclass(frozen=True, slots=True)
class _Curves:
    """What does not depend on the rate: D deployments, J length buckets, K points of mean batch."""

    weights: Floats  # (J,)
    steps_per_request: Floats  # (J,) decode steps: output tokens after the first
    output_tokens: float
    prefill_s: Floats  # (D, J)
    slots: Floats  # (D,)
    batches: Floats  # (D, K)
    decode_s: Floats  # (D, K)
    rates: Floats  # (D, K), increasing

    @classmethod
    def of(cls, model: MeanValueModel, workload: Workload) -> _Curves:
        weights = np.array([bucket.weight for bucket in workload.buckets])
        inputs = np.array([bucket.input_tokens for bucket in workload.buckets])
        outputs = np.array([bucket.output_tokens for bucket in workload.buckets])
        decodes = outputs - 1
        per_request = max(weights @ decodes, 1e-9)
        # A sequence picked from a running batch is a long one: weigh by the time it stays.
        context = weights @ (decodes * (inputs + outputs / 2)) / per_request
        reserved = weights @ (decodes * (inputs + outputs)) / per_request
        if context == 0:
            context = reserved = weights @ inputs
        # A replica takes a workload only if its longest request fits the context and the cache.
        fits = np.minimum(model.kv_tokens, model.max_context) >= workload.longest
        slots = np.where(fits, np.clip(np.floor(model.kv_tokens / reserved), 1, MAX_SEQUENCES), 0)

        prefill_s = model.steps.prefill(inputs)
        by_batch = model.steps.decode_by_batch(float(context))
        octaves = np.log2(np.maximum(slots, 1) / _LOWEST_BATCH)
        count = int(np.ceil(octaves.max() * _BATCHES_PER_OCTAVE)) + 1
        batches = _LOWEST_BATCH * 2 ** (octaves[:, None] * np.linspace(0, 1, count))
        decode_s = np.stack(
            [_along(np.maximum(row, 1), model.steps.batches, times) for row, times in zip(batches, by_batch, strict=True)]
        )
        mean_prefill = prefill_s @ weights
        rates = batches / (per_request * decode_s + batches * mean_prefill[:, None])
        rates = np.maximum.accumulate(rates, axis=1) * (1 + 1e-12 * np.arange(count))
        rates = np.where(fits[:, None], rates, np.nextafter(0, 1) * np.arange(1, count + 1))
        return cls(weights, decodes, float(weights @ outputs), prefill_s, slots, batches, decode_s, rates)

    def at(self, rate: Floats) -> Replicas:
        batch = np.exp(_invert(np.log(self.rates), np.log(self.batches), np.log(np.maximum(rate, 1e-300))))
        step = _invert(np.log(self.batches), self.decode_s, np.log(batch))
        slope = _slope(self.batches, self.decode_s, batch)
        mean_prefill = self.prefill_s @ self.weights
        busy = rate * mean_prefill
        saturated = (rate > self.rates[:, -1]) | (busy >= 1) | (self.slots < 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = np.where(saturated, np.inf, step / np.maximum(1 - busy, 1e-300))
        return Replicas(self, rate, batch, step, slope, np.where(saturated, np.inf, tpot), np.minimum(busy, 1.0))


@dataclass(frozen=True, slots=True)
class Replicas:
    """D replicas under load; see the module's docstring for the symbols.

    Attributes
    ----------
    rate_qps, batch, step_s, step_slope_s, tpot_s, prefill_share : (D,)
        ``λ``, ``b``, ``D(b)``, ``dD/db``, ``τ`` and ``λ P̄``.
    """

    curves: _Curves
    rate_qps: Floats
    batch: Floats
    step_s: Floats
    step_slope_s: Floats
    tpot_s: Floats
    prefill_share: Floats

    @property
    def output_tokens_per_s(self) -> Floats:
        """Generated tokens per second of each replica; 0 beyond saturation."""
        return np.where(np.isfinite(self.tpot_s), self.rate_qps * self.curves.output_tokens, 0.0)

    def mean(self, metric: str) -> Floats:
        """Return the mean of `metric` in seconds; infinite beyond saturation."""
        c = self.curves
        if metric == "ttft":
            mean = self._wait().mean() + self.prefill_mean_s
        elif metric == "e2e":
            mean = self._wait().mean() + self.prefill_mean_s + (c.steps_per_request @ c.weights) * self.tpot_s
        else:
            mean = self.tpot_s
        return np.where(np.isfinite(self.tpot_s), mean, np.inf)

    @property
    def prefill_mean_s(self) -> Floats:
        """Mean prefill time of a request, ``P̄``."""
        mean: Floats = self.curves.prefill_s @ self.curves.weights
        return mean

    def attainment(self, metric: str, threshold_s: float) -> Floats:
        """Return the share of requests (gaps, for ``itl``) at most `threshold_s`; 0 beyond saturation."""
        return self._cdf(metric, np.full(len(self.rate_qps), threshold_s))

    def percentile(self, metric: str, percentile: float) -> Floats:
        """Return the `percentile` of `metric` in seconds; infinite beyond saturation."""
        low = np.full(len(self.rate_qps), 1e-9)
        high = np.full(len(self.rate_qps), 1e9)
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            below = self._cdf(metric, middle) < percentile / 100
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.where(np.isfinite(self.tpot_s), high, np.inf)

    def _cdf(self, metric: str, at: Floats) -> Floats:
        shares = {"ttft": self._ttft, "tpot": self._tpot, "itl": self._itl, "e2e": self._e2e}[metric](at[:, None])
        return np.where(np.isfinite(self.tpot_s), shares, 0.0)

    def _ttft(self, at: Floats) -> Floats:
        share: Floats = self._wait().cdf(at - self.curves.prefill_s) @ self.curves.weights
        return share

    def _tpot(self, at: Floats) -> Floats:
        several = self.curves.steps_per_request > 0
        if not several.any():
            return np.ones(len(at))
        weights = self.curves.weights[several] / self.curves.weights[several].sum()
        spread = np.sqrt(self._tpot_variance()[:, several])
        share: Floats = _normal_cdf(at - self._finite_tpot[:, None], spread) @ weights
        return share

    def _itl(self, at: Floats) -> Floats:
        step = self.step_s[:, None]
        undisturbed = np.exp(-self.rate_qps * self._finite_tpot)
        after_prefill = (at >= step + self.curves.prefill_s) @ self.curves.weights
        share: Floats = undisturbed * (at >= step)[:, 0] + (1 - undisturbed) * after_prefill
        return share

    def _e2e(self, at: Floats) -> Floats:
        c, wait = self.curves, self._wait()
        mean = wait.mean()[:, None] + c.prefill_s + c.steps_per_request * self._finite_tpot[:, None]
        variance = wait.variance()[:, None] + c.steps_per_request**2 * self._tpot_variance()
        share: Floats = _normal_cdf(at - mean, np.sqrt(variance)) @ c.weights
        return share

    @property
    def _finite_tpot(self) -> Floats:
        """``τ``, with a large number for infinity, so that shares which are masked later stay defined."""
        return np.minimum(self.tpot_s, 1e9)

    def _tpot_variance(self) -> Floats:
        """Variance of TPOT around its mean, (D, J); meaningless where a bucket has no decode step."""
        c = self.curves
        steps = np.maximum(c.steps_per_request, 1)
        square = (c.prefill_s**2) @ c.weights
        interruptions = (self.rate_qps * self._finite_tpot * square)[:, None] / steps
        life = steps / max(c.steps_per_request @ c.weights, 1e-9)  # relative to the mean life
        crowding = (self.step_slope_s**2 * self.batch / np.maximum(1 - self.prefill_share, 1e-9) ** 2)[:, None]
        variance: Floats = interruptions + crowding / (1 + life / 2)
        return variance

    def _wait(self) -> _Wait:
        c = self.curves
        idle = np.maximum(1 - self.prefill_share, 1e-9)
        square = (c.prefill_s**2) @ c.weights
        prefill = _Queue(self.prefill_share, 2 * self.prefill_mean_s * idle / square)
        slots = np.maximum(c.slots, 1)
        offered = np.minimum(self.batch, slots)
        life = (c.steps_per_request @ c.weights) * self._finite_tpot + self.prefill_mean_s
        beta = (slots - offered) / np.sqrt(offered)
        slot = _Queue(_halfin_whitt(beta), np.maximum(slots - offered, 1e-9) / life)
        return _Wait(self.step_s, 1 - np.exp(-self.batch), prefill, slot)


@dataclass(frozen=True, slots=True)
class _Queue:
    """A wait that is 0 with probability ``1 - probability``, else exponential with `rate`; arrays are (D,)."""

    probability: Floats
    rate: Floats


@dataclass(frozen=True, slots=True)
class _Wait:
    """Residual of the running iteration (with probability `running`, uniform on [0, step]) + two independent queues."""

    step_s: Floats
    running: Floats
    first: _Queue
    second: _Queue

    def mean(self) -> Floats:
        queues = sum(queue.probability / queue.rate for queue in (self.first, self.second))
        return self.running * self.step_s / 2 + queues

    def variance(self) -> Floats:
        residual = self.running * self.step_s**2 / 3 - (self.running * self.step_s / 2) ** 2
        return residual + sum(
            queue.probability * (2 - queue.probability) / queue.rate**2 for queue in (self.first, self.second)
        )

    def cdf(self, at: Floats) -> Floats:
        """Return P(wait <= at) for `at` (D, J)."""
        running = self.running[:, None]
        survival = running * self._after_residual(at) + (1 - running) * self._queued(at)
        return 1 - np.clip(survival, 0.0, 1.0)

    def _queued(self, at: Floats) -> Floats:
        """Survival of the two queues' sum, a mixture of two exponentials."""
        total = sum(scale * np.exp(-rate * np.maximum(at, 0)) for scale, rate in self._exponentials())
        return np.where(at < 0, 1.0, total)

    def _after_residual(self, at: Floats) -> Floats:
        """Survival of the uniform residual plus the queues: the above, averaged over the residual."""
        step = np.maximum(self.step_s, 1e-12)[:, None]
        below = np.clip(step - at, 0, step) / step  # residual alone exceeds `at`
        reach = np.clip(at, 0, step)
        total = below
        for scale, rate in self._exponentials():
            total = total + scale * (np.exp(-rate * (np.maximum(at, 0) - reach)) - np.exp(-rate * np.maximum(at, 0))) / (
                rate * step
            )
        return np.where(at < 0, 1.0, total)

    def _exponentials(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        p, q = self.first.probability, self.second.probability
        a, b = self.first.rate, self.second.rate
        b = np.where(np.abs(b - a) < 1e-6 * a, a * (1 + 1e-6), b)  # equal rates: the limit, near enough
        both = p * q / (b - a)
        return (
            ((p * (1 - q) + both * b)[:, None], a[:, None]),
            ((q * (1 - p) - both * a)[:, None], b[:, None]),
        )


def _halfin_whitt(beta: Floats) -> Floats:
    """Probability that all servers are busy, ``1 / (1 + β Φ(β)/φ(β))`` with ``β = (m - a)/√a`` (Halfin & Whitt 1981)."""
    from scipy.special import ndtr

    beta = np.minimum(beta, 30.0)
    density = np.exp(-(beta**2) / 2) / np.sqrt(2 * np.pi)
    busy: Floats = density / (density + beta * ndtr(beta))
    return busy


def _normal_cdf(distance: Floats, spread: Floats) -> Floats:
    from scipy.special import ndtr

    share: Floats = ndtr(distance / np.maximum(spread, 1e-12))
    return share


def _along(at: Floats, axis: Floats, values: Floats) -> Floats:
    """Interpolate `values` over `axis` at `at`, prolonging the last segment."""
    inside = np.interp(at, axis, values)
    if len(axis) == 1:
        return inside
    slope = (values[-1] - values[-2]) / (axis[-1] - axis[-2])
    return inside + np.maximum(at - axis[-1], 0) * max(slope, 0.0)


def _invert(axis: Floats, values: Floats, at: Floats) -> Floats:
    """Interpolate row by row: `values` (D, K) over `axis` (D, K) at `at` (D,), clamped to the ends."""
    return np.array([np.interp(x, row, value) for x, row, value in zip(at, axis, values, strict=True)])


def _slope(batches: Floats, decode_s: Floats, batch: Floats) -> Floats:
    """Slope of the decode time at `batch` (D,), from a batch 10 % smaller to one 10 % larger."""
    low, high = batch * 0.9, np.minimum(batch * 1.1, batches[:, -1])
    rise = _invert(batches, decode_s, high) - _invert(batches, decode_s, low)
    return np.maximum(rise, 0) / np.maximum(high - low, 1e-12)
