"""What a replica carries of several classes at once, by the serving model."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.mixing import Mixing
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats, StepTimes

SHORT = Workload.fixed("isl=100,osl=50")
LONG = Workload.fixed("isl=6000,osl=50")
PATIENT = Workload.fixed("isl=100,osl=400")
PROMPT = (Slo("ttft", 0.3, 90.0), Slo("tpot", 0.03, 90.0))
LOOSE = (Slo("ttft", 10.0, 90.0),)


def model(kv_tokens: float = 1e5) -> SharingModel:
    """Two deployments, the second twice as slow: decode 10 ms + 0.2 ms a sequence, prefill 40 us a token."""
    tokens, batches, contexts = np.array([16.0, 16384.0]), np.array([1.0, 256.0]), np.array([16.0, 8192.0])
    decode = np.repeat((0.01 + 0.2e-3 * batches)[None, :, None], 2, axis=2)
    prefill = (2e-3 + 40e-6 * tokens)[None, :]
    steps = StepTimes(
        tokens, np.concatenate([prefill, 2 * prefill]), batches, contexts, np.concatenate([decode, 2 * decode])
    )
    return SharingModel(steps, np.full(2, kv_tokens), np.full(2, 8192.0))


def mixing(classes: list[Workload], slos: list[tuple[Slo, ...]], serving: SharingModel | None = None) -> Mixing:
    """Each class one bucket, at its own limit."""
    serving = serving or model()
    qps = np.stack([serving.saturation_qps(one, limits) for one, limits in zip(classes, slos, strict=True)])
    return Mixing.of(serving, classes, slos, classes, np.arange(len(classes)), np.ones(len(classes)), qps)


def within(serving: SharingModel, loads: list[tuple[Workload, Floats]], seen_by: Workload, slo: Slo) -> Floats:
    """Attainment of one class's requests among all of them on each deployment."""
    found = []
    for d in range(2):
        triples = [(b.input_tokens, b.output_tokens, b.weight * rate[d]) for one, rate in loads for b in one.buckets]
        blend = Workload.of("blend", "general", triples, "test")
        total = np.full(2, sum(float(rate[d]) for _, rate in loads))
        found.append(serving.at(blend, total, seen_by).attainment(slo.metric, slo.threshold_s)[d])
    return np.array(found)


def test_a_class_alone_keeps_its_own_limit() -> None:
    one = mixing([SHORT], [PROMPT])
    np.testing.assert_array_equal(one.together([0]), one.qps)


def test_requests_among_others_are_seen_at_the_others_load() -> None:
    serving, rate = model(), np.array([2.0, 1.0])
    among = serving.at(LONG, rate, SHORT)
    alone = serving.at(SHORT, np.full(2, 1e-6))
    own = serving.at(LONG, rate)
    assert (among.mean("ttft") > alone.mean("ttft")).all()
    gap = own.mean("ttft") - among.mean("ttft")  # the same wait, another prefill
    np.testing.assert_allclose(gap, own.station.mean_prefill_s - among.observer.mean_prefill_s)
    np.testing.assert_array_equal(serving.at(LONG, rate, LONG).percentile("ttft", 90), own.percentile("ttft", 90))


def test_long_prompts_are_held_back_for_short_ones_that_wait() -> None:
    both = mixing([SHORT, LONG], [PROMPT, LOOSE])
    together = both.together([0, 1])
    assert (together[0] <= both.qps[0]).all()
    assert (together[1, together[1] > 0] < 0.8 * both.qps[1, together[1] > 0]).all()
    np.testing.assert_array_equal(both.together([1])[1], both.qps[1])
    assert not both.together([1])[0].any()


@pytest.mark.parametrize("used", [0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("kv_tokens", [1e5, 2e4])
def test_every_class_keeps_its_objectives_along_the_line_between_the_corners(used: float, kv_tokens: float) -> None:
    serving = model(kv_tokens)
    classes, slos = [SHORT, LONG, PATIENT], [PROMPT, LOOSE, (Slo("tpot", 0.05, 90.0),)]
    three = mixing(classes, slos, serving)
    for served in ([0, 1], [0, 2], [1, 2]):
        together = three.together(served)
        able = together[served[0]] > 0
        loads = [
            (classes[served[0]], used * together[served[0]]),
            (classes[served[1]], (1 - used) * together[served[1]]),
        ]
        for k in served:
            for slo in slos[k]:
                assert slo.percentile is not None
                reached = within(serving, [(w, np.maximum(r, 1e-9)) for w, r in loads], classes[k], slo)
                between = 0.015  # the mixes that were tried
                assert (reached[able] >= slo.percentile / 100 - between).all()


def test_adding_own_limits_would_miss_the_strictest() -> None:
    """What the correction is for: the plain rule, half of each at its own limit, breaks the objective of the short."""
    serving = model()
    both = mixing([SHORT, LONG], [PROMPT, LOOSE], serving)
    plain = within(serving, [(SHORT, both.qps[0] / 2), (LONG, both.qps[1] / 2)], SHORT, PROMPT[0])
    assert (plain < 0.9).any()


def test_a_deployment_that_cannot_serve_one_class_cannot_serve_both() -> None:
    both = mixing([SHORT, LONG], [(Slo("ttft", 0.01, 90.0),), LOOSE])
    fast, slow = both.qps[0] > 0
    assert fast
    assert not slow
    assert not both.together([0, 1])[:, 1].any()
    assert both.together([1])[1].all()


def test_buckets_of_one_class_share_its_objectives() -> None:
    whole = Workload.of("both", "general", [(100, 50, 0.8), (100, 1000, 0.2)], "test")
    slos = [(Slo("tpot", 0.03, 90.0),)]
    serving = model(2e4)
    own = serving.saturation_qps(whole, slos[0])
    parts = [Workload.fixed("isl=100,osl=50"), Workload.fixed("isl=100,osl=1000")]
    generous = np.stack([own * 20, own])  # more of the short ones alone than keeps the objective
    cut = Mixing.of(serving, [whole], slos, parts, np.zeros(2, np.intp), np.array([0.8, 0.2]), generous)
    together = cut.together([0])
    assert (together <= generous).all()
    for one, rate in zip(parts, together, strict=True):
        assert (serving.at(one, rate, whole).attainment("tpot", 0.03) >= 0.9 - 1e-5).all()
