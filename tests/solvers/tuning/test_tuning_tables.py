from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.solvers.tuning.expectations import expected
from qplan.solvers.tuning.setup import enumerate_table
from qplan.solvers.tuning.space import Configuration, enumerate_space
from qplan.solvers.tuning.tables import Table
from qplan.solvers.tuning.tunefile import Tuning, parse_tuning

PLAN = """\
name: pack
models: [{name: smollm2-135m, context: 512, max_sequences: 8}]
space: {quantization: [F16, Q8_0, Q4_0], kv: [16, KV8-INT], gpu: cpu, engine: llamacpp}
objectives: [saturation, perplexity:english]
workload: isl=16,osl=8
slo: [p90:ttft=1s]
budget: 4
"""


def plan(old: str = "", new: str = "") -> Tuning:
    assert old in PLAN
    return parse_tuning(PLAN.replace(old, new) if old else PLAN, "t.yaml")


def table(tuning: Tuning, *rows: dict[str, Any]) -> Table:
    common = {"model": "smollm2-135m", "quantization": "FP16", "gpu": "CPU", "tp": 1, "engine": "llamacpp"}
    rest = {"settings": None, "status": "ok", "workload": "isl=16,osl=8"}
    return Table("made", [{**common, **rest, **row} for row in rows], tuning.conditions)


def test_the_shipped_pack_has_every_configuration() -> None:
    enumerated, _ = enumerate_table(plan(), "llamacpp-cpu")
    assert len(enumerated.configurations) == 6
    assert enumerated.refused == ()


def test_what_a_table_lacks_is_no_configuration() -> None:
    enumerated, _ = enumerate_table(plan("Q4_0", "Q4_0, Q5_K"), "llamacpp-cpu")
    assert {one.what: one.reason for one in enumerated.refused} == {
        "Q5_K KV16": "llamacpp-cpu has nothing of it",
        "Q5_K KV8-INT": "llamacpp-cpu has nothing of it",
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("saturation,", "energy,", "t.yaml:4: .*no data for energy: no energy counter"),
        ("perplexity:english", "humaneval", "t.yaml:4: .*no data for humaneval; of quality it has choice:sample"),
        ("isl=16,osl=8", "chat", "no data for workload chat; expected one of isl=16,osl=8, isl=32,osl=4"),
    ],
)
def test_an_objective_without_data_is_an_error_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        enumerate_table(parse_tuning(f"{PLAN.replace(old, new)}load: 50%\n", "t.yaml"), "llamacpp-cpu")


def test_a_load_is_a_rate_or_a_share_of_the_configurations_own_saturation() -> None:
    rows = [{"phase": "serving", "offered_qps": rate, "ttft_p90_s": rate / 10} for rate in (1.0, 2.0, 4.0)]
    rows.append({"phase": "saturation", "saturation_qps": 4.0})
    rows.append({"phase": "serving", "offered_qps": 2.0, "ttft_p90_s": 9.0, "workload": "chat"})
    for load, value in (("50%", 0.2), ("4qps", 0.4), ("3qps", None)):
        tuning = parse_tuning(PLAN.replace("saturation,", "p90:ttft,") + f"load: {load}\n", "t.yaml")
        one = enumerate_space(tuning.space, lambda _: None).configurations[0]
        assert tuning.objectives[0].value(one, table(tuning, *rows).rows(one)) == value


def test_settings_tell_configurations_apart() -> None:
    tuning = plan("engine: llamacpp", "engine: llamacpp, settings: {threads: [1, 2]}")
    rows = [{"phase": "saturation", "saturation_qps": n, "settings": f'{{"threads": {n}}}'} for n in (1, 2)]
    looked_up = table(tuning, *rows)
    found = [one for one in enumerate_space(tuning.space, lambda _: None).configurations if "FP16 KV16" in str(one)]
    assert [tuning.objectives[0].value(one, looked_up.rows(one)) for one in found] == [1, 2]


def test_expectations_come_from_another_table_whatever_its_settings() -> None:
    tuning = parse_tuning(
        PLAN.replace("engine: llamacpp", "engine: llamacpp, settings: {threads: [1, 2]}").replace(
            "perplexity:english", "'perplexity:english[:1]'"
        )
        + "prior: llamacpp-cpu\n",
        "t",
    )
    found = expected(tuning, enumerate_space(tuning.space, lambda _: None).configurations)
    assert found is not None
    assert found.shape == (12, 2)
    assert np.isfinite(found).all()
    assert (found[0] == found[1]).all()  # one thread or two: the pack tells no difference


@pytest.mark.slow
def test_forecasts_are_expectations_where_they_are_known() -> None:
    tuning = parse_tuning(
        """\
name: forecast
space: {model: llama-2-13b, quantization: [BF16, W4A16, W8A8-FP], gpu: [a100, h100], tp: [1, 2], engine: trtllm}
objectives: [p90:ttft, cost, saturation, memory]
workload: chat
load: 50%
slo: [p90:ttft=1s]
prior: forecast
budget: 4
""",
        "t.yaml",
    )
    configurations = enumerate_space(tuning.space, lambda _: None).configurations
    found = expected(tuning, configurations)
    assert found is not None
    assert np.isfinite(found).all()
    by_name = dict(zip(map(str, configurations), found, strict=True))
    one, two = by_name["BF16 H100-SXM5-80GB TP1"], by_name["BF16 H100-SXM5-80GB TP2"]
    assert two[2] > one[2]  # two GPUs serve more
    assert two[3] < one[3]  # and each holds less


def test_a_prior_that_tells_nothing_is_said() -> None:
    tuning = parse_tuning(f"{PLAN}prior: trtllm-composed\n", "t.yaml")
    with pytest.raises(InputError, match="prior: trtllm-composed tells nothing"):
        expected(tuning, enumerate_space(tuning.space, lambda _: None).configurations)


def test_quality_that_was_judged_under_other_settings_counts_where_its_own_was_not() -> None:
    tuning = plan("engine: llamacpp", "engine: llamacpp, settings: {threads: [1, 2, 3]}")
    rows: list[dict[str, Any]] = [
        {"phase": "saturation", "saturation_qps": n, "settings": f'{{"threads": {n}}}'} for n in (1, 2)
    ]
    judged = {"phase": "quality", "task": "perplexity:english", "metric": "perplexity", "workload": None}
    rows += [judged | {"settings": '{"threads": 1}', "score": 30.0}, judged | {"settings": None, "score": 40.0}]
    looked_up = table(tuning, *rows)
    found = [one for one in enumerate_space(tuning.space, lambda _: None).configurations if "FP16 KV16" in str(one)]
    perplexity = [tuning.objectives[1].value(one, looked_up.rows(one)) for one in found]
    assert perplexity == [30.0, 35.0, None]  # its own, the median of the others', and nothing else is known of it


SEARCHED = {"phase": "saturation", "slo": "p90:ttft=1s", "reason": "the SLOs hold even at 30 req/s"}
AT_LEAST = SEARCHED | {"saturation_low_qps": 30.0}
AT_MOST = SEARCHED | {"saturation_high_qps": 0.5, "reason": "the SLOs are missed even at 0.5 req/s"}


def first(tuning: Tuning) -> Configuration:
    return enumerate_space(tuning.space, lambda _: None).configurations[0]


def test_searches_that_found_only_a_bound_from_below_are_used_as_bounds() -> None:
    tuning = plan("saturation, perplexity:english", "saturation")
    looked_up = table(tuning, AT_LEAST)
    looked_up.check(tuning.quantities, tuning.places)
    one, saturation = first(tuning), tuning.objectives[0]
    assert looked_up.refusal(one, tuning.quantities) is None
    rows = looked_up.rows(one)
    assert saturation.value(one, rows) == 30.0
    assert saturation.bound(one, rows) == "saturation is at least 30 req/s: the SLOs hold even at 30 req/s"


@pytest.mark.parametrize(
    ("objectives", "load", "row", "said"),
    [
        (
            "saturation",
            "",
            AT_MOST,
            "made has no saturation of it, only that saturation is at most 0.5 req/s: the SLOs are missed even at "
            "0.5 req/s; measure it again, with more time or laxer SLOs",
        ),
        (
            "p90:ttft",
            "load: 50%",
            AT_LEAST,
            "made has no p90:ttft of it: loads are shares of a rate of which it only has that saturation is at least "
            "30 req/s: the SLOs hold even at 30 req/s; ask for a rate as the load",
        ),
        ("p90:ttft", "load: 2qps", AT_LEAST, "made has no p90:ttft of it"),
    ],
)
def test_bounds_that_do_not_do_are_said(objectives: str, load: str, row: dict[str, Any], said: str) -> None:
    tuning = parse_tuning(PLAN.replace("saturation, perplexity:english", objectives) + load, "t.yaml")
    assert table(tuning, row).refusal(first(tuning), tuning.quantities) == said


def test_rates_that_were_found_under_other_slos_do_not_count() -> None:
    tuning = plan("saturation, perplexity:english", "saturation")
    strict = SEARCHED | {"saturation_qps": 4.0, "slo": "p90:ttft=0.25s"}
    asked = strict | {"saturation_qps": 9.0, "slo": "p90:ttft=1000ms"}
    one = first(tuning)
    assert tuning.objectives[0].value(one, table(tuning, strict, asked).rows(one)) == 9.0
    said = r"t.yaml:4: .* has no data for saturation under p90:ttft=1s; it was measured under p90:ttft=0.25s"
    with pytest.raises(InputError, match=said):
        table(tuning, strict).check(tuning.quantities, tuning.places)
