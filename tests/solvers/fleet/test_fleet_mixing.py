"""Deployments as options that differ in the classes that they serve."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import StepTimes
from qplan.solvers.fleet.buckets import Bucket, Buckets
from qplan.solvers.fleet.mixing import ALL_SETS, Modes, modes

SHORT, LONG = Workload.fixed("isl=100,osl=50"), Workload.fixed("isl=3000,osl=50")
PROMPT, LOOSE = (Slo("ttft", 0.3, 90.0),), (Slo("ttft", 10.0, 90.0),)


def made(classes: list[Workload], slos: list[tuple[Slo, ...]], speeds: tuple[float, ...] = (1.0,)) -> Modes:
    tokens, batches, contexts = np.array([16.0, 8192.0]), np.array([1.0, 256.0]), np.array([16.0, 4096.0])
    speed = np.array(speeds)[:, None]
    decode = speed[:, :, None] * np.repeat((0.01 + 0.2e-3 * batches)[None, :, None], 2, axis=2)
    steps = StepTimes(tokens, speed * (2e-3 + 40e-6 * tokens), batches, contexts, decode)
    one = Deployment(Model.named("llama-3.1-8b"), Quantization.parse("FP16"), Gpu.named("h100"))
    deployments = [one] * len(speeds)
    model = SharingModel.of(deployments, steps)
    qps = np.stack([model.saturation_qps(mix, limits) for mix, limits in zip(classes, slos, strict=True)])
    buckets = Buckets.of([(Bucket(mix, 1.0),) for mix in classes])
    return modes(deployments, steps, buckets, classes, slos, qps)


def test_one_class_is_one_option_at_its_own_limit() -> None:
    alone = made([SHORT], [PROMPT])
    assert alone.classes == ((0,),)
    assert alone.base.tolist() == [0]
    assert alone.capacity_qps.shape == (1, 1)


def test_classes_that_do_not_disturb_one_another_are_one_option() -> None:
    assert made([SHORT, SHORT], [LOOSE, LOOSE]).classes == ((0, 1),)


def test_a_class_that_is_held_back_for_another_also_has_an_option_of_its_own() -> None:
    both = made([SHORT, LONG], [PROMPT, LOOSE])
    assert set(both.classes) >= {(1,), (0, 1)}
    alone, shared = both.classes.index((1,)), both.classes.index((0, 1))
    assert both.capacity_qps[1, alone] > both.capacity_qps[1, shared] > 0
    assert both.capacity_qps[0, alone] == 0


def test_a_deployment_that_is_too_slow_for_a_class_serves_the_other() -> None:
    both = made([SHORT, LONG], [(Slo("ttft", 0.02, 90.0),), LOOSE], (1.0, 4.0))
    assert [served for d, served in zip(both.base, both.classes, strict=True) if d == 1] == [(1,)]
    assert (np.diff(both.base) >= 0).all()


@pytest.mark.parametrize("classes", [ALL_SETS, ALL_SETS + 1])
def test_the_number_of_options_stays_small(classes: int) -> None:
    workloads = [Workload.fixed(f"isl={100 + 700 * n},osl=20") for n in range(classes)]
    slos: list[tuple[Slo, ...]] = [(Slo("ttft", 0.2 * 2.0**n, 90.0),) for n in range(classes)]
    many = made(workloads, slos)
    assert len(many.classes) <= max(2**ALL_SETS - 1, classes + classes * (classes - 1) // 2 + 1)
    assert set().union(*many.classes) == set(range(classes))
