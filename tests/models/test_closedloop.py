from __future__ import annotations

import numpy as np
import pytest

from qplan.models.closedloop import closed_loop
from qplan.models.steptimes import StepTimes

D0, D1, P = 10e-3, 0.2e-3, 30e-3


def steps() -> StepTimes:
    batches = np.array([1.0, 64.0])
    decode = np.repeat((D0 + D1 * batches)[None, :, None], 2, axis=2)
    return StepTimes(np.array([16.0, 4096.0]), np.full((1, 2), P), batches, np.array([16.0, 8192.0]), decode)


def simulate(concurrency: int, outputs: int, requests: int) -> tuple[float, float]:
    """Keep about `concurrency` requests in flight; each next one comes a random moment after another has ended."""
    rng = np.random.default_rng(3)

    def request(at: float) -> tuple[float, int]:
        return at + rng.exponential(0.1), int(rng.integers(outputs // 2, outputs * 3 // 2))

    coming = [request(0.0) for _ in range(concurrency)]
    running: list[list[float]] = []  # came, first token, steps left, steps
    now = 0.0
    done: list[tuple[float, float]] = []
    while len(done) < requests:
        coming.sort()
        if coming and coming[0][0] <= now:
            came, tokens = coming.pop(0)
            now += P
            running.append([came, now, tokens - 1, tokens - 1])
        elif running:
            now += D0 + D1 * len(running)
            for one in running:
                one[2] -= 1
            for one in [one for one in running if one[2] <= 0]:
                done.append((one[1] - one[0], (now - one[1]) / one[3]))
                running.remove(one)
                coming.append(request(now))
        else:
            now = coming[0][0]
    seen = np.array(done[len(done) // 5 :])
    return float(seen[:, 0].mean()), float(seen[:, 1].mean())


@pytest.mark.parametrize("concurrency", [1, 8, 24])
def test_it_agrees_with_a_simulated_closed_loop(concurrency: int) -> None:
    ttft, tpot = closed_loop(steps(), 500, 200, concurrency)
    seen_ttft, seen_tpot = simulate(concurrency, 200, 3000)
    assert tpot[0] == pytest.approx(seen_tpot, rel=0.03)
    assert ttft[0] == pytest.approx(seen_ttft, rel=0.1)
