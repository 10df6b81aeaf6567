from __future__ import annotations

from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.solvers.tuning.space import enumerate_space
from qplan.solvers.tuning.tunefile import EXAMPLE, Tuning, parse_tuning, read_tuning

PLAN = """\
name: made
models: [{name: smollm2-135m, weights: smollm2}]
space:
  quantization: [F16, Q8_0]
  kv: [16, KV8-INT]
  gpu: cpu
  engine: llamacpp
objectives: [saturation, perplexity:english]
workload: isl=16,osl=8
slo: [p90:ttft=1s]
budget: 4 measurements
"""


def parse(text: str) -> Tuning:
    return parse_tuning(text, "t.yaml")


def names(tuning: Tuning) -> list[str]:
    return [str(one) for one in enumerate_space(tuning.space, lambda _: None).configurations]


def test_example_is_read(tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text(EXAMPLE)
    tuning = read_tuning(tmp_path / "tune.yaml")
    assert [one.name for one in tuning.objectives] == ["saturation", "perplexity:english", "memory"]
    assert len(names(tuning)) == 10


def test_every_key_is_read() -> None:
    tuning = parse(
        PLAN.replace("quantization: [F16, Q8_0]", "quantization: [F16, Q8_0]\n  max_batched_tokens: [256, 512]")
        + """conditions: [{never: {quantization: Q8_0, kv: KV8-INT}}]
limits: {p90:ttft: 500ms, choice:sample: 30%, saturation: 2qps, memory: 3e8}
load: 50%
stop_below: 1%
prior: llamacpp-cpu
arrivals: constant
attainment: 90%
duration: 20s
warm_up: 0
seed: 3
quality_api: completions
deadlines: {start: 5min, quality: 30min}
"""
    )
    assert [(limit.objective.name, limit.worst) for limit in tuning.limits] == [
        ("p90:ttft", 0.5),
        ("choice:sample", 0.3),
        ("saturation", 2.0),
        ("memory", 3e8),
    ]
    assert [one.name for one in tuning.quantities] == [
        *("saturation", "perplexity:english", "p90:ttft", "choice:sample", "memory")
    ]
    assert tuning.conditions.share == 0.5
    assert tuning.conditions.deadlines_s == {"start": 300.0, "quality": 1800.0}
    assert (tuning.stop_below, tuning.prior, tuning.conditions.warm_up_s) == (0.01, "llamacpp-cpu", 0.0)
    assert len(names(tuning)) == 6


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("budget: 4 measurements", "budget: 0 measurements", r"t.yaml:11: budget: .*more than 0"),
        ("budget: 4 measurements", "budget: 4 dollars", "GPU-hours"),
        ("budget: 4 measurements", "budget: -1 GPU-hours", "more than 0"),
        ("saturation,", "satration,", "t.yaml:8: .*did you mean 'saturation'"),
        ("saturation,", "p91:ttft,", "expected mean, p50, p90, p95 or p99"),
        ("saturation,", "p90:ttft,", "t.yaml:8: .*add the key 'load'"),
        ("saturation,", "perplexity:english,", "given twice"),
        ("engine: llamacpp", "engine: lamacpp", "t.yaml:7: .*did you mean 'llamacpp'"),
        ("engine: llamacpp", "engine: llamacpp\n  chunked_prefill: [on, off]", "t.yaml:8: .*no parameter"),
        ("engine: llamacpp", "engine: llamacpp\n  settings: {treads: [1]}", "t.yaml:8: .*did you mean 'threads'"),
        ("engine: llamacpp", "engine: llamacpp\n  batch: [1]", "unknown key 'batch'"),
        ("gpu: cpu", "gpu: a101", "t.yaml:6: .*unknown GPU"),
        ("F16, Q8_0", "F16, FP16", "given twice"),
        ("F16, Q8_0", "F16, Q8_0-KV8-INT", "says its KV cache already"),
        ("KV8-INT", "KV7", "t.yaml:5: "),
        ("slo: [p90:ttft=1s]", "", "needs the SLOs"),
        ("workload: isl=16,osl=8", "", "needs requests"),
        ("workload: isl=16,osl=8", "workload: chta", "did you mean 'chat'"),
        ("name: made\n", "", "the key 'name' is missing"),
        ("slo: [p90:ttft=1s]", "slo: [p90:ttft=1s]\nlimits: {memry: 3}", "unknown objective 'memry'"),
        ("slo: [p90:ttft=1s]", "slo: [p90:ttft=1s]\nlimits: {p90:ttft: fast}", "t.yaml:11: "),
        ("slo: [p90:ttft=1s]", "slo: [p90:ttft=1s]\nconditions: [{when: {tp: 1}}]", "'when' with 'only'"),
        ("slo: [p90:ttft=1s]", "slo: [p90:ttft=1s]\nconditions: [{never: {tp: 3}}]", "'3' is no value of tp"),
        ("slo: [p90:ttft=1s]", "slo: [p90:ttft=1s]\nload: 300%", "up to 200%"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, said: str) -> None:
    assert old in PLAN
    with pytest.raises(InputError, match=said) as caught:
        parse(PLAN.replace(old, new))
    assert "\n" not in str(caught.value)


def test_no_configuration_left_is_an_error_with_its_line() -> None:
    tuning = parse(PLAN.replace("gpu: cpu", "gpu: a100").replace("F16, Q8_0", "W8A8-FP").replace("llamacpp", "vllm"))
    with pytest.raises(InputError, match=r"t.yaml:3: .*none of 2 combinations.*compute capability"):
        names(tuning)


def test_conditions_leave_combinations_out_and_say_which_rule() -> None:
    tuning = parse(PLAN + "conditions:\n  - {when: {quantization: q8_0}, only: {kv: 16}}\n  - {never: {kv: KV8-INT}}\n")
    found = enumerate_space(tuning.space, lambda _: None)
    assert [str(one) for one in found.configurations] == ["FP16 KV16", "Q8_0 KV16"]
    assert {refused.what: refused.reason for refused in found.refused} == {
        "FP16 KV8-INT": "the condition at t.yaml:14: conditions[1]",
        "Q8_0 KV8-INT": "the condition at t.yaml:13: conditions[0]",
    }


def test_what_does_not_run_is_left_out_by_the_rules_of_core() -> None:
    text = PLAN.replace("smollm2-135m, weights: smollm2", "llama-2-70b").replace("kv: [16, KV8-INT]", "tp: [1, 2, 8]")
    text = (
        text.replace("gpu: cpu", "gpu: [a100, h100]").replace("F16, Q8_0", "BF16, W8A8-FP").replace("llamacpp", "vllm")
    )
    found = enumerate_space(parse(text).space, lambda _: None)
    reasons = {refused.what: refused.reason for refused in found.refused}
    assert "does not fit" in reasons["BF16 A100-SXM4-80GB TP1"]
    assert "compute capability" in reasons["W8A8-FP A100-SXM4-80GB TP8"]
    assert "W8A8-FP H100-SXM5-80GB TP2" in [str(one) for one in found.configurations]


def test_a_parameter_that_an_engine_lacks_is_none_of_its_configurations() -> None:
    text = PLAN.replace("engine: llamacpp", "engine: [vllm, sglang]\n  chunked_prefill: [on, off]")
    text = text.replace("smollm2-135m, weights: smollm2", "llama-2-7b").replace("F16, Q8_0", "BF16")
    text = text.replace("kv: [16, KV8-INT]", "kv: 16").replace("gpu: cpu", "gpu: h100")
    found = enumerate_space(parse(text).space, lambda _: None).configurations
    assert [dict(one.parameters) for one in found] == [
        {"engine": "vllm", "chunked_prefill": True},
        {"engine": "vllm", "chunked_prefill": False},
        {"engine": "sglang"},
    ]
    assert [dict(one.target.settings) for one in found] == [
        {"enable-chunked-prefill": True},
        {"no-enable-chunked-prefill": True},
        {},
    ]


def test_sequences_tell_observations_apart() -> None:
    text = PLAN.replace("kv: [16, KV8-INT]", "max_sequences: [4, 8]").replace("F16, Q8_0", "F16")
    found = enumerate_space(parse(text).space, lambda _: None).configurations
    assert [one.target.max_sequences for one in found] == [4, 8]
    assert [one.columns["settings"] for one in found] == ['{"max_sequences": 4}', '{"max_sequences": 8}']


def test_too_many_combinations_are_refused_before_they_are_made() -> None:
    many = ", ".join(str(n) for n in range(1, 60))
    text = PLAN.replace(
        "engine: llamacpp", f"engine: llamacpp\n  max_sequences: [{many}]\n  max_batched_tokens: [{many}]"
    )
    text = text.replace("engine: llamacpp", f"engine: llamacpp\n  settings: {{threads: [{many}]}}")
    with pytest.raises(InputError, match="combinations; expected at most"):
        names(parse(text))
