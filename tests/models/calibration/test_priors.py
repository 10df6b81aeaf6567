from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core import Deployment, Quantization, Workload
from qplan.core.errors import InputError
from qplan.models.calibration import ClosedLoad, ClosedLoopPrior, OpenLoad, OpenLoopPrior
from qplan.models.closedloop import closed_loop
from qplan.models.profiled import Profiled
from qplan.models.sharing import SharingModel

Loads = Callable[[int], list[ClosedLoad]]


def test_the_parts_of_a_closed_loop_add_up_to_it(profile: Profiled, prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(1)
    found = prior(rows)
    steps = profile.steps.take(np.array([1]))
    expected = [closed_loop(steps, row.input_tokens, row.output_tokens, row.concurrency) for row in rows]
    assert found["ttft"].total == pytest.approx([float(ttft[0]) for ttft, _ in expected])
    assert found["tpot"].total == pytest.approx([float(tpot[0]) for _, tpot in expected])


def test_every_part_but_turnover_grows_with_load(profile: Profiled, prior: ClosedLoopPrior) -> None:
    """Whatever coefficients calibration finds, more load is then never faster; see the module for turnover."""
    deployment, workload = profile.deployments[0], Workload.fixed("isl=1024,osl=256")
    closed = prior([ClosedLoad(deployment, 1024, 256, concurrency) for concurrency in (1, 2, 8, 32, 128, 900)])
    opened = OpenLoopPrior(profile)([OpenLoad(deployment, workload, rate) for rate in (0.01, 0.1, 1, 3, 6, 8)])
    for parts in (*closed.values(), *opened.values()):
        assert np.isfinite(parts.seconds).all()
        steps = np.diff(parts.seconds, axis=0)[:, [name != "turnover" for name in parts.names]]
        assert (steps >= -1e-12).all()


def test_requests_beyond_the_cache_wait_and_do_not_run(profile: Profiled, prior: ClosedLoopPrior) -> None:
    deployment = profile.deployments[0]
    fitting = deployment.memory().kv_tokens // 16384
    rows = [ClosedLoad(deployment, 16000, 384, concurrency) for concurrency in (fitting, 2 * fitting)]
    found = prior(rows)
    assert found["tpot"].seconds[0] == pytest.approx(found["tpot"].seconds[1])
    slots = found["ttft"].seconds[:, found["ttft"].names.index("slots")]
    assert slots[0] == 0
    assert slots[1] == pytest.approx(
        found["tpot"].total[1] * 383 + float(profile.steps.prefill(np.array([16000.0]))[0, 0])
    )


def test_the_engine_is_not_asked_for(profile: Profiled, prior: ClosedLoopPrior, loads: Loads) -> None:
    vllm = [replace(row, deployment=replace(row.deployment, engine="vllm", engine_version="0.12")) for row in loads(0)]
    assert vllm[0].deployment in prior
    assert prior(vllm)["tpot"].total == pytest.approx(prior(loads(0))["tpot"].total)


def test_no_rows_have_parts_all_the_same(prior: ClosedLoopPrior, profile: Profiled) -> None:
    for each in (prior([]), OpenLoopPrior(profile)([])):
        assert each["tpot"].seconds.shape == (0, 4)
        assert each["ttft"].total.tolist() == []


def test_a_deployment_without_step_times_is_named(prior: ClosedLoopPrior, profile: Profiled) -> None:
    absent = Deployment(profile.deployments[0].model, Quantization.parse("W4A16"), profile.deployments[0].gpu)
    assert absent not in prior
    with pytest.raises(InputError, match=r"llama-3\.1-8b W4A16 .*did you mean 'llama-3\.1-8b BF16"):
        prior([ClosedLoad(absent, 512, 64, 4)])


@pytest.mark.parametrize(("outputs", "concurrency"), [(1, 4), (64, 0)])
def test_what_is_no_closed_loop_is_refused(
    prior: ClosedLoopPrior, profile: Profiled, outputs: int, concurrency: int
) -> None:
    with pytest.raises(InputError, match="at least 1 request and 2 tokens"):
        prior([ClosedLoad(profile.deployments[0], 512, outputs, concurrency)])


def test_the_parts_of_an_open_loop_add_up_to_the_means(profile: Profiled) -> None:
    workload = Workload.fixed("isl=1024,osl=256")
    rows = [OpenLoad(profile.deployments[2], workload, rate) for rate in (0.01, 2.0, 8.0)]
    found = OpenLoopPrior(profile)(rows)
    model = SharingModel.of([profile.deployments[2]], profile.steps.take(np.array([2])))
    for metric in ("ttft", "tpot"):
        expected = [float(model.at(workload, np.array([row.rate_qps])).mean(metric)[0]) for row in rows]
        assert found[metric].total == pytest.approx(expected, rel=1e-6)


def test_beyond_saturation_every_part_is_infinite(profile: Profiled) -> None:
    row = OpenLoad(profile.deployments[0], Workload.fixed("isl=1024,osl=256"), 1e4)
    found = OpenLoopPrior(profile)([row])
    assert found["ttft"].total.tolist() == found["tpot"].total.tolist() == [np.inf]


def test_both_loops_name_parts_alike_so_that_lessons_carry_over(profile: Profiled, prior: ClosedLoopPrior) -> None:
    opened = OpenLoopPrior(profile)([])
    assert {metric: parts.names for metric, parts in prior([]).items()} == {
        metric: parts.names for metric, parts in opened.items()
    }


def test_coordinates_count_octaves(profile: Profiled) -> None:
    deployment = profile.deployments[2]
    assert ClosedLoad(deployment, 1024, 256, 8).coordinates == (3, 10, 8, 2)
    assert OpenLoad(deployment, Workload.fixed("isl=1024,osl=256"), 0.5).coordinates == (-1, 10, 8, 2)
