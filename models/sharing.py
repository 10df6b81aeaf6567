"""Continuous batching as a processor-sharing queue.

One replica runs iterations: a decode iteration of ``n`` sequences takes ``D(n)`` seconds and gives each a token; a
prompt of length ``i`` is prefilled in ``P(i)`` seconds, during which the running sequences wait. Requests arrive as a
Poisson stream of rate ``λ``; one generates ``L`` tokens after the first in the mean. At most ``m`` sequences run at
once.

**Mean values.** With ``n`` sequences running, one takes ``R(n) = L D(n) + n P̄`` seconds of service: its own decode
steps, its own prefill and that of each request that arrives meanwhile, of which in balance there are ``n``. Sharing
an engine like this is a symmetric queue, whose number of requests depends on the lengths only through their mean
(Kelly, *Reversibility and Stochastic Networks*, 1979, section 3.3)::

    p(n) ∝ Π_{k≤n} λ R(min(k, m)) / min(k, m)

By Little's law the mean TPOT is ``τ = (E[min(n, m)] - λ P̄) / (λ L)``: the mean batch is rate x output tokens x step
time, the fixed point ``b = λ R(b)`` of mean-value models, here with its spread. The replica is stable up to ``λ = m /
R(m)``.

**Slots.** ``m`` is how many sequences fit the KV cache at their full length, which TensorRT-LLM's default scheduler
(GUARANTEED_NO_EVICT) reserves, or the engine's largest batch, or the largest that was profiled.

**Spread**, per length bucket of the workload:

* TTFT is the residual of the running iteration (uniform) + the wait for a slot (with the probability that ``n ≥ m``,
  exponential) + the wait for prefills ahead (M/G/1, Pollaczek-Khinchine; exponential given busy) + ``P(i)``.
  Where measurements corrected the engine's TTFT (:class:`~qplan.models.steptimes.FirstToken`) each of these has its
  factor, and the host's time comes on top.
* TPOT is normal around ``τ``. Its variance is that of ``R(n) / L`` as running sequences meet it, plus that of the
  prefills which interrupt the request, a delay busy period: ``λ τ E[P²] / (1 - ρ)²`` over its decode steps, ``ρ = λ
  P̄``. A normal's tail passes the largest ``R``, that of ``m`` sequences: so no percentile exceeds the one at the stable
  rate, where ``m`` run all the time and only prefills vary.
* ITL is the step, or the step + ``P(i)`` in the gaps that hold a prefill. E2E is the sum of TTFT and (output - 1)
  TPOT.

Against a step-by-step simulation of that very engine (``tests/models/test_sharing.py``) means and 90th percentiles
are within 10 % up to 80 % of the stable rate. What it leaves out: chunked prefill and prompts that share an iteration
(both soften TTFT at high load), the engine's own overhead, bursts beyond Poisson.

Percentiles from the median up do not fall with ``λ`` as long as a step takes longer the more sequences it advances, in
about equal parts. Two things fall that should not. ITL takes the mean step for ``τ (1 - ρ)``, which is above the step
of ``m`` sequences where few slots hold prompts that take as long as all decode steps: 4,000 tokens in and 50 out lose
up to a quarter of ITL p50 between 75 % of the stable rate and all of it. And where profiled steps come in jumps, or
throughput falls with the batch, a normal is a poor picture of two ways to run: E2E, and TPOT p99, can fall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import MAX_SEQUENCES, Deployment
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.steptimes import Bools, FirstToken, Floats, StepTimes
from qplan.models.waiting import Queue, Wait, normal_cdf

_BISECTIONS = 50  # on a log scale: far below the model's own error
_SPAN = 1e-9  # rates are sought from this share of the stable rate up to one minus it
_NO_WAIT = 1e-6  # factor of a wait that stands for 0, which no rate has
_MANY_SECONDS = 1e6  # stands for infinity where shares are computed and masked later


@dataclass(frozen=True, slots=True)
class SharingModel:
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
    def of(cls, deployments: Sequence[Deployment], steps: StepTimes) -> SharingModel:
        """Make the model of `deployments`, whose memory decides how many sequences run at once."""
        return cls(
            steps,
            np.array([deployment.memory().kv_tokens for deployment in deployments], dtype=float),
            np.array([deployment.model.max_context for deployment in deployments], dtype=float),
        )

    def at(self, workload: Workload, rate_qps: Floats, seen_by: Workload | None = None) -> Replicas:
        """Load each deployment with `workload` at its `rate_qps` (D,) requests/s per replica.

        Latencies are those of the workload's own requests, or of others that are `seen_by`: a few among them, too few
        to change the load. Poisson arrivals see time averages, whoever they are.
        """
        station = _Station.of(self, workload)
        return station.at(np.asarray(rate_qps, dtype=float), self._observer(station, seen_by))

    def saturation_qps(self, workload: Workload, slos: Sequence[Slo], seen_by: Workload | None = None) -> Floats:
        """Return the highest rate per replica, (D,) requests/s, that meets all `slos`; 0 where none does.

        The objectives are on the requests of `workload`, or of a few of `seen_by` among them.
        """
        station = _Station.of(self, workload)
        observer = self._observer(station, seen_by)

        def met(rate: Floats) -> Bools:
            replicas = station.at(rate, observer)
            good = replicas.stable
            for slo in slos:
                assert slo.percentile is not None
                good = good & (replicas.attainment(slo.metric, slo.threshold_s) >= slo.percentile / 100)
            return good

        low, high = station.stable_qps * _SPAN, station.stable_qps * (1 - _SPAN)
        never, always = ~met(low), met(high)
        rate = _bisect(met, low, high)
        return np.where(never, 0.0, np.where(always, high, rate))

    def _observer(self, station: _Station, seen_by: Workload | None) -> _Station:
        return station if seen_by is None else _Station.of(self, seen_by)


@dataclass(frozen=True, slots=True)
class _Station:
    """What does not depend on the rate, for D deployments, J length buckets and N batch sizes.

    Attributes
    ----------
    weights, decodes : (J,)
        Share of the requests, and their decode steps: output tokens after the first.
    prefill_s : (D, J)
    slots, stable_qps : (D,)
        ``m``, and the rate up to which the replica is stable; 0 where the longest request does not fit.
    batches : (N,)
        1 .. N.
    residence_s : (D, N)
        ``R(n)``.
    log_product : (D, N)
        ``log Π_{k≤n} R(k) / k``; -inf beyond the slots.
    first_token
        What measurements say of the parts of TTFT.
    """

    weights: Floats
    decodes: Floats
    output_tokens: float
    prefill_s: Floats
    slots: Floats
    stable_qps: Floats
    batches: Floats
    residence_s: Floats
    log_product: Floats
    first_token: FirstToken

    @classmethod
    def of(cls, model: SharingModel, workload: Workload) -> _Station:
        weights = np.array([bucket.weight for bucket in workload.buckets])
        inputs = np.array([bucket.input_tokens for bucket in workload.buckets])
        outputs = np.array([bucket.output_tokens for bucket in workload.buckets])
        decodes = outputs - 1
        # A sequence picked from a running batch is a long one: weigh by the steps it stays.
        stay = weights * decodes if (weights @ decodes) > 0 else weights
        stay = stay / stay.sum()
        context, reserved = stay @ (inputs + outputs / 2), stay @ (inputs + outputs)
        fits = np.minimum(model.kv_tokens, model.max_context) >= workload.longest
        most = min(MAX_SEQUENCES, model.steps.batches[-1])
        slots = np.clip(np.floor(model.kv_tokens / reserved), 1, most)

        batches = np.arange(1, int(slots.max()) + 1, dtype=float)
        grid = model.steps.decode_by_batch(float(context))
        step_s = np.stack([np.interp(batches, model.steps.batches, row) for row in grid])
        prefill_s = model.steps.prefill(inputs)
        residence_s = (weights @ decodes) * step_s + batches * (prefill_s @ weights)[:, None]
        log_product = np.cumsum(np.log(residence_s / batches), axis=1)
        stable = slots / residence_s[np.arange(len(slots)), slots.astype(int) - 1]
        return cls(
            weights,
            decodes,
            float(weights @ outputs),
            prefill_s,
            slots,
            np.where(fits, stable, 0.0),
            batches,
            residence_s,
            np.where(batches <= slots[:, None], log_product, -np.inf),
            model.steps.first_token or FirstToken.plain(len(slots)),
        )

    @property
    def decodes_per_request(self) -> float:
        """``L``; 0 where every answer is one token."""
        return float(self.weights @ self.decodes)

    @property
    def mean_prefill_s(self) -> Floats:
        """``P̄``, (D,)."""
        mean: Floats = self.prefill_s @ self.weights
        return mean

    @property
    def square_prefill_s2(self) -> Floats:
        """Second moment of the prefill time, (D,)."""
        square: Floats = self.prefill_s**2 @ self.weights
        return square

    def at(self, rate: Floats, observer: _Station) -> Replicas:
        stable = (rate < self.stable_qps) & (rate >= 0) & (observer.stable_qps > 0)
        # Where it is not, any stable rate keeps the arithmetic defined; what comes of it is masked.
        rate = np.where(stable, np.maximum(rate, 1e-30), np.maximum(self.stable_qps / 2, 1e-30))
        # In place: most of what a plan computes is this, and a fresh array costs as much as its exponential.
        p = self.batches * np.log(rate)[:, None]
        p += self.log_product
        peak = np.maximum(p.max(axis=1), 0.0)
        p -= peak[:, None]
        np.exp(p, out=p)
        full = np.arange(len(rate)), self.slots.astype(int) - 1
        busy = np.minimum(rate / (self.slots / self.residence_s[full]), 1 - 1e-15)
        p_all_busy = p[full] / (1 - busy)  # n >= m: geometric
        p[full] = p_all_busy  # from here on by the number that run, min(n, m)
        total = np.exp(-peak) + p.sum(axis=1)
        p /= total[:, None]

        batch = p @ self.batches
        residence = batch / rate
        weighted = p * self.batches
        weighted *= self.residence_s
        square = weighted.sum(axis=1) / rate
        decoding = self.decodes_per_request > 0
        steps = self.decodes_per_request if decoding else np.inf
        return Replicas(
            self,
            observer,
            rate,
            stable,
            batch,
            np.maximum(residence - self.mean_prefill_s, 0.0) / steps,
            np.maximum(square - residence**2, 0.0) / steps**2,
            p.sum(axis=1) * decoding,
            rate * self.mean_prefill_s,
            Queue(p_all_busy / total, self.slots / self.residence_s[full] - rate),
        )


@dataclass(frozen=True, slots=True)
class Replicas:
    """D replicas under load; see the module's docstring for the symbols. Arrays are (D,).

    Attributes
    ----------
    station, observer
        What the requests that load the replicas are, and those whose latencies are told: the same, as a rule.
    stable
        Whether the rate is below the stable rate; where it is not, the other attributes mean nothing.
    batch, tpot_s, crowding_s2
        ``E[min(n, m)]``, ``τ`` and the variance of ``R(n) / L`` around it.
    active
        Probability that any sequence runs.
    prefill_share
        ``ρ``.
    slot_queue
        The wait for a slot.
    """

    station: _Station
    observer: _Station
    rate_qps: Floats
    stable: Bools
    batch: Floats
    tpot_s: Floats
    crowding_s2: Floats
    active: Floats
    prefill_share: Floats
    slot_queue: Queue

    @property
    def step_s(self) -> Floats:
        """Mean time of a decode iteration, as a running sequence meets it."""
        return self.tpot_s * (1 - self.prefill_share)

    @property
    def output_tokens_per_s(self) -> Floats:
        """Generated tokens per second of each replica; 0 beyond saturation."""
        return np.where(self.stable, self.rate_qps * self.station.output_tokens, 0.0)

    def mean(self, metric: str) -> Floats:
        """Return the mean of `metric` in seconds; infinite beyond saturation."""
        first = self.station.first_token
        ttft = first.host_s + self._wait().mean() + first.prefill * self.observer.mean_prefill_s
        decoding = self.observer.decodes_per_request * self.tpot_s
        mean = {"ttft": ttft, "e2e": ttft + decoding}.get(metric, self.tpot_s)
        return np.where(self.stable, mean, np.inf)

    def attainment(self, metric: str, threshold_s: float) -> Floats:
        """Return the share of requests (gaps, for ``itl``) at most `threshold_s`; 0 beyond saturation."""
        return self._share(metric, np.full(len(self.rate_qps), threshold_s))

    def percentile(self, metric: str, percentile: float) -> Floats:
        """Return the `percentile` of `metric` in seconds; infinite beyond saturation."""
        low, high = np.full(len(self.rate_qps), 1e-9), np.full(len(self.rate_qps), _MANY_SECONDS)
        return np.where(self.stable, _bisect(lambda at: self._share(metric, at) < percentile / 100, low, high), np.inf)

    def _share(self, metric: str, at: Floats) -> Floats:
        shares = {"ttft": self._ttft, "tpot": self._tpot, "itl": self._itl, "e2e": self._e2e}[metric](at[:, None])
        return np.where(self.stable, shares, 0.0)

    def _ttft(self, at: Floats) -> Floats:
        share: Floats = self._wait().cdf(at - self._own_s()) @ self.observer.weights
        return share

    def _tpot(self, at: Floats) -> Floats:
        several = self.observer.decodes > 0
        if not several.any() or not self.station.decodes_per_request:
            return np.ones(len(at))
        weights = self.observer.weights[several] / self.observer.weights[several].sum()
        spread = np.sqrt(self._tpot_variance()[:, several])
        shares = normal_cdf(at - self.tpot_s[:, None], spread)
        share: Floats = np.maximum(shares, self._tpot_when_full(at)[:, several]) @ weights
        return share

    def _tpot_when_full(self, at: Floats) -> Floats:
        """Share of requests within `at` at the stable rate, (D, J): the batch varies up to the slots and no further."""
        s = self.station
        residence_s = s.residence_s[np.arange(len(s.slots)), s.slots.astype(int) - 1]
        tpot_s = np.maximum(residence_s - s.mean_prefill_s, 0.0) / s.decodes_per_request
        return normal_cdf(at - tpot_s[:, None], np.sqrt(self._interruptions(s.slots / residence_s, tpot_s)))

    def _itl(self, at: Floats) -> Floats:
        undisturbed = np.exp(-self.rate_qps * self.tpot_s)
        alone = (at >= self.step_s[:, None])[:, 0]
        with_prefill = (at >= self.step_s[:, None] + self.station.prefill_s) @ self.station.weights
        share: Floats = undisturbed * alone + (1 - undisturbed) * with_prefill
        return share

    def _e2e(self, at: Floats) -> Floats:
        s, wait = self.observer, self._wait()
        mean = wait.mean()[:, None] + self._own_s() + s.decodes * self.tpot_s[:, None]
        variance = wait.variance()[:, None] + s.decodes**2 * self._tpot_variance()
        share: Floats = normal_cdf(at - mean, np.sqrt(variance)) @ s.weights
        return share

    def _tpot_variance(self) -> Floats:
        """Variance of TPOT around its mean, (D, J); meaningless where a bucket has no decode step."""
        variance: Floats = self.crowding_s2[:, None] + self._interruptions(self.rate_qps, self.tpot_s)
        return variance

    def _interruptions(self, rate_qps: Floats, tpot_s: Floats) -> Floats:
        """Variance of TPOT by the prefills that come between its steps, (D, J)."""
        idle = 1 - rate_qps * self.station.mean_prefill_s
        per_step = rate_qps * tpot_s * self.station.square_prefill_s2 / idle**2
        variance: Floats = per_step[:, None] / np.maximum(self.observer.decodes, 1)
        return variance

    def _own_s(self) -> Floats:
        """Time to the first token without a wait, (D, J)."""
        first = self.station.first_token
        own: Floats = first.host_s[:, None] + first.prefill[:, None] * self.observer.prefill_s
        return own

    def _wait(self) -> Wait:
        first, idle = self.station.first_token, 1 - self.prefill_share
        rate = 2 * self.station.mean_prefill_s * idle / self.station.square_prefill_s2
        return Wait(
            first.step * self.step_s,
            self.active,
            Queue(self.prefill_share, rate / np.maximum(first.queue, _NO_WAIT)),
            Queue(self.slot_queue.probability, self.slot_queue.rate / np.maximum(first.slots, _NO_WAIT)),
        )


def _bisect(below: Callable[[Floats], Bools], low: Floats, high: Floats) -> Floats:
    """Return where `below` turns false between `low` and `high`, on a log scale, element by element."""
    low, high = np.maximum(low, 1e-300), np.maximum(high, 1e-300)
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        good = below(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    found: Floats = low
    return found
