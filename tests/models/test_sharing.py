"""The sharing model against what can be computed exactly, and against a step-by-step simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qplan.core import Deployment, Slo, Workload
from qplan.models.conformance import ServingModelConformance
from qplan.models.serving import ServingModel
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import StepTimes

D0, D1, P0, P1 = 10e-3, 0.2e-3, 2e-3, 40e-6  # decode: D0 + D1 b; prefill: P0 + P1 tokens


class TestConformance(ServingModelConformance):
    def make(self, deployments: Sequence[Deployment], steps: StepTimes) -> ServingModel:
        return SharingModel.of(deployments, steps)


def affine() -> SharingModel:
    tokens, batches, contexts = np.array([16.0, 16384.0]), np.array([1.0, 512.0]), np.array([16.0, 8192.0])
    decode = np.repeat((D0 + D1 * batches)[None, :, None], 2, axis=2)
    return SharingModel(
        StepTimes(tokens, (P0 + P1 * tokens)[None, :], batches, contexts, decode), np.array([1e6]), np.array([8192.0])
    )


def simulate(workload: Workload, rate: float, requests: int, seed: int) -> dict[str, np.ndarray]:
    """Run one replica step by step: prefill whoever waits, one at a time, else advance everyone by a token."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    kinds = rng.choice(len(workload.buckets), requests, p=[bucket.weight for bucket in workload.buckets])
    inputs = np.array([bucket.input_tokens for bucket in workload.buckets])[kinds]
    outputs = np.array([bucket.output_tokens for bucket in workload.buckets])[kinds].astype(int)
    first, last = np.full(requests, np.nan), np.full(requests, np.nan)
    left = outputs - 1
    running: list[int] = []
    now, waiting = 0.0, 0
    while np.isnan(last).any():
        if waiting < requests and arrivals[waiting] <= now:
            now += P0 + P1 * inputs[waiting]
            first[waiting] = last[waiting] = now
            if left[waiting]:
                last[waiting] = np.nan
                running.append(waiting)
            waiting += 1
        elif running:
            now += D0 + D1 * len(running)
            left[running] -= 1
            for request in [one for one in running if left[one] == 0]:
                last[request] = now
            running = [one for one in running if left[one]]
        else:
            now = arrivals[waiting]
    warm = slice(requests // 5, None)
    return {
        "ttft": (first - arrivals)[warm],
        "tpot": ((last - first) / np.maximum(outputs - 1, 1))[warm],
        "e2e": (last - arrivals)[warm],
    }


def test_the_batch_is_rate_times_tokens_times_step_time() -> None:
    workload = Workload.fixed("isl=500,osl=101")
    replicas = affine().at(workload, np.array([8.0]))
    batch, tpot = replicas.batch[0], replicas.tpot_s[0]
    prefill = P0 + P1 * 500
    assert batch == pytest.approx(8.0 * (100 * tpot + prefill), rel=1e-9)  # Little's law
    # The fixed point at the batch that a running sequence meets, which is one more: itself.
    assert tpot == pytest.approx(D0 + D1 * (batch + 1) + batch * prefill / 100, rel=0.01)


def test_an_unloaded_replica_takes_its_step_times() -> None:
    workload = Workload.fixed("isl=500,osl=101")
    model = affine()
    replicas = model.at(workload, np.array([1e-6]))
    assert replicas.percentile("ttft", 90)[0] == pytest.approx(P0 + P1 * 500, rel=1e-3)
    assert replicas.percentile("tpot", 90)[0] == pytest.approx(D0 + D1, rel=1e-3)
    assert replicas.mean("e2e")[0] == pytest.approx(P0 + P1 * 500 + 100 * (D0 + D1), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_it_agrees_with_a_step_by_step_simulation(share: float) -> None:
    """Means and 90th percentiles within 10 % up to 80 % of the stable rate."""
    workload = Workload.of("mixed", "chat", [(100, 40, 0.4), (400, 120, 0.4), (1500, 200, 0.2)], "made up")
    model = affine()
    rate = model.saturation_qps(workload, ()) * share
    replicas = model.at(workload, rate)
    seen = simulate(workload, float(rate[0]), 12_000, seed=7)
    for metric in ("ttft", "tpot", "e2e"):
        assert replicas.mean(metric)[0] == pytest.approx(seen[metric].mean(), rel=0.1), metric
        assert replicas.percentile(metric, 90)[0] == pytest.approx(np.percentile(seen[metric], 90), rel=0.1), metric


def test_the_kv_cache_caps_the_batch() -> None:
    workload = Workload.fixed("isl=900,osl=101")
    roomy = affine()
    tight = SharingModel(roomy.steps, np.array([8 * 1001.0]), roomy.max_context)
    assert tight.saturation_qps(workload, ())[0] < 0.5 * roomy.saturation_qps(workload, ())[0]
    near = tight.at(workload, tight.saturation_qps(workload, ()) * 0.99)
    assert near.batch[0] <= 8


@pytest.mark.parametrize("slots", [4, 30, 200])
@pytest.mark.parametrize("percentile", [75.0, 90.0, 99.0])
def test_tpot_does_not_fall_as_the_slots_fill(slots: int, percentile: float) -> None:
    """Just below the stable rate the batch hardly varies any more, and its mean hardly grows."""
    workload = Workload.fixed("isl=100,osl=501")
    roomy = affine()
    model = SharingModel(roomy.steps, np.array([slots * 601.0]), roomy.max_context)
    stable = model.saturation_qps(workload, ())
    shares = [0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.994, 0.996, 0.998, 0.999, 0.9999, 0.999999]
    curve = [model.at(workload, stable * share).percentile("tpot", percentile)[0] for share in shares]
    assert np.diff(curve).min() >= -1e-9 * curve[-1]
    assert curve[-1] == pytest.approx(D0 + D1 * slots + (slots - 1) * (P0 + P1 * 100) / 500, rel=0.05)


def test_a_request_longer_than_the_cache_or_the_context_is_not_served() -> None:
    workload = Workload.of("long", "chat", [(100, 10, 0.99), (8000, 500, 0.01)], "made up")
    assert affine().saturation_qps(workload, ())[0] == 0
    assert np.isinf(affine().at(workload, np.array([0.1])).mean("ttft")[0])


def test_answers_of_one_token_have_no_tpot() -> None:
    workload = Workload.fixed("isl=500,osl=1")
    rate = affine().saturation_qps(workload, [Slo("ttft", 0.5, 90), Slo("tpot", 1e-9, 90)])
    assert rate[0] == pytest.approx(1 / (P0 + P1 * 500), rel=0.3)


def test_faster_hardware_takes_more(deployments: list[Deployment], steps: StepTimes) -> None:
    workload = Workload.named("chat")
    assert workload is not None
    rates = SharingModel.of(deployments, steps).saturation_qps(workload, [Slo("ttft", 1.0, 90)])
    assert rates[1] > rates[0] > 0  # two H100 against one A100


def test_no_batch_is_run_that_was_not_profiled() -> None:
    whole = affine()
    few = StepTimes(
        whole.steps.prefill_tokens,
        whole.steps.prefill_s,
        whole.steps.batches / 64,
        whole.steps.contexts,
        whole.steps.decode_s,
    )
    workload = Workload.fixed("isl=100,osl=101")
    model = SharingModel(few, whole.kv_tokens, whole.max_context)
    assert model.at(workload, model.saturation_qps(workload, ()) * 0.99).batch[0] <= 8
