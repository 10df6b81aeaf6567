"""Where iteration times come from: the pack, else what was fitted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.core import InputError
from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.simulator.sources import CPU_SEQUENCES, Source


def deployment(model: str, quantization: str, gpu: str = "h100", engine: str = "", version: str = "") -> Deployment:
    return Deployment(
        Model.named(model, "test"),
        Quantization.parse(quantization, "test"),
        Gpu.named(gpu, "test"),
        1,
        engine,
        version,
    )


def test_the_packs_own_times_come_first() -> None:
    found = Source("trtllm-composed", ("llama-2-7b",)).times_of(deployment("llama-2-7b", "W4A16"))
    assert found.deployment.engine == "trtllm"
    assert found.deployment.engine_version
    assert found.provenance.startswith("kernel-composed")
    assert not found.warning


@pytest.mark.parametrize(
    ("wanted", "level"),
    [
        (deployment("llama-2-7b", "W4A16", engine="trtllm", version="9.9"), "deployment of trtllm"),
        (deployment("qwen3-8b", "W4A16"), "GPU, engine and quantization"),
        (deployment("qwen3-8b", "W3A16-GPTQ"), "GPU, engine and arithmetic"),
        (deployment("qwen3-8b", "FP16", gpu="t4"), "data sheet"),
    ],
)
def test_what_it_lacks_is_predicted_from_the_nearest(wanted: Deployment, level: str) -> None:
    found = Source("trtllm-composed", (wanted.model.name,)).times_of(wanted)
    assert f"predicted from its {level}" in found.warning
    assert level in found.provenance
    assert (found.grid.time_s[1:, 1:] > 0).all()
    assert replace(found.deployment, engine=wanted.engine, engine_version=wanted.engine_version) == wanted


def test_a_cpu_needs_loads() -> None:
    source = Source("llamacpp-cpu", ("smollm2-135m",))
    found = source.times_of(deployment("smollm2-135m", "Q4_0", "cpu"))
    assert found.grid.batches[-1] == CPU_SEQUENCES
    assert found.deployment.engine == "llamacpp"
    with pytest.raises(InputError, match="neither step times nor loads of smollm2-135m W4A16 CPU x1 under llamacpp"):
        source.times_of(deployment("smollm2-135m", "W4A16", "cpu", "llamacpp"))
