from __future__ import annotations

from typing import Any

import pytest

from qplan.core.gpu import Gpu
from qplan.solvers.tuning.objectives import Limit, parse_objective
from qplan.solvers.tuning.space import Configuration, enumerate_space
from qplan.solvers.tuning.tunefile import parse_tuning

PLAN = """\
name: made
models: [{name: smollm2-135m, context: 100, max_sequences: 2}]
space: {quantization: F16, gpu: cpu, engine: llamacpp}
objectives: [memory]
budget: 1
"""
SERVING = {"phase": "serving", "status": "ok", "output_tokens_per_s": 50.0, "duration_s": 10.0, "energy_j": 1000.0}
SEARCHED = {"phase": "saturation", "saturation_qps": None}
JUDGED = {"phase": "quality", "task": "perplexity:english", "score": 12.0}


@pytest.fixture
def one() -> Configuration:
    return enumerate_space(parse_tuning(PLAN, "t").space, lambda _: None).configurations[0]


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("p90:ttft", [{"ttft_p90_s": 0.2}, {"ttft_p90_s": 0.4}, {"ttft_p90_s": 9.0}], 0.4),  # the median of repeats
        ("mean:tpot", [{"tpot_mean_s": 0.01}], 0.01),
        ("throughput", [{}], 50.0),
        ("energy", [{}], 2.0),  # 1000 J over 10 s of 50 tokens/s
        ("energy", [{"energy_j": None}], None),
        ("p90:ttft", [{"ttft_p90_s": 0.2, "status": "failed"}], None),
        ("saturation", [{"saturation_qps": 3.0}], None),  # which a serving row does not tell
        ("saturation", [{"phase": "saturation", "saturation_qps": 3.0}], 3.0),
        ("saturation", [SEARCHED | {"saturation_low_qps": 2.0}, SEARCHED | {"saturation_low_qps": 4.0}], 3.0),
        ("saturation", [SEARCHED | {"saturation_low_qps": 2.0}, SEARCHED | {"saturation_qps": 7.0}], 7.0),
        ("saturation", [SEARCHED | {"saturation_high_qps": 2.0}], None),
        ("perplexity:english/kl_divergence", [JUDGED | {"metric": "perplexity"}], 0.0),  # unquantized, from itself
        ("perplexity:english/top1_agreement", [JUDGED | {"metric": "perplexity"}], 1.0),
        ("perplexity:english", [JUDGED | {"metric": "perplexity"}], 12.0),
        ("perplexity:english", [JUDGED | {"metric": "top1_agreement"}], None),
        ("memory", [{"memory_bytes": 5e9}], 5e9),
        ("memory", [{}], None),
    ],
)
def test_values_are_read_from_observations(
    one: Configuration, name: str, rows: list[dict[str, Any]], expected: float | None
) -> None:
    assert parse_objective(name, "here").value(one, [SERVING | row for row in rows]) == expected


def test_cost_is_that_of_all_gpus_for_a_million_tokens(one: Configuration) -> None:
    price = Gpu.named("cpu").price_per_hour
    assert parse_objective("cost", "here").value(one, [SERVING]) == pytest.approx(price / 3600 / 50 * 1e6)
    search = {"phase": "saturation", "status": "ok", "saturation_qps": 5.0, "output_tokens": 10.0}
    assert parse_objective("cost", "here").value(one, [search]) == pytest.approx(price / 3600 / 50 * 1e6)
    assert parse_objective("cost", "here").bound(one, [search]) is None
    bounded = search | {"saturation_qps": None, "saturation_low_qps": 5.0, "reason": "no time"}
    assert parse_objective("cost", "here").value(one, [bounded]) == pytest.approx(price / 3600 / 50 * 1e6)
    said = parse_objective("cost", "here").bound(one, [bounded])
    assert said is not None
    assert said.startswith("cost is at most ")
    assert said.endswith("$/Mtoken: no time")
    assert parse_objective("cost", "here").bound(one, [SERVING, bounded]) is None  # what was generated tells it


def test_memory_on_a_cpu_is_measured_bits_and_the_cache_of_every_sequence(one: Configuration) -> None:
    rows = [{"phase": "serving", "status": "ok", "bits_per_weight": 16.0}]
    cache = 2 * 30 * 3 * 64 * 2 * 100 * 2  # keys and values, layers, KV heads, head size, bytes, tokens, sequences
    assert parse_objective("memory", "here").value(one, rows) == pytest.approx(134515008 * 2 + cache)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("saturation", "maximize"),
        ("goodput", "maximize"),
        ("ttft", "minimize"),
        ("energy", "minimize"),
        ("perplexity:english", "minimize"),
        ("perplexity:english/top1_agreement", "maximize"),
        ("choice:sample", "maximize"),
    ],
)
def test_which_way_is_better_is_known(name: str, direction: str) -> None:
    assert parse_objective(name, "here").axis.direction == direction


def test_limits_say_by_how_much_they_are_missed() -> None:
    assert Limit(parse_objective("p90:ttft", "here"), 0.5).excess(0.6) == pytest.approx(0.2)
    assert Limit(parse_objective("saturation", "here"), 4.0).excess(5.0) < 0
    assert Limit(parse_objective("saturation", "here"), 4.0).excess(3.0) == pytest.approx(0.25)
