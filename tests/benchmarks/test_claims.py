"""What the shipped pack says of the studies' claims: run with ``pytest tests/benchmarks -s``."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core import Gpu, Quantization, Slo, Workload
from qplan.measure.findings.claims import findings
from qplan.measure.findings.contrasts import Verdict
from qplan.measure.findings.points import measured_loads
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.sharing import SharingModel
from qplan.profiles.packs import read_pack
from qplan.report.findings import print_findings

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


def test_a_compressed_cache_costs_latency_on_the_measured_pack(capsys: pytest.CaptureFixture[str]) -> None:
    """What 317 loads of llama.cpp on a CPU core say; without energy, and in batches of four at most."""
    loads = measured_loads(read_pack("llamacpp-cpu").table)
    found = findings(loads)
    with capsys.disabled():
        print_findings("llamacpp-cpu", loads, found, as_json=False)
    told = {one.key: one for one in found}
    assert told["kv-cache-and-latency"].verdict is Verdict.HOLDS
    assert all(parts[0].effect.low > 1 for parts in told["kv-cache-and-latency"].average.values())
    assert told["short-outputs-and-ttft"].verdict is Verdict.CONTRADICTED  # quantized prompts are faster there
    assert told["energy-and-load"].cannot_tell is not None
