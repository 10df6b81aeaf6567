"""What the shipped pack says of the studies' claims: run with ``pytest tests/benchmarks -s``."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core import Gpu, Quantization, Slo, Workload
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.sharing import SharingModel
from qplan.profiles.packs import read_pack

SLOS = [Slo("ttft", 1.0, 90), Slo("tpot", 0.05, 90)]


def test_half_the_gpus_with_fp8_against_16_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """arXiv 2508.16712: W8A8KV8-FP at TP4 can replace FP16 at TP8."""
    found = profiled(read_pack("trtllm-composed", models=["llama-2-70b"], columns=COLUMNS).table, "trtllm-composed")
    assert found is not None
    kinds = [(d.quantization, d.gpu, d.tp) for d in found.deployments]
    lines = ["\n| GPU | workload | W8A8KV8-FP, TP4 | BF16, TP8 | share |", "| --- | --- | --: | --: | --: |"]
    for gpu in ("H100-SXM5-80GB", "H200-SXM"):
        wanted = [(Quantization.parse(name), Gpu.named(gpu), tp) for name, tp in (("W8A8KV8-FP", 4), ("BF16", 8))]
        rows = np.array([kinds.index(kind) for kind in wanted])
        model = SharingModel.of([found.deployments[row] for row in rows], found.steps.take(rows))
        for name in Workload.names():
            workload = Workload.named(name)
            assert workload is not None
            half, full = model.saturation_qps(workload, SLOS)
            assert half > 0
            lines.append(f"| {gpu} | {name} | {half:.1f} | {full:.1f} | {half / full:.0%} |")
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
