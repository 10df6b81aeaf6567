"""What physics and literature say, looked up in the shipped pack."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from qplan.core import Gpu, Model, Quantization, Slo, Workload
from qplan.models.profiled import COLUMNS, Profiled, profiled
from qplan.models.sharing import Replicas, SharingModel
from qplan.profiles.packs import read_pack

PACK = "trtllm-composed"
GPUS = ("A100-SXM4-80GB", "H100-SXM5-80GB", "H200-SXM", "L40S")


@cache
def shipped(model: str) -> Profiled:
    found = profiled(read_pack(PACK, models=[model], columns=COLUMNS).table, PACK)
    assert found is not None
    return found


def index(model: str, quantization: str, gpu: str, tp: int) -> int:
    wanted = (Quantization.parse(quantization), Gpu.named(gpu), tp)
    return [(d.quantization, d.gpu, d.tp) for d in shipped(model).deployments].index(wanted)


def decode_s(model: str, quantization: str, gpu: str, tp: int, batch: int, context: float = 512.0) -> float:
    steps = shipped(model).steps
    row = steps.decode_by_batch(context)[index(model, quantization, gpu, tp)]
    return float(np.interp(batch, steps.batches, row))


def serving(model: str, *kinds: tuple[str, str, int]) -> SharingModel:
    rows = [index(model, *kind) for kind in kinds]
    found = shipped(model)
    return SharingModel.of([found.deployments[row] for row in rows], found.steps.take(np.array(rows)))


def chat() -> Workload:
    workload = Workload.named("chat")
    assert workload is not None
    return workload


def test_int4_weights_win_at_low_load_and_not_at_high_on_a100() -> None:
    def speed_up(batch: int) -> float:
        return decode_s("llama-2-13b", "BF16", "a100", 1, batch) / decode_s("llama-2-13b", "W4A16", "a100", 1, batch)

    assert speed_up(1) > 2
    assert speed_up(256) < 1.1


def test_int8_activations_win_at_high_load_too_on_a100() -> None:
    ratio = decode_s("llama-2-13b", "W4A16", "a100", 1, 256) / decode_s("llama-2-13b", "W8A8-INT", "a100", 1, 256)
    assert ratio > 1.05


def test_fp8_is_faster_than_16_bits_on_h100_at_every_batch() -> None:
    for batch in (1, 16, 128, 256):
        fp8, bf16 = (decode_s("llama-2-13b", name, "h100", 1, batch) for name in ("W8A8-FP", "BF16"))
        assert fp8 < bf16, batch


def test_no_deployment_of_the_pack_runs_what_its_gpu_refuses() -> None:
    for model in ("llama-2-7b", "llama-2-70b", "llama-3.1-8b"):
        for deployment in shipped(model).deployments:
            assert deployment.quantization.refusal(deployment.gpu) is None, deployment


def test_70b_at_16_bits_is_in_no_80_gib_gpu_alone() -> None:
    for gpu in ("a100", "h100"):
        with pytest.raises(ValueError, match="is not in list"):
            index("llama-2-70b", "BF16", gpu, 1)
        assert index("llama-2-70b", "BF16", gpu, 2) >= 0


def test_more_gpus_are_faster_over_nvlink() -> None:
    for gpu in ("a100", "h100", "h200"):
        times = [decode_s("llama-2-70b", "BF16", gpu, tp, 64) for tp in (2, 4, 8)]
        assert times == sorted(times, reverse=True)


def test_h200_is_never_slower_than_h100() -> None:
    for quantization in ("BF16", "W8A8-FP", "W4A16"):
        for batch in (1, 64, 256):
            h200, h100 = (decode_s("llama-3.1-8b", quantization, gpu, 1, batch) for gpu in ("h200", "h100"))
            assert h200 <= h100 * 1.02


def test_a_decode_step_is_no_faster_than_its_weights_can_be_read() -> None:
    for model in ("llama-2-13b", "llama-2-70b"):
        found = shipped(model)
        for deployment, row in zip(found.deployments, found.steps.decode_s, strict=True):
            floor = deployment.weight_bytes / deployment.tp / (deployment.gpu.bandwidth_tb_s * 1e12)
            assert row.min() > 0.95 * floor, deployment


def test_fp8_at_tp4_carries_most_of_what_16_bits_need_tp8_for() -> None:
    """The study's claim (arXiv 2508.16712): W8A8KV8-FP at TP4 can replace FP16 at TP8.

    The pack says: within TTFT 1 s and TPOT 50 ms at p90 on H100, half the GPUs carry 80 % of the chat load.
    """
    model = serving("llama-2-70b", ("W8A8KV8-FP", "h100", 4), ("BF16", "h100", 8))
    half, full = model.saturation_qps(chat(), [Slo("ttft", 1.0, 90), Slo("tpot", 0.05, 90)])
    assert 0.7 < half / full < 1.0


def test_percentiles_of_shipped_deployments_never_fall_with_load() -> None:
    kinds = [("BF16", gpu, 2) for gpu in GPUS]
    model = serving("llama-2-13b", *kinds)
    stable = model.saturation_qps(chat(), ())
    loads: list[Replicas] = [model.at(chat(), stable * share) for share in (0.01, 0.2, 0.5, 0.8, 0.95, 0.99)]
    for metric in ("ttft", "tpot", "itl", "e2e"):
        for percentile in (50, 90, 99):
            curve = np.array([replicas.percentile(metric, percentile) for replicas in loads])
            assert (np.diff(curve, axis=0) >= -1e-9 * curve[1:]).all(), (metric, percentile)


def test_every_shipped_model_is_in_the_catalogue() -> None:
    assert {d.model for d in shipped("codellama-34b").deployments} == {Model.named("codellama-34b")}
