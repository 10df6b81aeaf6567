from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qplan.core import Deployment, Gpu, InputError, Model, Quantization
from qplan.models.iterations import IterationGrid
from qplan.models.power.curves import Curve
from qplan.models.power.watts import PowerModel, power_grid
from qplan.models.steps.roofline import terms

GPUS = [gpu for gpu in Gpu.catalogue() if not gpu.is_cpu]


def deployment(gpu: str = "h100", quantization: str = "BF16", tp: int = 1) -> Deployment:
    return Deployment(Model.named("llama-3.1-8b"), Quantization.parse(quantization), Gpu.named(gpu), tp)


def decode_w(replica: Deployment, batch: float, time_s: float) -> float:
    one = np.array([batch])
    work = terms(replica, np.zeros(1), one, one * 512)
    return float(PowerModel.shipped().power(replica, work, np.array([time_s])).power_w[0])


@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_power_lies_between_idle_and_tdp_and_rises_with_either_utilisation(gpu: Gpu) -> None:
    curve = PowerModel.shipped().curve(gpu)
    memory, compute = np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 12), indexing="ij")
    fraction = curve.at(memory, compute)
    assert fraction[0, 0] == pytest.approx(curve.idle)
    assert (np.diff(fraction, axis=0) > 0).all()
    assert (np.diff(fraction, axis=1) > 0).all()
    assert (fraction < 1).all()


def test_a_tensor_parallel_replica_counts_all_its_gpus() -> None:
    model = PowerModel.shipped()
    assert model.idle_w(deployment(tp=4)) == pytest.approx(4 * model.idle_w(deployment()))


def test_the_same_work_in_less_time_takes_more_power_but_less_energy() -> None:
    slow, fast = decode_w(deployment(), 64, 20e-3), decode_w(deployment(), 64, 10e-3)
    assert slow < fast
    assert fast * 10e-3 < slow * 20e-3


def test_fewer_bytes_in_the_same_time_take_less_power() -> None:
    assert decode_w(deployment(quantization="W4A16"), 8, 10e-3) < decode_w(deployment(), 8, 10e-3)


def test_an_8_bit_operation_costs_less_than_a_16_bit_one_where_the_gpu_has_the_units() -> None:
    prefill = np.array([4096.0])

    def joules(quantization: str, gpu: str) -> float:
        # W8A16 reads the same bytes as W8A8 and multiplies at 16 bits.
        replica = deployment(gpu, quantization)
        work = terms(replica, prefill, np.zeros(1), np.zeros(1))
        return float(PowerModel.shipped().power(replica, work, np.ones(1)).power_w[0])

    assert joules("W8A8-FP", "h100") < joules("W8A16", "h100")
    assert joules("W8A8-INT", "v100") == pytest.approx(joules("W8A16", "v100"))  # no INT8 tensor cores there


def test_what_was_not_measured_is_flagged_and_its_range_is_wider() -> None:
    model = PowerModel.shipped()
    batch = np.array([16.0])

    def width(gpu: str, time_s: float) -> tuple[float, bool]:
        replica = deployment(gpu)
        power = model.power(replica, terms(replica, np.zeros(1), batch, batch * 512), np.array([time_s]))
        return float((power.upper_w - power.lower_w)[0] / power.power_w[0]), bool(power.extrapolates[0])

    measured, sibling, foreign = width("a100-40", 0.1), width("a100-80", 0.1), width("l40s", 0.2)
    assert not measured[1]
    assert sibling[1]
    assert foreign[1]
    assert measured[0] < sibling[0] < foreign[0] or measured[0] < foreign[0] < sibling[0]
    beyond = width("a100-40", 0.015)  # three quarters of the bandwidth; the runs on it used less than half
    assert beyond[1]


def test_a_range_never_passes_the_tdp() -> None:
    replica = deployment()
    batch = np.array([512.0])
    power = PowerModel.shipped().power(replica, terms(replica, np.zeros(1), batch, batch * 2048), np.array([1e-3]))
    assert power.lower_w[0] < power.power_w[0] <= power.upper_w[0] <= 700


def test_provenance_names_the_data_or_what_it_was_transferred_from() -> None:
    model = PowerModel.shipped()
    assert "ML.ENERGY" in model.provenance(Gpu.named("h100"))
    assert model.provenance(Gpu.named("a100-80")).startswith("transferred from A100-SXM4-40GB")
    assert "Ada was not measured" in model.provenance(Gpu.named("l40s"))


def test_the_power_of_a_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"^CPU: power is modelled for GPUs only"):
        PowerModel.shipped().curve(Gpu.named("cpu"))
    no_tdp = replace(Gpu.named("l40s"), tdp_w=None)
    with pytest.raises(InputError, match="TDP"):
        PowerModel.shipped().idle_w(replace(deployment(), gpu=no_tdp))


def test_a_grid_for_the_simulator_is_idle_where_nothing_runs() -> None:
    prefill, batches, contexts = np.array([0.0, 512, 2048]), np.array([0.0, 1, 64]), np.array([64.0, 4096])
    time_s = 5e-3 + 20e-6 * prefill[:, None, None] + 50e-6 * batches[:, None] + 1e-9 * batches[:, None] * contexts
    time_s[0, 0] = 0
    watts, idle_w = power_grid(deployment(tp=2), IterationGrid(prefill, batches, contexts, time_s))
    assert watts.shape == time_s.shape
    assert watts[0, 0] == pytest.approx(idle_w)
    assert (watts[1:] > idle_w).all()
    assert (watts <= 1400).all()


class TestData:
    def test_a_model_comes_back_from_json(self) -> None:
        model = PowerModel.shipped()
        assert PowerModel.from_data(json.loads(json.dumps(model.to_data()))) == model

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda data: data.update(schema_version=2), "schema_version is 2"),
            (lambda data: data.pop("beyond"), "beyond"),
            (lambda data: data.update(colour="red"), "colour"),
            (lambda data: data.update(architectures=[]), "no architecture"),
            (lambda data: data.update(op_energy_8="cheap"), "op_energy_8 is 'cheap'"),
            (lambda data: data["architectures"][0].update(name="Hoper"), "did you mean 'Hopper'"),
            (lambda data: data["architectures"][0]["curve"].update(memory=float("nan")), "memory is nan"),
            (lambda data: data["architectures"][0]["curve"].update(idle=1.5), "idle power"),
            (lambda data: data["architectures"][0]["error"].update(lower=3.0), "above its upper"),
            (lambda data: data["architectures"].append(7), "not a power model"),
        ],
    )
    def test_spoilt_data_are_refused(self, spoil: Callable[[dict[str, Any]], object], message: str) -> None:
        data = json.loads(json.dumps(PowerModel.shipped().to_data()))
        spoil(data)
        with pytest.raises(InputError, match=message):
            PowerModel.from_data(data, "mine.json")

    def test_anything_but_an_object_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"^mine\.json: expected an object"):
            PowerModel.from_data([1], "mine.json")  # type: ignore[arg-type]


def test_a_curve_is_linear_at_low_utilisation() -> None:
    curve = Curve(0.2, 1.5, 3.0)
    small = np.array([1e-5])
    assert curve.at(small, small)[0] - 0.2 == pytest.approx(0.8 * 4.5e-5, rel=1e-3)
