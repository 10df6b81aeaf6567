"""The vLLM adapter on the real engine: opt-in, for vLLM takes gigabytes and minutes.

``QPLAN_TEST_VLLM`` names a ``vllm`` command or the Python of its environment; on a CPU, for instance::

    QPLAN_TEST_VLLM=path/of/env/bin/python pytest tests/measure/engines/test_vllm_real.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qplan.core.quantization import Quantization
from qplan.measure.engines.blocking_http import fetch_json
from qplan.measure.engines.checkpoints_tensors import Tensor, read_header, read_tensors, write_tensors
from qplan.measure.engines.conformance import EngineConformance
from qplan.measure.engines.contract import EngineError, Prepared, Serving
from qplan.measure.engines.own_environment import interpreter
from qplan.measure.engines.readiness import complete
from qplan.measure.engines.vllm import Vllm

VLLM = os.environ.get("QPLAN_TEST_VLLM", "")
DEADLINE_S = 600.0

pytestmark = pytest.mark.skipif(not VLLM, reason="QPLAN_TEST_VLLM does not name a vllm command or its Python")

# The weights that come out of qplan, against those that the format's own library makes of the same checkpoint.
COMPARE = """
import sys
import torch
from safetensors.torch import load_file
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams

plain, made = (load_file(f"{folder}/model.safetensors") for folder in sys.argv[1:3])
bits, group = int(sys.argv[3]), int(sys.argv[4])
strategy = "group" if group else "channel"
args = QuantizationArgs(num_bits=bits, symmetric=True, strategy=strategy, group_size=group or None)
names = [name.removesuffix("_scale") for name in made if name.endswith("_scale")]
for name in names:
    grouped = plain[name].unflatten(1, (-1, group)) if group else plain[name].unsqueeze(1)
    scale, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    assert torch.equal(scale, made[f"{name}_scale"]), name
    values = quantize(plain[name].float(), scale.float(), None, args, dtype=torch.int8)
    packed = made.get(f"{name}_packed")
    assert torch.equal(values, made[name]) if packed is None else torch.equal(pack_to_int32(values, bits), packed), name
print(len(names))
"""


def asked_for(quantization: str) -> Serving:
    asked = Quantization.parse(quantization)
    return Serving("SmolLM2-135M-Instruct", "smollm2", asked, context_tokens=512, max_sequences=4)


@pytest.fixture(autouse=True, scope="module")
def real_vllm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPLAN_VLLM", VLLM)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


class TestVllm(EngineConformance):
    name = "vllm"
    serving = asked_for("W8A8-INT")
    refused = asked_for("Q4_0")
    deadline_s = DEADLINE_S


@pytest.mark.parametrize("quantization", ["BF16", "W8A8-INT", "W4A16", "BF16-KV8-FP", "W8A8-INT-KV8-FP"])
def test_it_serves(
    quantization: str, cache: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    engine, serving = Vllm(), asked_for(quantization)
    refusal = engine.refusal(serving)
    if refusal is not None:
        pytest.skip(refusal)
    prepared = engine.prepare(serving, cache)
    others = set(psutil.Process().children(recursive=True))
    started = time.perf_counter()
    with engine.start(serving, prepared, tmp_path, deadline_s=DEADLINE_S) as server:
        record_property("start_s", time.perf_counter() - started)
        started = time.perf_counter()
        text = complete(server.endpoint, "1, 2, 3, 4, 5, 6, 7, 8,", max_tokens=64, timeout_s=300)
        record_property("tokens_per_s", 64 / (time.perf_counter() - started))
        record_property("bits_per_weight", prepared.bits_per_weight)
        assert text.startswith(" 9, 10, 11")
        assert server.state().running == 0
        assert server.state().kv_usage == 0
        body = {"model": server.endpoint.model, "prompt": "One, two, three", "max_tokens": 1, "prompt_logprobs": 40}
        answer = fetch_json(server.endpoint, "/v1/completions", timeout_s=60, body=body)
        assert len(answer["choices"][0]["prompt_logprobs"][1]) >= 40
        processes = set(psutil.Process().children(recursive=True)) - others
    assert processes
    assert not [process for process in processes if process.is_running()]


def test_a_cache_format_without_a_correct_kernel_is_caught(cache: Path, tmp_path: Path) -> None:
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("vLLM takes a quantized KV cache on a CPU only with AVX-512")
    engine, serving = Vllm(), asked_for("BF16-KV8-INT")
    with pytest.raises(EngineError, match="garbage"):
        engine.start(serving, engine.prepare(serving, cache), tmp_path, deadline_s=DEADLINE_S).stop()


def test_a_model_that_loads_and_does_not_work_is_caught(cache: Path, tmp_path: Path) -> None:
    """Rotary heads whose halves are interleaved, as llama.cpp keeps them: right shapes, fluent nonsense."""
    engine, serving = Vllm(), asked_for("BF16")
    sound = Path(engine.prepare(serving, cache).weights)
    broken = tmp_path / "broken"
    shutil.copytree(sound, broken)
    layout = {name: (entry.dtype, entry.shape) for name, entry in read_header(sound / "model.safetensors").items()}
    write_tensors(broken / "model.safetensors", layout, map(interleaved, read_tensors(sound / "model.safetensors")))
    with pytest.raises(EngineError, match="garbage"):
        engine.start(serving, Prepared(str(broken), None, "broken"), tmp_path, deadline_s=DEADLINE_S).stop()


def interleaved(tensor: Tensor) -> Tensor:
    if not tensor.name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    rows, columns = tensor.data.shape
    heads = tensor.data.reshape(-1, 2, 32, columns)  # 64 rows a head
    return replace(tensor, data=heads.swapaxes(1, 2).reshape(rows, columns))


@pytest.mark.parametrize(("scheme", "bits", "group"), [("W8A8-INT", 8, 0), ("W8A16", 8, 0), ("W4A16", 4, 64)])
def test_weights_are_those_of_the_formats_own_library(scheme: str, bits: int, group: int, cache: Path) -> None:
    plain, made = (Vllm().prepare(asked_for(name), cache).weights for name in ("BF16", scheme))
    python = interpreter(Path(VLLM))
    command = [str(python), "-c", COMPARE, plain, made, str(bits), str(group)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) == 30 * 7
