"""The surrogate: what it believes without figures, what figures teach it, and how sure it is."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from qplan.core.quantization import Quantization
from qplan.models.quality import Evidence, Spread, Surrogate, fitted_spread, published
from qplan.models.quality.effects import method_of
from qplan.models.quality.evidence import DIVERGENCE

SCHEMES = {"W8A16": 8.0, "W4A16-GPTQ": 4.16, "W3A16-GPTQ": 3.15, "W2A16-GPTQ": 2.14}


def figure(model: str, scheme: str, value: float, kind: str = DIVERGENCE, error: float = 1e-4) -> Evidence:
    return Evidence(model, Quantization.parse(scheme), kind, "text", value, error, "measured", "made up")


def nats(surrogate: Surrogate, model: str, scheme: str) -> float:
    return math.exp(surrogate.log_loss(model, Quantization.parse(scheme)).mean)


@pytest.fixture(scope="module")
def fitted() -> Surrogate:
    return Surrogate.fit(published())


def test_without_figures_beliefs_are_sane() -> None:
    blank = Surrogate.fit([])
    by_bits = [nats(blank, "some-7b", scheme) for scheme in SCHEMES]
    assert by_bits == sorted(by_bits)
    assert by_bits[0] < 0.001
    assert 0.01 < by_bits[1] < 0.1
    assert by_bits[3] > 0.3
    assert nats(blank, "some-70b", "W3A16-GPTQ") < nats(blank, "some-7b", "W3A16-GPTQ")


def test_bits_hurt_convexly(fitted: Surrogate) -> None:
    by_bits = {bits: math.log(nats(fitted, "some-7b", scheme)) for scheme, bits in SCHEMES.items()}
    bits = sorted(by_bits, reverse=True)
    slopes = [(by_bits[low] - by_bits[high]) / (high - low) for high, low in pairwise(bits)]
    assert all(slope > 1 for slope in slopes)
    assert slopes[-1] > slopes[1]


def test_methods_are_ordered_as_the_studies_order_them(fitted: Surrogate) -> None:
    rtn, gptq, awq, spqr = (
        nats(fitted, "some-7b", scheme) for scheme in ("W4A16", "W4A16-GPTQ", "W4A16-AWQ", "SpQR-4bit")
    )
    assert rtn > gptq > awq > spqr
    assert nats(fitted, "some-7b", "Q4_0") > nats(fitted, "some-7b", "Q4_K_M")


def test_tasks_differ_in_sensitivity(fitted: Surrogate) -> None:
    loss = {
        kind: fitted.log_loss("some-7b", Quantization.parse("W4A16-GPTQ"), (kind,)).mean
        for kind in ("knowledge", "maths", "code", "commonsense")
    }
    assert loss["maths"] > loss["knowledge"] > loss["commonsense"]
    assert loss["code"] > loss["knowledge"]


def test_a_figure_of_just_this_pulls_the_answer_to_it() -> None:
    before = nats(Surrogate.fit([]), "some-7b", "W4A16-AWQ")
    surrogate = Surrogate.fit([figure("some-7b", "W4A16-AWQ", 4 * before)])
    told = surrogate.log_loss("some-7b", Quantization.parse("W4A16-AWQ"))
    assert math.exp(told.mean) == pytest.approx(4 * before, rel=0.02)
    assert told.deviation < 0.05
    # A sister scheme and a sister model move too, but less, and stay less sure.
    for model, scheme in (("some-7b", "W4A16-GPTQ"), ("other-7b", "W4A16-AWQ")):
        other = surrogate.log_loss(model, Quantization.parse(scheme))
        assert before < math.exp(other.mean) < 4 * before
        assert other.deviation > 5 * told.deviation


def test_it_recovers_the_world_that_made_the_figures() -> None:
    draw = np.random.default_rng(4)
    models = [f"family{i}-{size}b" for i in range(4) for size in (3, 7, 30)]
    truth = {scheme: 0.03 * math.exp(1.3 * (4 - bits)) for scheme, bits in SCHEMES.items()}
    own = {model: draw.normal(0, 0.3) for model in models}
    evidence = [
        figure(model, scheme, truth[scheme] * math.exp(own[model] + draw.normal(0, 0.1)))
        for model in models[:-3]
        for scheme in SCHEMES
    ]
    surrogate = Surrogate.fit(evidence)
    held = []
    for model in models[-3:]:
        for scheme in SCHEMES:
            told = surrogate.log_loss(model, Quantization.parse(scheme))
            held.append(abs(told.mean - math.log(truth[scheme]) - own[model]) < 1.645 * told.deviation)
    assert sum(held) >= 10


def test_an_unseen_method_is_less_sure(fitted: Surrogate) -> None:
    seen, unseen = (
        fitted.log_loss("some-7b", Quantization.parse(scheme)).deviation for scheme in ("W4A16-GPTQ", "SpQR-4bit")
    )
    assert unseen > 1.2 * seen


def test_a_negative_divergence_says_about_nothing_is_lost() -> None:
    surrogate = Surrogate.fit([figure("some-7b", "W8A16", -0.002, error=0.001)])
    assert nats(surrogate, "some-7b", "W8A16") < 0.002


def test_the_spread_is_what_the_published_figures_are_most_probable_under() -> None:
    evidence = published()[::6]
    start = Spread(0.6, 0.6, 0.6, 0.6, 1.5)
    found = fitted_spread(evidence, start)
    assert found != start
    assert Surrogate.fit(evidence, found).log_evidence > Surrogate.fit(evidence, start).log_evidence + 1


def test_methods_are_told_apart_by_how_they_round() -> None:
    told = {scheme: method_of(Quantization.parse(scheme)) for scheme in ("W4A16", "W8A8-INT", "Q4_K_M", "Q4_0", "AWQ")}
    assert told == {
        "W4A16": "rtn",
        "W8A8-INT": "rtn",
        "Q4_K_M": "gguf-k",
        "Q4_0": "gguf-legacy",
        "AWQ": "awq",
    }
