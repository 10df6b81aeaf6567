"""What is composed: names that qplan knows, deployments that can exist, a grid the worker can read."""

from __future__ import annotations

import json

import pytest

from qplan.core import Gpu, Model, Quantization
from qplan.profiles.compose.request import MODELS, SCHEMES, SYSTEMS, Scheme, System, candidates, worker_request


def test_names_are_canonical() -> None:
    assert [str(Quantization.parse(scheme.quantization)) for scheme in SCHEMES] == [s.quantization for s in SCHEMES]
    assert [Gpu.named(system.gpu).name for system in SYSTEMS] == [s.gpu for s in SYSTEMS]
    assert [Model.named(name).name for name in MODELS] == list(MODELS)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.quantization)
def test_tables_are_those_of_the_quantization(scheme: Scheme) -> None:
    quantization = Quantization.parse(scheme.quantization)
    bits = {"float16": 16, "int8_wo": 8, "int4_wo": 4, "sq": 8, "fp8": 8}
    assert bits[scheme.gemm] == round(quantization.bits_per_weight)
    assert bits[scheme.kv_cache] == quantization.kv_bits_per_value


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.gpu)
def test_deployments_are_those_that_the_gpu_has_kernels_for(system: System) -> None:
    found = candidates(system)
    gpu = Gpu.named(system.gpu)
    named = {c.scheme.quantization for c in found}
    for scheme in SCHEMES:
        quantization = Quantization.parse(scheme.quantization)
        if scheme.quantization in named:
            assert quantization.refusal(gpu) is None
    assert len(found) == len(set(found)) == len(named) * len(MODELS) * 4
    assert ("W8A8-FP" in named) == (system.gpu != "A100-SXM4-80GB")


def test_request_is_json_of_one_gpu() -> None:
    request = worker_request(candidates(SYSTEMS[0]))
    assert json.loads(json.dumps(request))["system"] == "a100_sxm"
    with pytest.raises(ValueError, match="unpack"):
        worker_request((candidates(SYSTEMS[0])[0], candidates(SYSTEMS[1])[0]))
