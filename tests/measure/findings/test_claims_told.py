"""Verdicts on campaigns whose effects are known: they hold, are contradicted, or cannot be told."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyarrow as pa
import pytest

from qplan.measure.findings.claims import Finding, findings
from qplan.measure.findings.contrasts import Verdict
from qplan.measure.findings.points import measured_loads

Campaign = Callable[..., pa.Table]


def told(table: pa.Table, key: str) -> Finding:
    return {one.key: one for one in findings(measured_loads(table))}[key]


def quantized(name: str) -> bool:
    return name != "F16"


class TestEnergy:
    """Saved at high load only."""

    def test_holds_where_it_is_so(self, campaign: Campaign) -> None:
        found = told(
            campaign(energy=lambda q, mix, qps: 0.7 if quantized(q) and qps > 4 else 1.0, repeats=3), "energy-and-load"
        )
        assert found.cannot_tell is None
        assert found.verdict is Verdict.HOLDS
        assert found.counts() == {Verdict.HOLDS: 6, Verdict.CONTRADICTED: 0, Verdict.UNDECIDED: 0}
        low, high = found.average["j_per_token"]
        assert low.effect.value == pytest.approx(1, abs=0.02)
        assert high.effect.low < high.effect.value < high.effect.high < 1

    def test_is_contradicted_by_a_saving_at_low_load(self, campaign: Campaign) -> None:
        found = told(campaign(energy=lambda q, mix, qps: 0.5 if quantized(q) else 1.0), "energy-and-load")
        assert found.verdict is Verdict.CONTRADICTED
        low, high = found.average["j_per_token"]
        assert (low.verdict, high.verdict) == (Verdict.CONTRADICTED, Verdict.HOLDS)

    def test_is_undecided_within_the_spread(self, campaign: Campaign) -> None:
        saving = told(
            campaign(energy=lambda q, mix, qps: 0.97 if quantized(q) and qps > 4 else 1.0, noise=0.3),
            "energy-and-load",
        )
        assert saving.verdict is Verdict.UNDECIDED

    def test_is_undecided_without_repeats(self, campaign: Campaign) -> None:
        """However large the effect: nobody knows how far two runs of one load lie apart."""
        once = told(
            campaign(energy=lambda q, mix, qps: 0.5 if quantized(q) and qps > 4 else 1.0, repeats=1), "energy-and-load"
        )
        assert once.cannot_tell is None
        assert once.verdict is Verdict.UNDECIDED
        assert "no load was measured twice" in once.notes[-1]
        assert math.isinf(once.average["j_per_token"][0].effect.high)

    def test_repeats_of_some_loads_speak_for_the_others(self, campaign: Campaign) -> None:
        """As in the H200's plans: one format is repeated, all are judged by its spread."""
        table = campaign(energy=lambda q, mix, qps: 0.7 if quantized(q) and qps > 4 else 1.0)
        rows = [row["quantization"] == "F16" or row["repeat"] == 0 for row in table.to_pylist()]
        found = told(table.filter(pa.array(rows)), "energy-and-load")
        assert found.verdict is Verdict.HOLDS
        assert found.spreads["j_per_token"].light.points == 6


class TestWeightOnly:
    """Faster in small batches, and less so in large ones."""

    def test_holds_where_the_gain_shrinks(self, campaign: Campaign) -> None:
        found = told(campaign(tpot=lambda q, mix, qps: min(1.0, 0.4 + qps / 40) if quantized(q) else 1.0), _BATCH)
        assert found.verdict is Verdict.HOLDS
        assert {one.quantization for one in found.subjects} == {"Q4_K", "Q8_0"}  # a quantized cache is another claim
        small, large = found.average["tpot_p50_s"]
        assert small.effect.value < 0.6
        assert large.effect.value > 1.2

    def test_is_contradicted_where_it_is_slower(self, campaign: Campaign) -> None:
        found = told(campaign(tpot=lambda q, mix, qps: 1.5 if quantized(q) else 1.0), _BATCH)
        assert found.verdict is Verdict.CONTRADICTED

    def test_compares_at_equal_batches(self, campaign: Campaign) -> None:
        """Half the time at equal rates is more than half at equal batches: 16 bits reach those at lower rates."""
        found = told(campaign(tpot=lambda q, mix, qps: 0.5 if quantized(q) else 1.0, noise=1e-4), _BATCH)
        for subject in found.subjects:
            ratios = [effect.value for effect in next(iter(subject.curves.values())).effects]
            assert 0.5 < ratios[0] < 0.55 < ratios[-1] < 0.7

    def test_cannot_be_told_without_a_weight_only_format(self, campaign: Campaign) -> None:
        found = told(campaign(quantizations=("F16", "W8A8-FP")), _BATCH)
        assert found.verdict is None
        assert found.cannot_tell == "no weight-only quantization was measured beside 16 bits"


class TestKvCache:
    """Compression costs latency."""

    @pytest.mark.parametrize(("slower", "verdict"), [(1.1, Verdict.HOLDS), (0.9, Verdict.CONTRADICTED)])
    def test_is_judged_against_the_same_weights(self, campaign: Campaign, slower: float, verdict: Verdict) -> None:
        def latency(quantization: str, mix: str, qps: float) -> float:
            return slower if "KV8" in quantization else 1.0

        found = told(campaign(ttft=latency, tpot=latency), "kv-cache-and-latency")
        assert found.verdict is verdict
        assert {(one.quantization, one.metric) for one in found.subjects} == {
            ("Q8_0-KV8-INT", "ttft_p50_s"),
            ("Q8_0-KV8-INT", "tpot_p50_s"),
        }

    def test_loads_of_a_growing_queue_are_left_out(self, campaign: Campaign) -> None:
        """What is beyond 10 req/s would say the contrary."""
        found = told(
            campaign(ttft=lambda q, mix, qps: (1.1 if qps < 10 else 0.1) if "KV8" in q else 1.0, saturation=10.0),
            "kv-cache-and-latency",
        )
        assert {one.parts[0].where for one in found.subjects} == {"1 to 8 req/s"}
        assert found.average["ttft_p50_s"][0].effect.value == pytest.approx(1.1, rel=0.02)

    def test_cannot_be_told_without_a_pair(self, campaign: Campaign) -> None:
        found = told(campaign(quantizations=("F16", "Q4_K")), "kv-cache-and-latency")
        assert found.cannot_tell is not None
        assert "KV cache of 16 bits and with a compressed one" in found.cannot_tell


class TestLengths:
    """Short outputs and TTFT, long inputs and TPOT."""

    def test_hold_where_the_one_mix_is_hurt(self, campaign: Campaign) -> None:
        def hurt(quantization: str, mix: str, qps: float) -> float:
            return 1.3 if quantized(quantization) and mix == "isl=1024,osl=32" else 1.0

        table = campaign(ttft=hurt, tpot=hurt)
        for key, metric in (("short-outputs-and-ttft", "ttft_p50_s"), ("long-inputs-and-tpot", "tpot_p50_s")):
            found = told(table, key)
            assert found.verdict is Verdict.HOLDS
            alone, over = found.average[metric]
            assert alone.effect.value == pytest.approx(1.3, rel=0.02)
            assert over.effect.value == pytest.approx(1.3, rel=0.02)
            assert "differ in their" in found.notes[-1]

    def test_cannot_be_told_of_one_mix(self, campaign: Campaign) -> None:
        found = told(campaign(mixes=("isl=128,osl=256",)), "short-outputs-and-ttft")
        assert found.cannot_tell is not None
        assert found.cannot_tell.startswith("it has one mix")


def test_false_alarms_are_rare(campaign: Campaign) -> None:
    """Where nothing differs, nothing that claims a difference is decided, for all comparisons of a claim at once."""
    table = campaign(energy=lambda q, mix, qps: 1.0, noise=0.05)
    for one in findings(measured_loads(table)):
        for part in (part for subject in one.subjects for part in subject.parts if part.threshold == 1.0):
            assert part.verdict is Verdict.UNDECIDED, (one.key, part)


def test_energy_that_was_not_measured_is_said_so(campaign: Campaign) -> None:
    found = told(campaign(), "energy-and-load")
    assert found.cannot_tell == "no run has energy (no energy counter: none was made up)"


def test_a_pack_without_16_bits_tells_nothing(campaign: Campaign) -> None:
    for one in findings(measured_loads(campaign(quantizations=("Q4_K",)))):
        assert one.cannot_tell is not None


def test_a_pack_without_loads_tells_nothing() -> None:
    from qplan.profiles.packs import read_pack

    loads = measured_loads(read_pack("trtllm-composed", models=["llama-2-7b"]).table)
    assert {one.cannot_tell for one in findings(loads)} == {"it has no run under an open loop that went well"}


_BATCH = "weight-only-and-batch"
