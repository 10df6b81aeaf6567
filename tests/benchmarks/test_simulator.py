"""How fast and in how much memory a long trace is simulated: run with ``pytest tests/benchmarks/test_simulator.py -s``.

The Azure chat trace, one hour of it repeated, through one Llama-3.1-8B in 16 bits on an H100, whose context takes every
request of it. Of the peers on PyPI, ``vllm-sr-sim`` is timed in the same run where it is importable; ``vidur`` 0.0.26
carries no profiles (it downloads them from Hugging Face) and cannot run without a network.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.measure.load.traces import read_trace
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.simulator.grids import grid_of
from qplan.models.simulator.replica import Replica, default_batching
from qplan.models.simulator.simulation import Simulation, simulate
from qplan.models.simulator.summary import Summary
from qplan.models.simulator.traffic import Traffic
from qplan.profiles.packs import read_pack

pytestmark = pytest.mark.model_figures

AZURE = Path(__file__).parents[2] / "../shared/data/azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
HERE = Path(__file__).resolve()
TARGET_PER_S = 300_000
REPEATS = 52  # a million requests


def replica(*, chunked_prefill: bool = True) -> Replica:
    found = profiled(read_pack("trtllm-composed", models=["llama-3.1-8b"], columns=COLUMNS).table, "trtllm-composed")
    assert found is not None
    names = [str(deployment) for deployment in found.deployments]
    index = names.index("llama-3.1-8b BF16 H100-SXM5-80GB x1")
    times = grid_of(found.steps, index)
    batching = replace(default_batching(times), chunked_prefill=chunked_prefill)
    return Replica.of(found.deployments[index], times, batching)


@cache
def hour() -> Traffic:
    if not AZURE.exists():
        pytest.skip(f"the Azure trace is not at {AZURE.name} beside the checkout")
    trace = read_trace(AZURE)
    return Traffic(trace.times_s, trace.input_tokens, trace.output_tokens)


def repeated(times: int, speed_up: float = 1.0) -> Iterator[Traffic]:
    """The hour again and again, in pieces."""
    one = hour()
    length_s = float(one.arrivals_s[-1]) + 0.1
    for n in range(times):
        yield replace(one, arrivals_s=(one.arrivals_s + n * length_s) / speed_up)


def timed(served_by: Replica, times: int, speed_up: float) -> tuple[int, float, Summary, Simulation]:
    """Return requests, CPU seconds of simulating alone, and what came of it."""
    simulation, summary, took_s, requests = Simulation([served_by]), Summary(), 0.0, 0
    for part in repeated(times, speed_up):
        start = time.process_time()
        done = simulation.offer(part)
        took_s += time.process_time() - start
        summary.add(done)
        requests += len(part)
    start = time.process_time()
    done = simulation.finish()
    took_s += time.process_time() - start
    summary.add(done)
    return requests, took_s, summary, simulation


def test_requests_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "\n| engine | speed-up | requests | CPU s | requests/s | busy | TTFT p50 | TPOT p50 | refused |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    rates = {}
    for chunked in (True, False):
        served_by = replica(chunked_prefill=chunked)
        simulate(hour().part(0, 100), [served_by])  # compiled, or read from numba's cache
        for speed_up in (0.5, 1.0, 2.0):
            requests, took_s, summary, simulation = timed(served_by, REPEATS, speed_up)
            rates[chunked, speed_up] = requests / took_s
            use, latency = simulation.use(), summary.latencies
            lines.append(
                f"| {'chunked' if chunked else 'whole prompts'} | {speed_up:g} | {requests:,} | {took_s:.2f} | "
                f"{requests / took_s:,.0f} | {use.replicas[0].busy_s / use.end_s:.0%} | "
                f"{latency['ttft'].percentile(50) * 1e3:.0f} ms | {latency['tpot'].percentile(50) * 1e3:.1f} ms | "
                f"{summary.rejected / summary.requests:.1%} |"
            )
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    assert rates[True, 1.0] >= TARGET_PER_S


def test_ratio_to_a_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    reference = _reference()
    served_by, traffic = replica(), hour().part(0, 1500)
    simulate(traffic, [served_by])
    plain = _plain(reference, served_by)
    start = time.process_time()
    expected, engine = _serve(reference, plain, traffic, served_by)
    plain_s = time.process_time() - start
    start = time.process_time()
    served = simulate(traffic, [served_by])
    took_s = time.process_time() - start
    ends = np.array([one.end_s - one.arrival_s for one in expected])
    np.testing.assert_allclose(served.e2e_s, ends, rtol=1e-9)
    ratio = (len(traffic) / took_s) / (len(traffic) / plain_s)
    with capsys.disabled():
        print(  # noqa: T201
            f"\nplain Python, {len(engine.iterations):,} iterations one by one: {len(traffic) / plain_s:,.0f} "
            f"requests/s; the simulator, from the same {len(traffic):,} requests: {len(traffic) / took_s:,.0f}; "
            f"ratio {ratio:,.0f}"
        )
    assert ratio > 20


def test_ratio_to_vllm_sr_sim(capsys: pytest.CaptureFixture[str]) -> None:
    """Its model is coarser: a request gets its whole time when it starts, from the batch of that moment."""
    peer = pytest.importorskip("fleet_sim", reason="vllm-sr-sim is not installed")
    traffic, served_by = hour(), replica()
    columns = zip(*(values.tolist() for values in _columns(traffic)), strict=True)
    arrivals = [(at, peer.Request(row, at, given, asked)) for row, (at, given, asked) in enumerate(columns)]
    fleet = peer.Fleet(peer.FleetConfig([peer.PoolConfig("one", peer.H100_80GB, 1, 16384)]))
    start = time.process_time()
    result = fleet.run(arrivals)
    peer_s = time.process_time() - start
    assert len(result.completed) == len(traffic)
    simulate(traffic.part(0, 100), [served_by])
    start = time.process_time()
    served = simulate(traffic, [served_by])
    took_s = time.process_time() - start
    assert not np.isnan(served.e2e_s).any()
    with capsys.disabled():
        print(  # noqa: T201
            f"\nvllm-sr-sim, the hour on one H100 of its own profile: {len(traffic) / peer_s:,.0f} requests/s; "
            f"the simulator: {len(traffic) / took_s:,.0f}; ratio {peer_s / took_s:.1f}"
        )
    assert took_s < peer_s


MEASURE = """
import resource, sys
sys.path.insert(0, {folder!r})
import test_simulator as benchmark
served_by = benchmark.replica()
benchmark.timed(served_by, 1, 1.0)
benchmark.timed(served_by, {times}, 1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_flat_in_trace_length(capsys: pytest.CaptureFixture[str]) -> None:
    hour()
    peaks = {}
    for times in (5, 50):
        program = MEASURE.format(folder=str(HERE.parent), times=times)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        peaks[times] = int(done.stdout) / 1024
    with capsys.disabled():
        print(  # noqa: T201
            f"\npeak memory: {peaks[5]:.1f} MiB for {5 * len(hour()):,} requests, "
            f"{peaks[50]:.1f} MiB for ten times as many"
        )
    assert peaks[50] < 1.05 * peaks[5]


def _columns(traffic: Traffic) -> tuple[Any, ...]:
    return traffic.arrivals_s, traffic.input_tokens, traffic.output_tokens


def _reference() -> Any:
    """The step-by-step engine of the tests."""
    path = HERE.parents[1] / "models" / "simulator" / "conftest.py"
    spec = importlib.util.spec_from_file_location("step_by_step_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _plain(reference: Any, served_by: Replica) -> type:
    """That engine with plain numbers in place of arrays where it reads the grid, so that it is as fast as a loop is."""
    from bisect import bisect_right

    grid = served_by.times
    p_axis, b_axis, c_axis = (axis.tolist() for axis in (grid.prefill_tokens, grid.batches, grid.context_tokens))
    times = grid.time_s.tolist()

    def locate(axis: list[float], at: float) -> tuple[int, float]:
        left = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
        return left, (at - axis[left]) / (axis[left + 1] - axis[left])

    class Plain(reference.Engine):  # type: ignore[misc]
        def pass_time(self, chunks: list[tuple[Any, int]], decoding: list[Any]) -> None:
            batch = len(decoding)
            context = max(sum(one.computed for one in decoding) / batch if batch else 0.0, c_axis[0])
            p, u = locate(p_axis, float(sum(chunk for _, chunk in chunks)))
            b, v = locate(b_axis, float(batch))
            c, w = locate(c_axis, context)
            total = 0.0
            for dp, wp in ((0, 1 - u), (1, u)):
                for db, wb in ((0, 1 - v), (1, v)):
                    row = times[p + dp][b + db]
                    total += wp * wb * ((1 - w) * row[c] + w * row[c + 1])
            self.now_s += total
            self.busy_s += total
            self.iterations.append(())

    return Plain


def _serve(reference: Any, engine: type, traffic: Traffic, served_by: Replica) -> tuple[list[Any], Any]:
    ours, reference.Engine = reference.Engine, engine
    try:
        expected, ran = reference.step_by_step(traffic, served_by)
        return expected, ran
    finally:
        reference.Engine = ours
