"""Energy over load on the shipped pack with the shipped coefficients, and against an exact sum over states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core import Deployment, Gpu, InputError, Model, Quantization, Workload
from qplan.models.power.energy import Energy, energy, fleet_power
from qplan.models.power.watts import PowerModel
from qplan.models.profiled import Profiled
from qplan.models.sharing import SharingModel
from qplan.models.steps.roofline import terms
from qplan.models.steptimes import Floats, StepTimes

Load = Callable[[str, float], Energy]
H100, A100 = "H100-SXM5-80GB x1", "A100-SXM4-80GB x1"
D0, D1, P0, P1 = 10e-3, 0.1e-3, 2e-3, 20e-6


def j_per_token(load: Load, quantization: str, gpu: str, rate_qps: float) -> float:
    return float(load(f"llama-3.1-8b {quantization} {gpu}", rate_qps).j_per_token[0])


def closed_loop_joules(pack: Profiled, quantization: str, batch: float, slower: float = 1.0) -> float:
    """J/token of a replica that always decodes `batch` sequences of 512 tokens, `slower` than in the pack."""
    name = f"llama-3.1-8b {quantization} {H100}"
    (at,) = (i for i, one in enumerate(pack.deployments) if one.name == name)
    replica, one = pack.deployments[at], np.array([batch])
    time_s = slower * np.interp(one, pack.steps.batches, pack.steps.decode_by_batch(512)[at])
    power = PowerModel.shipped().power(replica, terms(replica, 0 * one, one, one * 512), time_s)
    return float(power.power_w[0] * time_s[0] / batch)


class TestEffects:
    """What the field has measured, and which part of it physics gives on composed step times."""

    @pytest.mark.parametrize("quantization", ["W8A8-FP", "W4A16"])
    def test_quantization_saves_only_above_a_load(
        self, load: Load, stable_qps: Callable[[str], float], quantization: str
    ) -> None:
        stable = stable_qps(f"llama-3.1-8b BF16 {H100}")

        def against_bf16(share: float) -> tuple[float, float]:
            quantized, plain = (load(f"llama-3.1-8b {q} {H100}", share * stable) for q in (quantization, "BF16"))
            ratio = float(quantized.j_per_token[0] / plain.j_per_token[0])
            return ratio, float(plain.power_w[0] - quantized.power_w[0])

        idle, busy = against_bf16(1e-5), against_bf16(0.3)
        assert idle[0] > 0.98  # a replica that waits burns idle power, whatever its weights are stored in
        assert busy[0] < 0.9
        assert busy[1] > 20 * idle[1]

    def test_weight_only_quantization_gains_nothing_on_large_batches(self, pack: Profiled) -> None:
        ratio = {n: closed_loop_joules(pack, "W4A16", n) / closed_loop_joules(pack, "BF16", n) for n in (1, 32, 256)}
        assert ratio[1] < 0.6 < ratio[32] < 0.95 < ratio[256]
        assert closed_loop_joules(pack, "W8A8-FP", 256) / closed_loop_joules(pack, "BF16", 256) < 0.95

    def test_an_engine_that_is_slower_in_fp8_at_small_batches_pays_for_it_in_energy(self, pack: Profiled) -> None:
        # Composed step times have no such overhead, and FP8 saves at every batch; where step times have it, energy
        # follows them: 1.56 times as much at 8 sequences was measured on a mixture of experts.
        plain = closed_loop_joules(pack, "BF16", 8)
        assert closed_loop_joules(pack, "W8A8-FP", 8) < plain
        assert closed_loop_joules(pack, "W8A8-FP", 8, slower=3.0) > plain

    def test_an_a100_beats_an_h100_at_low_load_and_loses_at_high_load(
        self, load: Load, stable_qps: Callable[[str], float]
    ) -> None:
        def fleet(gpu: str, rate_qps: float) -> float:
            """J/token with as few replicas as keep each below 90 % of its stable rate."""
            replicas = np.ceil(rate_qps / (0.9 * stable_qps(f"llama-3.1-8b BF16 {gpu}")))
            return j_per_token(load, "BF16", gpu, rate_qps / replicas)

        assert fleet(A100, 0.05) < 0.8 * fleet(H100, 0.05)
        high = 0.9 * stable_qps(f"llama-3.1-8b BF16 {H100}")
        assert fleet(H100, high) < 0.9 * fleet(A100, high)

    def test_energy_per_token_falls_with_load(self, load: Load, stable_qps: Callable[[str], float]) -> None:
        name = f"llama-3.1-8b BF16 {H100}"
        rates = stable_qps(name) * np.array([0.001, 0.01, 0.1, 0.3, 0.6, 0.9])
        seen = [load(name, rate) for rate in rates]
        assert (np.diff([one.j_per_token[0] for one in seen]) < 0).all()
        assert (np.diff([one.power_w[0] for one in seen]) > 0).all()
        for one in seen:
            assert one.idle_w[0] < one.power_w[0] < 700
            assert one.lower_w[0] < one.power_w[0] < one.upper_w[0]
            assert one.net_j_per_token[0] < one.j_per_token[0]


def affine() -> tuple[Deployment, StepTimes]:
    tokens, batches, contexts = np.array([16.0, 16384.0]), np.array([1.0, 512.0]), np.array([16.0, 8192.0])
    decode = np.repeat((D0 + D1 * batches)[None, :, None], 2, axis=2)
    replica = Deployment(Model.named("llama-3.1-8b"), Quantization.parse("BF16"), Gpu.named("h100"))
    return replica, StepTimes(tokens, (P0 + P1 * tokens)[None, :], batches, contexts, decode)


def exact_power_w(replica: Deployment, rate: float, prompt: float, output: float) -> float:
    """Mean power by the stationary distribution of the sharing model (Kelly 1979), state by state."""
    model, decodes = PowerModel.shipped(), output - 1
    batch = np.arange(1.0, 400.0)
    decode_s, prefill_s = D0 + D1 * batch, P0 + P1 * prompt
    residence = decodes * decode_s + batch * prefill_s
    log_p = np.cumsum(np.log(rate * residence / batch))
    p = np.exp(np.append(0.0, log_p) - max(0.0, log_p.max()))
    p /= p.sum()
    none, one = np.zeros(len(batch)), np.ones(1)
    decoding = model.power(replica, terms(replica, none, batch, batch * (prompt + output / 2)), decode_s).power_w
    prefilling = model.power(replica, terms(replica, prompt * one, 0 * one, 0 * one), prefill_s * one).power_w
    share = batch * prefill_s / residence
    by_state: Floats = (1 - share) * decoding + share * prefilling
    return float(p[0] * model.idle_w(replica) + p[1:] @ by_state)


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0, 5.0, 12.0])
def test_mean_power_agrees_with_the_sum_over_all_states(rate: float) -> None:
    replica, steps = affine()
    workload, rates = Workload.of("w", "chat", [(300, 200, 1.0)], "a test"), np.array([rate])
    found = energy([replica], steps, workload, rates, SharingModel.of([replica], steps).at(workload, rates))
    assert found.power_w[0] == pytest.approx(exact_power_w(replica, rate, 300, 200), rel=0.03)
    assert found.output_tokens_per_s[0] == pytest.approx(200 * rate)
    assert found.j_per_token[0] == pytest.approx(found.power_w[0] / (200 * rate))


def test_a_lone_request_costs_its_prefill_and_its_decode_steps() -> None:
    replica, steps = affine()
    model, rates, one = PowerModel.shipped(), np.array([1e-6]), np.ones(1)
    workload = Workload.of("w", "chat", [(300, 200, 1.0)], "a test")
    found = energy([replica], steps, workload, rates, SharingModel.of([replica], steps).at(workload, rates))
    idle_w, prefill_s, decode_s = model.idle_w(replica), P0 + P1 * 300, D0 + D1
    prefill = model.power(replica, terms(replica, 300 * one, 0 * one, 0 * one), prefill_s * one).power_w[0]
    decode = model.power(replica, terms(replica, 0 * one, one, 400 * one), decode_s * one).power_w[0]
    joules = (prefill - idle_w) * prefill_s + 199 * (decode - idle_w) * decode_s
    assert found.net_j_per_token[0] == pytest.approx(joules / 200, rel=1e-3)


def test_a_replica_without_requests_idles_and_has_no_energy_per_token() -> None:
    replica, steps = affine()
    workload, rates = Workload.of("w", "chat", [(300, 200, 1.0)], "a test"), np.zeros(1)
    found = energy([replica], steps, workload, rates, SharingModel.of([replica], steps).at(workload, rates))
    assert found.power_w[0] == pytest.approx(found.idle_w[0])
    assert np.isnan(found.j_per_token[0])
    assert found.per_token(0) is None
    # The catalogue's figure for an idle card is lower than what running engines tend to.
    assert found.lower_w[0] == replica.gpu.idle_w


def test_answers_of_one_token_are_prefills_alone() -> None:
    replica, steps = affine()
    workload, rates = Workload.of("w", "chat", [(300, 1, 1.0)], "a test"), np.array([2.0])
    found = energy([replica], steps, workload, rates, SharingModel.of([replica], steps).at(workload, rates))
    model, one = PowerModel.shipped(), np.ones(1)
    busy = 2 * (P0 + P1 * 300)
    prefill = model.power(replica, terms(replica, 300 * one, 0 * one, 0 * one), (P0 + P1 * 300) * one).power_w[0]
    assert found.power_w[0] == pytest.approx(busy * prefill + (1 - busy) * model.idle_w(replica))


class TestUnknown:
    def test_beyond_saturation_power_is_unknown_with_the_reason(self, load: Load) -> None:
        found = load(f"llama-3.1-8b BF16 {H100}", 1e4)
        assert np.isnan(found.power_w[0])
        assert found.reasons == ("10000 requests/s is beyond saturation",)
        assert found.power(0) is None
        assert fleet_power(found, [1]) is None

    def test_a_cpu_has_no_modelled_power(self) -> None:
        replica, steps = affine()
        replica = replace(replica, gpu=Gpu.named("cpu"))
        workload, rates = Workload.of("w", "chat", [(300, 200, 1.0)], "a test"), np.array([0.5])
        loaded = SharingModel(steps, np.array([1e6]), np.array([8192.0])).at(workload, rates)
        found = energy([replica], steps, workload, rates, loaded)
        assert found.reasons[0] is not None
        assert "CPU" in found.reasons[0]
        assert fleet_power(found, [0]) is not None  # none of it is used

    def test_arguments_of_different_lengths_are_refused(self, chat: Workload) -> None:
        replica, steps = affine()
        rates = np.array([1.0])
        loaded = SharingModel.of([replica], steps).at(chat, rates)
        with pytest.raises(InputError, match="2 deployments, 1 step times"):
            energy([replica, replica], steps, chat, rates, loaded)
        with pytest.raises(InputError, match="below 0"):
            energy([replica], steps, chat, -rates, loaded)


class TestPredictions:
    def test_they_carry_interval_source_and_extrapolation(self, load: Load) -> None:
        found = load(f"llama-3.1-8b BF16 {A100}", 5.0)
        power, per_token = found.power(0), found.per_token(0)
        assert power is not None
        assert per_token is not None
        assert power.lower < power.value < power.upper
        assert per_token.value == pytest.approx(found.j_per_token[0])
        assert power.coverage == 0.9
        assert "transferred from A100-SXM4-40GB" in power.basis
        assert "beyond what was measured" in power.basis

    def test_a_fleet_is_the_sum_of_its_replicas(self, pack: Profiled, chat: Workload) -> None:
        at = np.arange(2)
        deployments, steps, rates = pack.deployments[:2], pack.steps.take(at), np.array([2.0, 3.0])
        found = energy(deployments, steps, chat, rates, SharingModel.of(deployments, steps).at(chat, rates))
        fleet = fleet_power(found, [3, 1])
        assert fleet is not None
        assert fleet.value == pytest.approx(3 * found.power_w[0] + found.power_w[1])
        assert fleet.upper == pytest.approx(3 * found.upper_w[0] + found.upper_w[1])
        assert "without their hosts" in fleet.basis
