from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.plan import CampaignPlan, Load
from qplan.measure.campaign.planfile import EXAMPLE, read_plan

PLAN = """\
name: test
gpu: h100
models:
  - name: llama-2-7b
    weights: meta-llama/Llama-2-7b-chat-hf
quantizations:
  - BF16
  - W4A16
engines: [vllm]
workloads: ["isl=64,osl=32"]
"""
MIX, WEIGHTS = '["isl=64,osl=32"]', "    weights: meta-llama/Llama-2-7b-chat-hf\n"
LOADS = "loads: [1, 2qps]\n"

Read = Callable[[str], CampaignPlan]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read the text of a plan."""

    def read(text: str) -> CampaignPlan:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return read_plan(path)[0]

    return read


def test_a_plan_is_read_with_defaults(read: Read) -> None:
    plan = read(PLAN + LOADS)
    assert plan.gpu.name == "H100-SXM5-80GB"
    assert [str(quantization) for quantization in plan.quantizations] == ["BF16", "W4A16"]
    assert plan.loads == (Load(qps=1.0), Load(qps=2.0))
    assert (plan.tp, plan.repeats, plan.order, plan.energy, plan.duration_s) == ((1,), 1, "interleaved", True, 60.0)


def test_every_key_of_the_example_is_read(read: Read) -> None:
    plan = read(EXAMPLE)
    assert plan.slos == Slo.parse_all(["p90:ttft=500ms", "p90:tpot=50ms"])
    assert plan.loads == (Load(), Load(share=0.25), Load(share=0.5), Load(share=0.75), Load(qps=0.5))
    assert plan.quality == ("perplexity:english",)
    assert plan.deadlines.saturation_s == 120
    assert plan.repeats == 2
    assert len(make_grid(plan).points) == 4 * (5 * 2 + 1)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("", r"plan.yaml: the key 'name' is missing"),
        ("name: [", r"plan.yaml:1: not YAML"),
        ("- a", r"plan.yaml:1: found a list; expected a mapping"),
        (PLAN, r"the key 'loads' is missing"),
        (PLAN.replace("W4A16", "W4A17") + LOADS, r":8: quantizations\[1\]: unknown quantization 'W4A17'; .*'W4A16'\?"),
        (PLAN.replace("gpu: h100", "gpu: h1000") + LOADS, r":2: gpu: unknown GPU 'h1000'; .*did you mean"),
        (PLAN.replace("[vllm]", "[vlm]") + LOADS, r":9: engines\[0\]: unknown engine 'vlm'.*did you mean 'vllm'\?"),
        (PLAN + LOADS + "repeat: 2\n", r":12: repeat: unknown key 'repeat'; .*did you mean 'repeats'\?"),
        (PLAN + LOADS + "repeats: 0\n", r":12: repeats: found '0'; expected a whole number from 1 to 1,000"),
        (PLAN + LOADS + "repeats: 2\nrepeats: 3\n", r":13: 'repeats' is given twice"),
        (PLAN + LOADS + "order: random\n", r":12: order: found 'random'; expected one of interleaved, grouped"),
        (PLAN + LOADS + "energy: maybe\n", r":12: energy: found 'maybe'; expected on or off"),
        (PLAN + LOADS + "duration: 30s\nrequests: 5\n", r":13: requests: a load has a duration or"),
        (PLAN + LOADS + "duration: 3s\n", r":12: duration: 3 s of load are over before the warm-up of 5 s"),
        (PLAN + LOADS + "duration: 3 parsecs\n", r":12: duration: unknown unit 'parsecs'"),
        (PLAN + LOADS + "slo: [ttft]\n", r":12: slo\[0\]: cannot read 'ttft'"),
        (PLAN + LOADS + "slo: [ttft=1s, ttft=2s]\n", r":12: slo: 'ttft=2s' repeats an SLO"),
        (PLAN + LOADS + "arrivals: poison\n", r":12: arrivals: unknown arrivals 'poison'.*did you mean 'poisson'\?"),
        (PLAN + LOADS + "quality: [perplexty]\n", r":12: quality\[0\]: .*perplexty"),
        (PLAN + LOADS + "deadlines: {strat: 5s}\n", r":12: deadlines.strat: unknown key 'strat'; .*'start'\?"),
        (PLAN + "loads: [fast]\n", r":11: loads\[0\]: cannot read 'fast'; expected 'find saturation', a rate"),
        (PLAN + "loads: [0]\n", r":11: loads\[0\]: found '0'; expected a rate of more than 0"),
        (PLAN + "loads: []\n", r":11: loads: .*expected at least one value"),
        (PLAN + "loads: [1, 1qps]\n", r":11: loads\[1\]: given twice"),
        (PLAN + "loads: [50%]\n", r":11: loads: 50% is a share of the saturation rate; add 'find saturation'"),
        (PLAN + "loads: [find saturation]\n", r":11: loads: 'find saturation' needs the SLOs"),
        (PLAN.replace(MIX, "[chatt]") + LOADS, r":10: workloads\[0\]: unknown workload 'chatt'.*'chat'\?"),
        (PLAN.replace(MIX, "[{trace: no.csv}]") + LOADS, r":10: workloads\[0\].trace: no file no.csv"),
        (PLAN.replace(WEIGHTS, "") + LOADS, r":4: models\[0\]: a model needs the key 'weights'"),
        (PLAN.replace("gpu: h100", "gpu: cpu\ndevices: [0]") + LOADS, r":3: devices: a CPU has no devices"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_its_place(read: Read, broken: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read(broken)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.yaml: not a text file"):
        read_plan(tmp_path / "binary.yaml")
    with pytest.raises(InputError, match=r"none.yaml: No such file"):
        read_plan(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("tp: 99999999999999", "tp: found '99999999999999'; expected a whole number from 1 to 1,024"),
        ("repeats: 1000000000", "repeats: found '1000000000'; expected a whole number from 1 to 1,000"),
        ("processes: 100000", "processes: found '100000'; expected a whole number from 1 to 256"),
        ("slo: []", "slo: found a list; expected at least one value"),
        ("quality_api: chatt", "did you mean 'chat'?"),
        ("seed: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_what_would_fill_the_memory_is_refused(read: Read, line: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read(f"{PLAN}{LOADS}{line}\n")
    assert says in str(caught.value)


def test_quality_is_asked_through_the_api_of_the_plan(read: Read) -> None:
    chat, completions = (
        [point.api for point in make_grid(read(text)).points if point.task]
        for text in (EXAMPLE, EXAMPLE.replace("quality_api: chat", "quality_api: completions"))
    )
    assert chat == [None] * 4  # as before there was a choice: the points' keys stay
    assert completions == ["completions"] * 4


def test_aliases_that_stand_for_billions_are_refused(read: Read) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(InputError, match="for a plan"):
        read("\n".join(lines))
