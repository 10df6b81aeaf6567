"""Prefill and decode on different replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core import InputError
from qplan.models.simulator.disaggregated import Disaggregated, Transfer
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.simulation import run, simulate
from qplan.models.simulator.traffic import Traffic

Make = Callable[..., Replica]
TRANSFER = Transfer(bandwidth_bytes_per_s=1e6, latency_s=0.25)


def sending(replica: Replica) -> Replica:
    return replace(replica, kv_bytes_per_token=1000.0)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_lone_request_is_prefilled_sent_and_decoded(chunked: bool, made_up: Make) -> None:
    first, then = sending(made_up(Batching(2000, 8), seed=1)), made_up(Batching(256, 8, 16, chunked), seed=2)
    traffic = Traffic(np.array([2.0]), np.array([300]), np.array([50]))
    served = run(Disaggregated([first], [then], TRANSFER), traffic)
    prefill = first.times.at(np.array([300.0]), np.zeros(1), np.zeros(1))[0]
    steps = then.times.at(np.zeros(49), np.ones(49), np.arange(300.0, 349.0)).sum()
    assert served.ttft_s[0] == pytest.approx(prefill, rel=1e-9)
    assert served.e2e_s[0] == pytest.approx(prefill + 0.25 + 300 * 1000 / 1e6 + steps, rel=1e-9)
    assert served.tpot_s[0] == pytest.approx((served.e2e_s[0] - prefill) / 49, rel=1e-9)
    assert served.replica.tolist() == [1]
    assert [use.output_tokens for use in served.use.replicas] == pytest.approx([1, 49])


@pytest.mark.parametrize("chunked", [True, False])
def test_what_goes_in_comes_out_of_two_pools(chunked: bool, made_up: Make, traffic_of: Callable[..., Traffic]) -> None:
    prefill = [sending(made_up(Batching(256, 8), seed=seed)) for seed in (1, 2)]
    decode = [made_up(Batching(64, 8, 16, chunked), kv_tokens=900, seed=seed) for seed in (3, 4)]
    drawn = traffic_of(3, 1500, 25.0)
    prompts = drawn.input_tokens.copy()
    prompts[::100] = 880  # with a long answer it fits no decode replica
    traffic = replace(drawn, input_tokens=prompts)
    whole = run(Disaggregated(prefill, decode, TRANSFER), traffic)
    refused = np.isnan(whole.e2e_s)
    assert 0 < refused.sum() <= 15
    assert (refused == np.isnan(whole.ttft_s)).all()
    assert whole.preemptions.sum() > 0
    assert (whole.e2e_s[~refused] >= whole.ttft_s[~refused]).all()
    # Prefill does not know of decode: as if every answer had one token.
    alone = simulate(replace(traffic, output_tokens=np.ones_like(prompts)), prefill)
    np.testing.assert_array_equal(whole.ttft_s[~refused], alone.ttft_s[~refused])
    single = traffic.output_tokens == 1
    assert single.any()
    np.testing.assert_array_equal(whole.e2e_s[single], alone.e2e_s[single])
    assert (whole.replica[~single] >= 2).all()
    tokens = sum(use.output_tokens for use in whole.use.replicas[2:])
    assert tokens == pytest.approx((traffic.output_tokens[~refused] - 1).sum())

    pieces = Disaggregated(prefill, decode, TRANSFER)
    done = [pieces.offer(traffic.part(at, at + 50)) for at in range(0, 1500, 50)]
    found = np.sort(np.concatenate([*done, pieces.finish()]), order="row")
    np.testing.assert_allclose(found["e2e_s"], whole.e2e_s, rtol=1e-9)


def test_a_faster_link_only_hastens_what_follows_the_first_token(
    made_up: Make, traffic_of: Callable[..., Traffic]
) -> None:
    fleets = [sending(made_up(seed=1))], [made_up(seed=2)]
    traffic = traffic_of(1, 300, 3.0)
    slow, fast = (run(Disaggregated(*fleets, Transfer(rate)), traffic) for rate in (1e6, 1e12))
    np.testing.assert_array_equal(slow.ttft_s, fast.ttft_s)
    assert np.nanmean(fast.tpot_s) < np.nanmean(slow.tpot_s)


def test_bad_disaggregation_is_refused(made_up: Make) -> None:
    with pytest.raises(InputError, match="KV-cache bytes"):
        Disaggregated([made_up()], [made_up()], TRANSFER)
    with pytest.raises(InputError, match="bandwidth"):
        Transfer(0.0)
    with pytest.raises(InputError, match="latency"):
        Transfer(1.0, -1.0)
