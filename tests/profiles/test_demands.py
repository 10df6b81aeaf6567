"""Demand files: what they mean, and one line for every mistake."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from qplan.core.demand import DIURNAL, Demand
from qplan.core.errors import InputError
from qplan.profiles.demands import demand_of, example, read_demand
from qplan.profiles.yamlfile import read_yaml

CLASS = "{name: a, rate: 10qps, lengths: chat, models: [llama-3.1-8b], slo: [ttft=1s]}"
ONE = f"classes:\n  - {CLASS}\n"


def read(text: str, folder: Path = Path()) -> Demand:
    return demand_of(read_yaml(text, "demand.yaml"), folder, "demand")


def of_class(more: str) -> str:
    return f"classes:\n  - {CLASS[:-1]}, {more}}}\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Eight requests in 40 s, three quarters of them in the second half."""
    times = (0, 10, 20, 22, 25, 30, 35, 40)
    rows = [f"2024-05-01 00:00:{time:02d},{100 + n},{10 + n}" for n, time in enumerate(times)]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


def test_the_example_shows_every_key_and_is_a_demand() -> None:
    demand = read(example())
    assert len(demand.hours) == 24
    assert demand.horizon_hours == 24
    assistant, completion = demand.classes
    assert assistant.rate_qps == pytest.approx([120 * factor for factor in DIURNAL])
    assert max(completion.rate_qps) == 30
    assert assistant.mean_quality == 0.99
    assert completion.workload.task == "code"
    reserved, on_demand, spot, unlimited = demand.pools
    assert reserved.committed
    assert reserved.node_gpus == 8
    assert set(reserved.price_per_gpu_hour) == {3.1}
    assert (on_demand.committed, spot.availability) == (False, 0.9)
    assert unlimited.count == math.inf
    assert demand.power_cap_w == 60_000
    assert demand.start_s == 120
    assert dict(demand.at_most) == {"carbon": 900}


def test_what_is_not_said_is_assumed_and_told() -> None:
    demand = read(ONE)
    assert list(demand.hours) == [24.0]
    assert not demand.pools
    assert demand.classes[0].quality_floor == 0.99
    assert demand.classes[0].slos[0].percentile == 90
    told = {assumption.what for assumption in demand.assumptions}
    assert {"GPUs", "electricity", "percentile of the SLOs", "quality floor of a", "arrivals"} <= told


def test_one_list_by_the_hour_makes_every_figure_one_by_the_hour() -> None:
    demand = read(of_class("demand: [1, 2, 4]") + "energy: {price: 0.1, carbon: [300, 200, 100]}\n")
    assert list(demand.classes[0].rate_qps) == [2.5, 5.0, 10.0]
    assert list(demand.energy_price) == [0.1] * 3
    assert list(demand.carbon) == [300, 200, 100]
    assert list(demand.hours) == [8.0] * 3


def test_a_trace_gives_lengths_and_its_own_shape(trace: Path) -> None:
    text = "periods: 2\nclasses:\n  - {name: t, trace: trace.csv, models: [llama-3.1-8b], rate: 12qps}\n"
    one = read(text, trace.parent).classes[0]
    assert one.workload.mean_input_tokens == pytest.approx(103.5)
    assert one.rate_qps == (4.0, 12.0)
    own = read(text.replace(", rate: 12qps", ""), trace.parent).classes[0]
    assert own.rate_qps == pytest.approx([2 / 20, 6 / 20])


def test_objectives_are_one_measure_weights_or_an_order() -> None:
    assert read(ONE + "objective: gpus\n").objective == (("gpus", 1.0),)
    assert read(ONE + "objective: {cost: 1, energy: 0.5}\n").objective == (("cost", 1.0), ("energy", 0.5))
    ordered = read(ONE + "objective: [cost, energy, quality]\n")
    assert dict(ordered.objective) == {"cost": 1.0}
    assert list(ordered.then) == ["energy", "quality"]
    limited = read(ONE + "at_most: {gpus: 96}\nat_least: {quality: 98%}\n")
    assert dict(limited.at_most) == {"gpus": 96.0, "quality": 0.98}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"demand.yaml: the key 'classes' is missing; `qplan capacity --example`"),
        ("clases: []", r"demand.yaml:1: clases: unknown key 'clases'; .* did you mean 'classes'"),
        ("classes: []", r"demand.yaml:1: classes: found a list; expected at least one value"),
        ("classes:\n  - {rate: 3}", r"demand.yaml:2: classes\[0\]: a class needs the key 'name'"),
        ("classes:\n  - {name: a, rate: 3}", r":2: classes\[0\]: a class needs the key 'models'"),
        (
            "classes:\n  - {name: a, models: llama-2-7b, rate: 3}",
            r":2: .* class a needs the key 'lengths', or a 'trace'",
        ),
        ("classes:\n  - {name: a, models: llama-2-7b, lengths: chat}", r":2: .* needs the key 'rate', or a 'trace'"),
        (f"classes:\n  - {CLASS}\n  - {CLASS}", r"demand.yaml:3: classes\[1\]: the class a is given twice"),
        (of_class("slos: [tpot=1s]"), r":2: classes\[0\].slos: unknown key 'slos'; .* did you mean 'slo'"),
        (ONE.replace("ttft=1s", "tfft=1s"), r":2: classes\[0\].slo\[0\]: cannot read 'tfft=1s'; .* 'ttft'"),
        (ONE.replace("10qps", "-1qps"), r":2: classes\[0\].rate: found '-1qps'; expected a rate of more than 0"),
        (ONE.replace("10qps", "10kps"), r":2: classes\[0\].rate: unknown unit 'kps'"),
        (
            ONE.replace("lengths: chat", "lengths: chatt"),
            r":2: classes\[0\].lengths: unknown workload 'chatt'; .*'chat'",
        ),
        (ONE.replace("llama-3.1-8b", "llama-3.1-8"), r":2: classes\[0\].models\[0\]: unknown model .* 'llama-3.1-8b'"),
        (of_class("task: coding"), r":2: classes\[0\].task: found 'coding'; .* did you mean 'code'"),
        (of_class("quality: high"), r":2: classes\[0\].quality: 'high' is not a number"),
        (of_class("quantizations: [W9A9]"), r":2: classes\[0\].quantizations\[0\]: unknown quantization 'W9A9'"),
        (of_class("demand: diurnall"), r":2: .*demand: found 'diurnall'; .* did you mean 'diurnal'"),
        (of_class("demand: trace"), r":2: .*demand: this class has no trace; add the key 'trace'"),
        (of_class("demand: [0, 0]"), r":2: .*demand: found a list; expected a figure above 0"),
        (of_class("demand: [1, -2]"), r":2: .*demand\[1\]: found '-2'; expected a number of at least 0"),
        (of_class("trace: none.csv"), r":2: .*trace: no file none.csv"),
        (
            of_class("demand: [1, 2]") + "energy:\n  price: [1, 2, 3]",
            r":4: energy.price: found 3 figures; .* or 2 of them",
        ),
        (
            "periods: 12\n" + of_class("demand: diurnal"),
            r":3: .*demand: diurnal is the shape of 24 periods, but .*:1: per",
        ),
        ("periods: 0\n" + ONE, r"demand.yaml:1: periods: found '0'; expected a whole number"),
        ("period: 0h\n" + ONE, r"demand.yaml:1: period: found '0h'; expected a time of more than 0"),
        ("percentile: 100\n" + ONE, r"demand.yaml:1: percentile: found '100'; expected a percentile"),
        ("percentile: 0.9\n" + ONE, r"demand.yaml:1: percentile: found '0.9'; expected a percentile .* such as 90"),
        (ONE.replace("10qps", "''"), r":2: classes\[0\].rate: found ''; expected a rate such as 40qps"),
        (of_class("demand: {a: 1}"), r":2: .*demand: found a mapping; expected flat, diurnal, trace or a list"),
        (
            ONE.replace("lengths: chat", "lengths: isl=512,osl=128"),
            r":2: .*unknown key 'osl=128'; .*; quote a value that holds a comma",
        ),
        (ONE + "gpus: {h100: 8}", r":3: gpus: found a mapping; expected a list such as \[{gpu: h100, count: 8}\]"),
        (ONE + "gpus:", r":3: gpus: found nothing; expected a GPU such as h100"),
        (ONE + "gpus: [{gpu: h100, count: 4, node: 8}]", r":3: gpus\[0\].node: nodes of 8 GPUs, but there are only 4"),
        (ONE + "objective: [cost, cost]", r":3: objective\[1\]: the measure cost is given twice"),
        (ONE + "gpus: [h10]", r":3: gpus\[0\]: unknown GPU 'h10'; .* did you mean 'h100'"),
        (ONE + "gpus:\n  - {count: 3}", r":4: gpus\[0\]: a pool of GPUs needs the key 'gpu'"),
        (ONE + "gpus: [h100, {gpu: h100, count: 2}]", r":3: gpus\[1\]: the pool H100-SXM5-80GB is given twice"),
        (ONE + "gpus: [{gpu: h100, count: some}]", r":3: gpus\[0\].count: found 'some'; expected a whole number"),
        (ONE + "gpus: [{gpu: h100, price: -1}]", r":3: gpus\[0\].price: found '-1'; expected a number of at least 0"),
        (ONE + "gpus: [{gpu: h100, buy: rserved}]", r":3: gpus\[0\].buy: found 'rserved'; .* did you mean 'reserved'"),
        (ONE + "gpus: [{gpu: h100, buy: spot}]", r":3: gpus\[0\]: spot GPUs need .* add availability"),
        (ONE + "gpus: [{gpu: h100, availability: 90%}]", r":3: gpus\[0\].availability: only what is bought as spot"),
        (ONE + "gpus: [{gpu: h100, buy: spot, availability: 2}]", r":3: .*availability: found '2'; expected a share"),
        (ONE + "power_cap: 0kW", r":3: power_cap: found '0kW'; expected a power of more than 0"),
        (ONE + "power_cap: 5hp", r":3: power_cap: unknown unit 'hp' in '5hp'; expected one of W, kW, MW"),
        (ONE + "spare: -1", r":3: spare: found '-1'; expected a whole number"),
        (ONE + "start: {tme: 1s}", r":3: start.tme: unknown key 'tme'; .* did you mean 'time'"),
        (ONE + "objective: cots", r":3: objective: found 'cots'; .* did you mean 'cost'"),
        (ONE + "objective: {cost: 0}", r":3: objective: found a mapping; expected a weight above 0"),
        (ONE + "objective: [cost, carbn]", r":3: objective\[1\]: found 'carbn'; .* did you mean 'carbon'"),
        (ONE + "objective: carbon", r":3: objective: carbon needs the g CO2e/kWh .* add 'energy: {carbon: ...}'"),
        (ONE + "at_most: {carbon: 3}", r":3: at_most: carbon needs the g CO2e/kWh"),
        (ONE + "at_most: {money: 3}", r":3: at_most.money: unknown key 'money'; expected one of cost"),
        (ONE + "energy: 3", r":3: energy: found '3'; expected a mapping with the keys price, carbon"),
        ("classes: [", r"demand.yaml:1: not YAML"),
    ],
)
def test_every_mistake_is_one_line_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        read(text)
    assert "\n" not in str(raised.value)


def test_a_trace_names_its_own_line(trace: Path) -> None:
    trace.write_text(trace.read_text().replace("2024-05-01 00:00:20", "soon"))
    with pytest.raises(InputError, match=r"demand.yaml:2: .*trace: .*trace.csv, line 4: TIMESTAMP is 'soon'"):
        read("classes:\n  - {name: t, trace: trace.csv, models: [llama-3.1-8b]}\n", trace.parent)


def test_files_are_named_after_themselves_and_paths_are_beside_them(trace: Path) -> None:
    path = trace.parent / "mine.yaml"
    path.write_text("classes:\n  - {name: t, trace: trace.csv, models: [llama-3.1-8b]}\n")
    assert read_demand(path).name == "mine"
    recorded = read_demand(path).classes[0].trace
    assert recorded is not None
    assert recorded.file == str(trace)
    with pytest.raises(InputError, match=r"none.yaml: No such file"):
        read_demand(trace.parent / "none.yaml")
