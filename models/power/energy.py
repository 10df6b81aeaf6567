"""Energy of replicas under load: mean power and joules per token, the idle share included.

A replica that takes requests at a rate is prefilling, decoding or idle, and its mean power is that of the three
weighted by their shares of time. With ``λ`` requests/s of ``L`` tokens after the first and a mean TPOT of ``τ``, on
average ``b = λ L τ`` sequences run (Little's law). Their number is taken as Poisson, which it is while none waits:
some run for a share ``a = 1 - exp(-b)`` of the time, ``b / a`` of them then on average, and a running sequence is in
``1 / τ`` iterations a second, so the replica runs ``a / τ``. Idle time between iterations burns idle power.

*Gross* energy per token is all of that over the generated tokens; the *net* one is above idle power, as if the
machine were on anyway.

What this gives of the effects that were measured: quantization saves nothing on a replica that mostly waits, and most
where small batches keep it reading weights; weight-only formats save little or nothing on large batches; a GPU with
less idle power wins at low load. What it cannot give is an engine's own overhead, such as FP8 kernels that are slower
than 16-bit ones on small batches: that is in measured step times, not in composed ones, and energy follows it from
there. Hosts, networks and cooling are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.plan import Prediction
from qplan.core.workload import Workload
from qplan.models.power.watts import COVERAGE, PowerModel
from qplan.models.serving import LoadedReplicas
from qplan.models.steps.roofline import terms
from qplan.models.steptimes import Bools, Floats, StepTimes

_FEWEST = 1e-9  # sequences that run on an idle replica; keeps divisions defined


@dataclass(frozen=True, slots=True)
class Energy:
    """Power and energy of D replicas, each at its own rate; arrays are (D,).

    Attributes
    ----------
    power_w, lower_w, upper_w
        Mean power of a replica, all its GPUs together, and the range to expect it in, in 90 % of cases, if the step
        times were right; NaN where unknown, and `reasons` says why.
    idle_w
        Of a replica that serves nothing.
    output_tokens_per_s
        Generated tokens.
    extrapolates
        Whether GPU or utilisation lies outside of what was measured.
    provenance
        Where the power comes from, in words.
    reasons
        Why the power is unknown; ``None`` where it is known.
    """

    power_w: Floats
    lower_w: Floats
    upper_w: Floats
    idle_w: Floats
    output_tokens_per_s: Floats
    extrapolates: Bools
    provenance: tuple[str, ...]
    reasons: tuple[str | None, ...]

    @property
    def j_per_token(self) -> Floats:
        """Joules for each generated token, idle power included; NaN where none is generated."""
        return _per(self.power_w, self.output_tokens_per_s)

    @property
    def net_j_per_token(self) -> Floats:
        """Joules above idle power for each generated token; NaN where none is generated."""
        return _per(self.power_w - self.idle_w, self.output_tokens_per_s)

    def power(self, index: int) -> Prediction | None:
        """Return the mean power of one replica in watts; ``None`` where unknown."""
        return self._prediction(index, 1.0)

    def per_token(self, index: int) -> Prediction | None:
        """Return the gross joules for each generated token of one replica; ``None`` where unknown or none is made."""
        tokens = float(self.output_tokens_per_s[index])
        return self._prediction(index, 1 / tokens) if tokens > 0 else None

    def _prediction(self, index: int, factor: float) -> Prediction | None:
        if self.reasons[index] is not None:
            return None
        value, lower, upper = (float(a[index]) * factor for a in (self.power_w, self.lower_w, self.upper_w))
        beyond = "; beyond what was measured" if self.extrapolates[index] else ""
        return Prediction(value, lower, upper, COVERAGE, f"power {self.provenance[index]}{beyond}")


def energy(
    deployments: Sequence[Deployment],
    steps: StepTimes,
    workload: Workload,
    rate_qps: Floats,
    loaded: LoadedReplicas,
    model: PowerModel | None = None,
) -> Energy:
    """Return power and energy of `deployments` under load.

    Parameters
    ----------
    deployments, steps
        D replicas and their step times.
    workload, rate_qps
        Request mix, and requests/s of each replica, (D,).
    loaded
        The serving model's replicas at that workload and rate.
    model
        Power model; the shipped one by default.

    Raises
    ------
    InputError
        When lengths do not agree or a rate is negative.
    """
    model = model or PowerModel.shipped()
    rate = np.asarray(rate_qps, dtype=float)
    tpot_s = np.asarray(loaded.mean("tpot"))
    if not (rate.shape == tpot_s.shape == (len(deployments),) and len(steps.prefill_s) == len(deployments)):
        raise InputError(
            f"energy: {len(deployments)} deployments, {len(steps.prefill_s)} step times, rates of shape {rate.shape} "
            f"and replicas of shape {tpot_s.shape}; expected one of each a deployment"
        )
    if not (rate >= 0).all():
        raise InputError("energy: a rate below 0 requests/s, or none at all")
    tokens_per_s = np.where(rate > 0, loaded.output_tokens_per_s, 0.0)
    mix = _Mix.of(workload)
    prefill_s, decode_s = steps.prefill(mix.prompts), steps.decode_by_batch(mix.context)
    found = np.full((len(deployments), 5), np.nan)  # value, lower, upper, idle, extrapolates
    reasons: list[str | None] = []
    for i, deployment in enumerate(deployments):
        reason = model.refusal(deployment.gpu)
        if reason is None and not np.isfinite(tpot_s[i]):
            reason = f"{rate[i]:g} requests/s is beyond saturation"
        reasons.append(reason)
        if reason is None:
            found[i] = _replica(model, deployment, mix, rate[i], tpot_s[i], prefill_s[i], (steps.batches, decode_s[i]))
    provenance = tuple(
        model.provenance(deployment.gpu) if reason is None else reason
        for deployment, reason in zip(deployments, reasons, strict=True)
    )
    value, lower, upper, idle, extrapolates = found.T
    return Energy(value, lower, upper, idle, tokens_per_s, extrapolates > 0, provenance, tuple(reasons))


def fleet_power(replicas: Energy, counts: Sequence[int] | Floats) -> Prediction | None:
    """Return the mean power in watts of a fleet with `counts` (D,) of each replica; ``None`` where one is unknown.

    Errors of replicas are taken to be common to all of them, as they come from the same curves: ends add up.
    """
    used = np.flatnonzero(np.asarray(counts) > 0)
    if any(replicas.reasons[i] is not None for i in used):
        return None
    weights = np.asarray(counts, dtype=float)[used]
    value, lower, upper = (float(weights @ a[used]) for a in (replicas.power_w, replicas.lower_w, replicas.upper_w))
    basis = "; ".join(dict.fromkeys(replicas.provenance[i] for i in used))
    beyond = "; partly beyond what was measured" if replicas.extrapolates[used].any() else ""
    return Prediction(value, lower, upper, COVERAGE, f"GPUs alone, without their hosts: power {basis}{beyond}")


@dataclass(frozen=True, slots=True)
class _Mix:
    """A workload as the replica meets it: J prompt lengths, and the mean decode step.

    Attributes
    ----------
    decodes
        Decode steps of a request: output tokens after the first.
    context
        Mean KV-cache tokens of a running sequence: a long one is met more often.
    """

    weights: Floats
    prompts: Floats
    decodes: float
    context: float

    @classmethod
    def of(cls, workload: Workload) -> _Mix:
        weights = np.array([bucket.weight for bucket in workload.buckets])
        prompts = np.array([float(bucket.input_tokens) for bucket in workload.buckets])
        outputs = np.array([float(bucket.output_tokens) for bucket in workload.buckets])
        stay = weights * (outputs - 1)
        decodes = float(stay.sum())
        context = float(stay @ (prompts + outputs / 2) / decodes) if decodes > 0 else float(prompts[0])
        return cls(weights, prompts, decodes, context)


def _replica(
    model: PowerModel,
    deployment: Deployment,
    mix: _Mix,
    rate: float,
    tpot_s: float,
    prefill_s: Floats,
    decode: tuple[Floats, Floats],
) -> tuple[float, float, float, float, bool]:
    """Return mean, lower and upper watts, idle watts, and whether any of it extrapolates, of one replica.

    `prefill_s` is (J,); `decode` holds batches and the time of a decode iteration of each, (B,).
    """
    running = max(rate * mix.decodes * tpot_s, _FEWEST)
    active = -float(np.expm1(-running))
    batch = running / active
    # The iterations of each prompt length, then the decode iteration.
    per_s = np.append(rate * mix.weights, active / tpot_s if rate * mix.decodes > 0 else 0.0)
    time_s = np.append(prefill_s, np.interp(batch, *decode))
    nothing = np.zeros(len(mix.prompts))
    work = terms(
        deployment, np.append(mix.prompts, 0.0), np.append(nothing, batch), np.append(nothing, batch * mix.context)
    )
    power, idle = model.power(deployment, work, time_s), _idle(model, deployment)
    share = per_s * time_s
    share = share / max(1.0, share.sum())  # parts of the time; approximations might add up to more than all of it
    idle_share = max(0.0, 1.0 - float(share.sum()))

    def mean(of: str) -> float:
        return idle_share * float(getattr(idle, of)) + float(share @ getattr(power, of))

    extrapolates = bool((power.extrapolates & (share > 0)).any()) or not model.is_measured(deployment.gpu)
    return mean("power_w"), mean("lower_w"), mean("upper_w"), idle.power_w, extrapolates


@dataclass(frozen=True, slots=True)
class _IdlePower:
    """Watts of an idle replica, whose range reaches down to the catalogue's figure where that is lower."""

    power_w: float
    lower_w: float
    upper_w: float


def _idle(model: PowerModel, deployment: Deployment) -> _IdlePower:
    idle_w, gpu = model.idle_w(deployment), deployment.gpu
    error = model.error(gpu)
    lowest = min(idle_w * error.lower, (gpu.idle_w or np.inf) * deployment.tp)
    return _IdlePower(idle_w, lowest, idle_w * error.upper)


def _per(power_w: Floats, tokens_per_s: Floats) -> Floats:
    joules: Floats = np.divide(power_w, tokens_per_s, out=np.full(np.shape(power_w), np.nan), where=tokens_per_s > 0)
    return joules
