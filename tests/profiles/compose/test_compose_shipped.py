"""The pack that ships obeys physics and tells what the studies of quantization tell."""

from __future__ import annotations

import json
from collections import defaultdict
from importlib import resources
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qplan.profiles.compose.card import card
from qplan.profiles.compose.request import SYSTEMS, candidates
from qplan.profiles.schema import validate

pytestmark = pytest.mark.slow  # it is about the data

A100, H100, H200, L40S = (system.gpu for system in SYSTEMS)
Times = dict[tuple[str, str, str, int, str], dict[tuple[int, float], float]]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    with resources.as_file(resources.files("qplan.profiles.packs") / "trtllm-composed.parquet") as path:
        return pq.read_table(path)


@pytest.fixture(scope="module")
def times(table: pa.Table) -> Times:
    """Times of deployment and phase by batch and length."""
    found: Times = defaultdict(dict)
    names = ("model", "quantization", "gpu", "tp", "phase", "batch", "input_tokens", "context_tokens", "step_time_s")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    for model, quantization, gpu, tp, phase, batch, tokens, context, seconds in rows:
        if seconds is not None:
            length = tokens if phase == "prefill" else context
            found[model, quantization, gpu, tp, phase][batch, length] = seconds
    return found


def test_is_valid_and_counted(table: pa.Table) -> None:
    validate(table, "trtllm-composed")
    shipped = json.loads((resources.files("qplan.profiles.packs") / "trtllm-composed.json").read_text())
    assert shipped["rows"] == table.num_rows
    assert shipped["oom_deployments"] == table["status"].to_pylist().count("oom")
    assert list(shipped) == list(card([], shipped["date"]))
    assert shipped["notes"] == card([], shipped["date"])["notes"]


def test_has_every_deployment(table: pa.Table) -> None:
    names = ("model", "quantization", "gpu", "tp")
    found = set(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert found == {
        (c.model.name, c.scheme.quantization, system.gpu, c.tp) for system in SYSTEMS for c in candidates(system)
    }


def test_times_rise_with_batch_and_length(times: Times) -> None:
    for grid in times.values():
        for axis in (0, 1):
            lanes: dict[float, list[tuple[float, float]]] = defaultdict(list)
            for point, seconds in grid.items():
                lanes[point[1 - axis]].append((point[axis], seconds))
            for lane in lanes.values():
                ordered = [seconds for _, seconds in sorted(lane)]
                assert ordered == sorted(ordered)


def test_no_decode_is_faster_than_reading_the_weights(times: Times) -> None:
    """BF16 weights over the bandwidth of each GPU's data sheet bound the step from below."""
    bandwidth = {A100: 2.039e12, H100: 3.35e12, H200: 4.8e12, L40S: 0.864e12}
    parameters = {"llama-2-7b": 6.6e9, "llama-2-13b": 12.8e9, "llama-2-70b": 68.7e9, "llama-3.1-8b": 7.5e9}
    for gpu, bytes_per_s in bandwidth.items():
        for model, count in parameters.items():
            for tp in (1, 2, 4, 8):
                grid = times.get((model, "BF16", gpu, tp, "decode"))
                if grid:
                    assert grid[1, 16] > 2 * count / tp / bytes_per_s


def test_int4_wins_at_low_load_on_a100_and_not_at_high(times: Times) -> None:
    bf16, int4, int8 = (times["llama-2-13b", q, A100, 1, "decode"] for q in ("BF16", "W4A16", "W8A8-INT"))
    assert int4[1, 128] < 0.5 * bf16[1, 128]
    assert int4[512, 64] > 0.95 * bf16[512, 64]
    assert int8[512, 64] < 0.8 * bf16[512, 64]


def test_fp8_halves_prefill_of_a_large_model_on_h100_and_never_runs_on_a100(times: Times) -> None:
    bf16, fp8 = (times["llama-2-13b", q, H100, 1, "prefill"] for q in ("BF16", "W8A8-FP"))
    assert fp8[1, 4096] < 0.75 * bf16[1, 4096]
    assert not [key for key in times if key[2] == A100 and "FP" in key[1]]


def test_70b_in_bf16_does_not_fit_one_gpu_of_80_gib(table: pa.Table, times: Times) -> None:
    rows = table.select(["model", "quantization", "gpu", "tp", "status", "reason"]).to_pylist()
    for gpu in (A100, H100):
        (row,) = [
            r for r in rows if (r["model"], r["quantization"], r["gpu"], r["tp"]) == ("llama-2-70b", "BF16", gpu, 1)
        ]
        assert row["status"] == "oom"
        assert row["reason"].startswith("128.5 GiB of weights")
        assert times["llama-2-70b", "BF16", gpu, 4, "decode"]


def test_tensor_parallelism_pays_for_a_large_model_less_than_it_costs(times: Times) -> None:
    for gpu in (A100, H100, H200):
        steps = [
            times["llama-2-70b", "BF16", gpu, tp, "decode"][16, 1024] for tp in (2, 4, 8) if (gpu, tp) != (A100, 2)
        ]
        for one, double in pairwise(steps):
            assert one / 2 < double < one


def test_an_fp8_cache_holds_more_sequences(times: Times) -> None:
    def most(quantization: str) -> int:
        grid = times["llama-2-13b", quantization, H100, 1, "decode"]
        return max(batch for batch, context in grid if context == 1024)

    # 52 GiB hold 65 sequences of 1,024 tokens at 0.8 MiB a token, and twice as many at half of that.
    assert (most("BF16"), most("BF16-KV8-FP")) == (64, 128)


def test_decode_on_h200_is_faster_than_on_h100_by_its_bandwidth(times: Times) -> None:
    ratio = (
        times["llama-2-13b", "BF16", H100, 1, "decode"][1, 128]
        / times["llama-2-13b", "BF16", H200, 1, "decode"][1, 128]
    )
    assert 1.2 < ratio < 4.8 / 3.35 + 0.05
