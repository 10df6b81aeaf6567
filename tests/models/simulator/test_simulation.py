"""The simulator against plain Python that runs every iteration, the analytic model, and laws that hold for any run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qplan.core import InputError, Workload
from qplan.models.iterations import IterationGrid
from qplan.models.sharing import SharingModel
from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.grids import grid_of
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.simulation import Served, Simulation, run, simulate
from qplan.models.simulator.traffic import Traffic, poisson
from qplan.models.steptimes import StepTimes

Make = Callable[..., Replica]
StepByStep = Callable[[Traffic, Replica], tuple[list[Any], Any]]
MadeTraffic = Callable[..., Traffic]


@pytest.mark.parametrize("chunked", [True, False])
def test_it_equals_running_every_iteration(
    chunked: bool, made_up: Make, step_by_step: StepByStep, traffic_of: MadeTraffic
) -> None:
    preemptions = refused = 0
    for seed in range(8):
        random = np.random.default_rng([seed, chunked])
        batching = Batching(
            max_batched_tokens=int(random.choice([40, 64, 256, 2000])),
            max_sequences=int(random.integers(1, 33)),
            block_tokens=int(random.choice([1, 4, 16, 32])),
            chunked_prefill=chunked,
        )
        replica = made_up(batching, kv_tokens=int(random.choice([380, 440, 600, 100_000])), seed=seed)
        traffic = traffic_of(seed, 25, float(random.choice([1.0, 10.0, 60.0])))
        expected, engine = step_by_step(traffic, replica)
        served = simulate(traffic, [replica])
        use = served.use.replicas[0]
        for seen, name in ((served.ttft_s, "first_s"), (served.e2e_s, "end_s")):
            times = np.array([getattr(one, name) - one.arrival_s for one in expected])
            np.testing.assert_allclose(seen, times, rtol=1e-9)
        tpot = [(one.end_s - one.first_s) / (one.output - 1) if one.output > 1 else np.nan for one in expected]
        np.testing.assert_allclose(served.tpot_s, tpot, rtol=1e-8)
        assert served.preemptions.tolist() == [one.preemptions for one in expected]
        assert use.busy_s == pytest.approx(engine.busy_s, rel=1e-9)
        assert use.energy_j == pytest.approx(engine.energy_j + 60 * (served.use.end_s - engine.busy_s), rel=1e-9)
        preemptions += int(served.preemptions.sum())
        refused += int(np.isnan(served.e2e_s).sum())
    assert preemptions >= 3
    assert refused >= 2


def test_a_lone_request_takes_its_prefill_and_its_steps(made_up: Make) -> None:
    replica = made_up(Batching(2000, 8, 16))
    served = simulate(Traffic(np.array([3.0]), np.array([300]), np.array([50])), [replica])
    cached = np.arange(300.0, 349.0)
    steps = replica.times.at(np.zeros(49), np.ones(49), cached)
    prefill = replica.times.at(np.array([300.0]), np.zeros(1), np.zeros(1))[0]
    assert served.ttft_s[0] == pytest.approx(prefill, rel=1e-12)
    assert served.e2e_s[0] == pytest.approx(prefill + steps.sum(), rel=1e-12)
    assert served.tpot_s[0] == pytest.approx(steps.mean(), rel=1e-12)


def test_chunks_of_a_lone_prompt_fill_the_budget(made_up: Make) -> None:
    replica = made_up(Batching(128, 8, 16))
    served = simulate(Traffic(np.zeros(1), np.array([300]), np.array([1])), [replica])
    chunks = replica.times.at(np.array([128.0, 128.0, 44.0]), np.zeros(3), np.zeros(3))
    assert served.ttft_s[0] == pytest.approx(chunks.sum(), rel=1e-12)
    assert np.isnan(served.tpot_s[0])


def affine() -> StepTimes:
    tokens, batches, contexts = np.array([16.0, 16384.0]), np.array([1.0, 512.0]), np.array([16.0, 8192.0])
    decode = np.repeat((10e-3 + 0.2e-3 * batches)[None, :, None], 2, axis=2)
    return StepTimes(tokens, (2e-3 + 40e-6 * tokens)[None], batches, contexts, decode)


@pytest.mark.parametrize("chunked", [True, False])
def test_an_unloaded_replica_is_the_analytic_model(chunked: bool) -> None:
    model = SharingModel(affine(), np.array([1e6]), np.array([8192.0])).at(
        Workload.fixed("isl=500,osl=101"), np.array([1e-9])
    )
    replica = Replica("affine", grid_of(affine(), 0), 10_000, 8192, Batching(512, 8, 16, chunked))
    served = simulate(Traffic(np.array([0.0, 1e3]), np.array([500, 500]), np.array([101, 101])), [replica])
    for metric, seen in (("ttft", served.ttft_s), ("tpot", served.tpot_s), ("e2e", served.e2e_s)):
        assert seen == pytest.approx(model.mean(metric)[0], rel=1e-7)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_means_agree_with_the_analytic_model_of_the_same_engine(share: float) -> None:
    """Within the 10 % that the model claims up to 80 % of the stable rate, where whole prompts come first."""
    workload = Workload.of("mixed", "chat", [(100, 40, 0.4), (400, 120, 0.4), (1500, 200, 0.2)], "made up")
    steps = affine()
    model = SharingModel(steps, np.array([1e6]), np.array([8192.0]))
    rate = model.saturation_qps(workload, ()) * share
    (traffic,) = poisson(workload, float(rate[0]), requests=40_000, seed=1)
    # A small budget: nearly one prompt an iteration, as in the model.
    batching = Batching(512, 512, 16, chunked_prefill=False)
    served = simulate(traffic, [Replica("affine", grid_of(steps, 0), 1_000_000, 8192, batching)])
    loaded = model.at(workload, rate)
    warm = slice(8000, None)
    assert loaded.mean("tpot")[0] == pytest.approx(np.nanmean(served.tpot_s[warm]), rel=0.1)
    assert loaded.mean("e2e")[0] == pytest.approx(served.e2e_s[warm].mean(), rel=0.1)
    assert loaded.mean("ttft")[0] == pytest.approx(served.ttft_s[warm].mean(), rel=0.1)
    # Little's law, of the simulation itself.
    in_flight = served.e2e_s.sum() / served.use.end_s
    waiting = (served.e2e_s.sum() - served.use.replicas[0].running_s) / served.use.end_s
    assert 0 <= waiting < in_flight


@pytest.mark.parametrize("dispatch", list(Dispatch))
def test_what_goes_in_comes_out(dispatch: Dispatch, made_up: Make, traffic_of: MadeTraffic) -> None:
    fleet = [made_up(seed=1, weight=2.0), made_up(Batching(64, 4, 8, chunked_prefill=False), kv_tokens=900, seed=2)]
    traffic = traffic_of(5, 3000, 30.0)
    served = simulate(traffic, fleet, dispatch, seed=3)
    done = ~np.isnan(served.e2e_s)
    assert done.all()
    assert served.preemptions.sum() > 0
    assert (served.ttft_s > 0).all()
    assert (served.e2e_s >= served.ttft_s).all()
    uses = served.use.replicas
    assert sum(use.output_tokens for use in uses) == pytest.approx(traffic.output_tokens.sum())
    assert sum(use.requests for use in uses) == len(traffic)
    assert np.bincount(served.replica).tolist() == [use.requests for use in uses]
    for n, use in enumerate(uses):
        residence = served.e2e_s[served.replica == n].sum()
        assert 0 < use.running_s <= residence * (1 + 1e-9)
        widths = np.minimum(use.bin_s, served.use.end_s - use.bin_s * np.arange(len(use.busy)))
        assert (use.busy * widths).sum() == pytest.approx(use.busy_s)
        assert use.power_w is not None
        assert (use.power_w * widths).sum() == pytest.approx(use.energy_j)
        assert use.busy.max() <= 1 + 1e-9
    assert served.use.energy_j == pytest.approx(sum(use.energy_j or 0 for use in uses))


def same(one: Served, other: Served) -> bool:
    names = ("ttft_s", "tpot_s", "e2e_s", "replica", "preemptions")
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in names)


def test_the_same_seed_gives_the_same_result(made_up: Make, traffic_of: MadeTraffic) -> None:
    fleet, traffic = [made_up(seed=1), made_up(seed=2)], traffic_of(1, 500, 30.0)
    first = simulate(traffic, fleet, Dispatch.RANDOM, seed=1)
    assert same(first, simulate(traffic, fleet, Dispatch.RANDOM, seed=1))
    assert not same(first, simulate(traffic, fleet, Dispatch.RANDOM, seed=2))


def test_requests_may_be_offered_in_pieces(made_up: Make, traffic_of: MadeTraffic) -> None:
    fleet, traffic = [made_up(seed=1), made_up(seed=2)], traffic_of(1, 400, 30.0)
    whole = simulate(traffic, fleet, Dispatch.RANDOM, seed=1)
    pieces = Simulation(fleet, Dispatch.RANDOM, seed=1)
    done = [pieces.offer(traffic.part(at, at + 7)) for at in range(0, 400, 7)]
    done.append(pieces.finish())
    found = np.sort(np.concatenate(done), order="row")
    np.testing.assert_allclose(found["e2e_s"], whole.e2e_s, rtol=1e-9)
    assert sum(map(len, done[:-1])) > 300  # given back as they end, not kept
    with pytest.raises(InputError, match="not in order"):
        pieces.offer(traffic)


def test_least_outstanding_spares_the_slow(made_up: Make, traffic_of: MadeTraffic) -> None:
    fast = made_up(seed=1)
    slow = replace(fast, times=replace(fast.times, time_s=fast.times.time_s * 4))
    traffic = traffic_of(1, 2000, 12.0)
    in_turn = simulate(traffic, [fast, slow])
    least = simulate(traffic, [fast, slow], Dispatch.LEAST_OUTSTANDING)
    assert np.bincount(in_turn.replica).tolist() == [1000, 1000]
    assert np.bincount(least.replica)[0] > 1200
    assert np.mean(least.e2e_s) < np.mean(in_turn.e2e_s)


def test_weights_share_the_requests_out(made_up: Make, traffic_of: MadeTraffic) -> None:
    fleet = [made_up(weight=3.0), made_up(weight=1.0)]
    traffic = traffic_of(1, 2000, 3.0)
    assert np.bincount(simulate(traffic, fleet).replica).tolist() == [1500, 500]
    assert np.bincount(simulate(traffic, fleet, Dispatch.RANDOM).replica)[0] == pytest.approx(1500, rel=0.05)


def test_what_cannot_fit_is_refused_and_the_rest_served(made_up: Make) -> None:
    replica = made_up(Batching(256, 8, 16), kv_tokens=320)
    traffic = Traffic(np.zeros(4), np.array([300, 310, 5000, 10]), np.array([21, 12, 1, 5]))
    served = simulate(traffic, [replica])
    assert np.isnan(served.e2e_s).tolist() == [False, True, True, False]


def test_unknown_power_stays_unknown(made_up: Make, traffic_of: MadeTraffic) -> None:
    known = made_up()
    served = simulate(traffic_of(1, 20, 5.0), [known, replace(known, power_w=None, idle_w=None)])
    assert served.use.replicas[0].energy_j is not None
    assert served.use.replicas[1].energy_j is None
    assert served.use.replicas[1].power_w is None
    assert served.use.energy_j is None


def test_no_traffic_takes_no_time(made_up: Make) -> None:
    nothing = Traffic(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    served = run(Simulation([made_up()]), nothing)
    assert len(served.e2e_s) == 0
    assert served.use.end_s == 0
    assert served.use.energy_j == 0


@pytest.mark.parametrize(
    ("arrivals", "inputs", "outputs", "message"),
    [
        ([0.0, 1.0], [1, 1], [1], "differ in number"),
        ([1.0, 0.5], [1, 1], [1, 1], "not in order"),
        ([-1.0, 0.5], [1, 1], [1, 1], "from 0"),
        ([0.0, 0.5], [1, 0], [1, 1], "no input or no output"),
    ],
)
def test_bad_traffic_is_refused(arrivals: list[float], inputs: list[int], outputs: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Traffic(np.array(arrivals), np.array(inputs), np.array(outputs))


def test_bad_replicas_are_refused(made_up: Make) -> None:
    replica = made_up()
    for change, message in (
        ({"kv_tokens": 3}, "holds no block"),
        ({"weight": 0.0}, "weight"),
        ({"idle_w": None}, "power needs both"),
        ({"power_w": np.zeros((1, 1, 1))}, "watts of shape"),
    ):
        with pytest.raises(InputError, match=message):
            replace(replica, **change)
    with pytest.raises(InputError, match="expected a token for each sequence"):
        Batching(8, 16)
    with pytest.raises(InputError, match="block_tokens is 0"):
        Batching(block_tokens=0)
    with pytest.raises(InputError, match="without a replica"):
        Simulation([])


def test_without_numba_the_extra_is_named(made_up: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qplan.models.simulator.kernel", None)
    with pytest.raises(InputError, match=r"needs numba: pip install 'qplan\[models\]'"):
        Simulation([made_up()])


def test_a_mixed_iteration_reads_the_weights_once(steps: StepTimes) -> None:
    grid = grid_of(steps, 0)
    assert isinstance(grid, IterationGrid)

    def at(tokens: float, batch: float, context: float) -> float:
        return float(grid.at(np.array([tokens]), np.array([batch]), np.array([batch * context]))[0])

    prefill, decode = float(steps.prefill_s[0, 3]), float(steps.decode_s[0, 2, 1])
    assert at(1024, 0, 0) == pytest.approx(prefill)
    assert at(0, 16, 512) == pytest.approx(decode)
    assert at(1024, 16, 512) == pytest.approx(prefill + decode - float(steps.decode_s[0, 0, 0]))
    assert at(1, 0, 0) == pytest.approx(float(steps.prefill_s[0, 0]))  # bound by the weights
    assert at(0, 0, 0) == 0


def test_poisson_traffic_is_the_same_at_every_rate() -> None:
    workload = Workload.of("two", "chat", [(100, 10, 0.25), (20, 30, 0.75)], "made up")
    slow, fast = (list(poisson(workload, rate, requests=1000, seed=4, chunk=300)) for rate in (1.0, 10.0))
    assert [len(part) for part in slow] == [300, 300, 300, 100]
    for one, other in zip(slow, fast, strict=True):
        np.testing.assert_allclose(one.arrivals_s, other.arrivals_s * 10)
        assert (one.input_tokens == other.input_tokens).all()
    lengths = np.concatenate([part.input_tokens for part in slow])
    assert (lengths == 100).mean() == pytest.approx(0.25, abs=0.05)
    (timed,) = poisson(workload, 5.0, duration_s=100.0, seed=4)
    assert timed.arrivals_s[-1] < 100
    assert len(timed) == pytest.approx(500, rel=0.15)
    with pytest.raises(InputError, match="rate"):
        next(poisson(workload, 0.0, requests=1))
