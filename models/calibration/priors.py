"""Step times as priors: of closed loops (a number of requests in flight) and of open ones (a request rate).

Parts of TPOT::

    weights       D(1): a decode step of one sequence, mostly the reading of weights
    batching      D(n) - D(1): what n sequences add to it
    prefills      what the prefills of others cost a decoding sequence
    step host     1 ms a step: what the engine's host code adds

Parts of TTFT::

    prefill       P: of the own prompt
    step          D(n): the iteration that runs when a request comes, or the one that returns its token
    host          1 ms a request
    queue         the wait for prefills ahead under Poisson arrivals
    loop queue    the same in a closed loop, by mean-value analysis
    burst         (n - 1) P / 2: closed-loop clients start all at once; the first wave waits for its own prefills
    turnover      (P + L τ) / n: one completion; an engine that frees a slot late makes the next request wait for that
    slots         the wait for KV-cache room, of requests beyond what fits

Burst and turnover are no part of the plain model: their own coefficient is 0. Turnover falls with concurrency, as
measured TTFT does at few requests; every other part only grows with load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, nearest
from qplan.core.workload import Workload
from qplan.models.calibration.parts import Parts
from qplan.models.closedloop import closed_loop
from qplan.models.profiled import Profiled
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats

_MILLISECOND = 1e-3
# Part: the plain model's coefficient, and the standard deviation of what an engine's may be. A time that kernels were
# measured for may be off by as much as itself; host code takes milliseconds; all of a burst is one per wave.
_TPOT = {"weights": (1.0, 1.0), "batching": (1.0, 1.0), "prefills": (1.0, 1.0), "step host": (0.0, 3.0)}
_TTFT = {
    "prefill": (1.0, 1.0),
    "step": (0.5, 2.0),
    "host": (0.0, 30.0),
    "queue": (1.0, 1.0),
    "loop queue": (1.0, 1.0),
    "burst": (0.0, 0.1),
    "turnover": (0.0, 1.0),
    "slots": (1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class ClosedLoad:
    """A deployment with `concurrency` requests in flight, all of one length."""

    deployment: Deployment
    input_tokens: float
    output_tokens: float
    concurrency: int

    @property
    def coordinates(self) -> tuple[float, ...]:
        """Octaves of concurrency, lengths and GPUs; points are spread over them."""
        sizes = (self.concurrency, self.input_tokens, self.output_tokens, self.deployment.tp)
        return tuple(np.log2(sizes).tolist())


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """A deployment whose every replica gets `rate_qps` requests/s of a workload, Poisson."""

    deployment: Deployment
    workload: Workload
    rate_qps: float

    @property
    def coordinates(self) -> tuple[float, ...]:
        """Octaves of rate, mean lengths and GPUs."""
        lengths = (self.workload.mean_input_tokens, self.workload.mean_output_tokens)
        return tuple(np.log2((self.rate_qps, *lengths, self.deployment.tp)).tolist())


class ClosedLoopPrior:
    """:func:`qplan.models.closedloop.closed_loop` on profiled step times, with the limit that the KV cache sets."""

    def __init__(self, profiled: Profiled) -> None:
        self.profiled = profiled
        self._index = _index(profiled)

    def __contains__(self, deployment: Deployment) -> bool:
        """Whether there are step times of `deployment`."""
        return _key(deployment) in self._index

    def index_of(self, deployment: Deployment) -> int:
        """Return the place of `deployment` in the profile; raise :class:`InputError` where it has none."""
        return _locate(deployment, self._index)

    def __call__(self, rows: Sequence[ClosedLoad]) -> Mapping[str, Parts]:
        """Return the parts of ``ttft`` and ``tpot``.

        Raises
        ------
        InputError
            There are no step times of a row's deployment, or a request of one token, which has no TPOT.
        """
        tpot, ttft = zip(*map(self._row, rows), strict=True) if rows else ((), ())
        return {"ttft": _parts(ttft, _TTFT), "tpot": _parts(tpot, _TPOT)}

    def _row(self, row: ClosedLoad) -> tuple[dict[str, float], dict[str, float]]:
        decodes = row.output_tokens - 1
        if decodes < 1 or row.concurrency < 1:
            raise InputError(
                f"{row.deployment} with {row.concurrency} requests of {row.output_tokens:g} output tokens in flight; "
                "expected at least 1 request and 2 tokens"
            )
        steps = self.profiled.steps.take(np.array([_locate(row.deployment, self._index)]))
        tokens = row.input_tokens + row.output_tokens
        slots = max(1, int(row.deployment.memory().kv_tokens // tokens))
        running = min(row.concurrency, slots)
        ttft, tpot = (float(each[0]) for each in closed_loop(steps, row.input_tokens, row.output_tokens, running))
        prefill = float(steps.prefill(np.array([row.input_tokens]))[0, 0])
        by_batch = steps.decode_by_batch(row.input_tokens + row.output_tokens / 2)[0]
        one, step = np.interp([1, running], steps.batches, by_batch).tolist()
        others = (running - 1) * prefill
        running_step = step if running > 1 else 0.0
        residence = prefill + decodes * tpot
        return {
            "weights": one,
            "batching": step - one,
            "prefills": others / decodes,
            "step host": _MILLISECOND,
        }, {
            "prefill": prefill,
            "step": running_step,
            "host": _MILLISECOND,
            "queue": 0.0,
            "loop queue": max(ttft - running_step / 2 - prefill, 0.0),
            "burst": others / 2,
            "turnover": residence / running,
            "slots": residence * (row.concurrency - running) / slots,
        }


class OpenLoopPrior:
    """:class:`qplan.models.sharing.SharingModel` on profiled step times; its means."""

    def __init__(self, profiled: Profiled) -> None:
        self.profiled = profiled
        self._index = _index(profiled)

    def __call__(self, rows: Sequence[OpenLoad]) -> Mapping[str, Parts]:
        """Return the parts of the mean ``ttft`` and ``tpot``, all infinite at and beyond saturation.

        Raises
        ------
        InputError
            There are no step times of a row's deployment.
        """
        tpot, ttft = zip(*map(self._row, rows), strict=True) if rows else ((), ())
        return {"ttft": _parts(ttft, _TTFT), "tpot": _parts(tpot, _TPOT)}

    def _row(self, row: OpenLoad) -> tuple[dict[str, float], dict[str, float]]:
        index = np.array([_locate(row.deployment, self._index)])
        steps = self.profiled.steps.take(index)
        loaded = SharingModel.of([row.deployment], steps).at(row.workload, np.array([row.rate_qps]))
        if not loaded.stable[0]:
            return dict.fromkeys(_TPOT, np.inf), dict.fromkeys(_TTFT, np.inf)
        context = row.workload.mean_input_tokens + row.workload.mean_output_tokens / 2
        one = float(np.interp(1, steps.batches, steps.decode_by_batch(context)[0]))
        step, tpot = float(loaded.step_s[0]), float(loaded.mean("tpot")[0])
        weights = min(one, step)
        prefill = float(loaded.station.mean_prefill_s[0])
        residual = float(loaded.active[0]) * step
        slots = float(loaded.slot_queue.probability[0] / loaded.slot_queue.rate[0])
        waits = float(loaded.mean("ttft")[0]) - prefill - residual / 2
        return {
            "weights": weights,
            "batching": step - weights,
            "prefills": max(tpot - step, 0.0),
            "step host": _MILLISECOND,
        }, {
            "prefill": prefill,
            "step": residual,
            "host": _MILLISECOND,
            "queue": max(waits - slots, 0.0),
            "loop queue": 0.0,
            "burst": 0.0,
            "turnover": 0.0,
            "slots": slots,
        }


def _parts(rows: Iterable[Mapping[str, float]], parts: Mapping[str, tuple[float, float]]) -> Parts:
    seconds: Floats = np.array([[row[name] for name in parts] for row in rows]).reshape(-1, len(parts))
    own, deviation = np.array(list(parts.values())).T
    return Parts(tuple(parts), seconds, own, deviation)


def _key(deployment: Deployment) -> tuple[str, str, str, int]:
    """Return what step times are looked up by; the engine is what calibration is about, so not by that."""
    return deployment.model.name, str(deployment.quantization), deployment.gpu.name, deployment.tp


def _index(profiled: Profiled) -> dict[tuple[str, str, str, int], int]:
    return {_key(deployment): n for n, deployment in enumerate(profiled.deployments)}


def _locate(deployment: Deployment, index: Mapping[tuple[str, str, str, int], int]) -> int:
    at = index.get(_key(deployment))
    if at is None:
        names = [f"{model} {quantization} {gpu} x{tp}" for model, quantization, gpu, tp in index]
        raise InputError(f"the prior has no step times of {deployment.name}{nearest(deployment.name, names)}")
    return at
