"""The vLLM adapter against the scripted engine that takes the real one's flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.core.errors import MeasurementError
from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import EngineError, Prepared, Serving
from qplan.measure.engines.vllm import Vllm

FLAGS = Path(__file__).with_name("flags") / "vllm-0.32.0.txt"


@pytest.fixture(autouse=True)
def vllm_command(foreign_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_VLLM", str(foreign_environment / "bin" / "vllm"))


@pytest.fixture
def serving(tiny_checkpoint: Path) -> Serving:
    return Serving("tiny", str(tiny_checkpoint), Quantization.parse("BF16"), context_tokens=512, max_sequences=4)


def script(monkeypatch: pytest.MonkeyPatch, **what: object) -> None:
    monkeypatch.setenv("SCRIPTED_ENGINE", json.dumps({"flags": str(FLAGS), **what}))


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize("program", ["vllm", "python"])
@pytest.mark.parametrize(
    ("quantization", "devices"),
    [("BF16", ()), ("FP16", (0,)), ("W8A8-INT", ()), ("W4A16-KV8-FP", (1, 3)), ("FP8", (0,))],
)
def test_the_real_engine_takes_every_flag(
    serving: Serving,
    quantization: str,
    devices: tuple[int, ...],
    program: str,
    foreign_environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QPLAN_VLLM", str(foreign_environment / "bin" / program))
    metrics = 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.25\n'
    script(monkeypatch, metrics=metrics)
    asked = replace(serving, quantization=Quantization.parse(quantization), devices=devices, tp=max(1, len(devices)))
    engine = Vllm()
    prepared = engine.prepare(asked, tmp_path / "cache")
    with engine.start(asked, prepared, tmp_path / "run", deadline_s=30) as server:
        assert server.endpoint.model == "tiny"
        assert server.version == "0.32.0"
        assert (server.state().running, server.state().waiting, server.state().kv_usage) == (3, 2, 0.25)


def test_a_mistyped_setting_stops_it_with_the_engines_own_words(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch)
    with pytest.raises(EngineError, match="unrecognized arguments: --max-num-batched-toks"):
        Vllm().start(replace(serving, settings={"max-num-batched-toks": 64}), given(serving), tmp_path, deadline_s=30)


def test_sick_engines_are_told_apart(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, health=503)
    with pytest.raises(EngineError, match="503"):
        Vllm().start(serving, given(serving), tmp_path, deadline_s=1.5)
    script(monkeypatch, output="random")
    with pytest.raises(EngineError, match="garbage"):
        Vllm().start(serving, given(serving), tmp_path, deadline_s=30)
    script(monkeypatch, fail="torch.OutOfMemoryError: CUDA out of memory.")
    with pytest.raises(EngineError, match="out of memory"):
        Vllm().start(serving, given(serving), tmp_path, deadline_s=30)


def given(serving: Serving) -> Prepared:
    return Prepared(serving.weights, None, "as given")


@pytest.mark.parametrize(
    ("quantization", "kv", "dtype"),
    [("BF16", "auto", "bfloat16"), ("FP16-KV8-FP", "fp8", "float16"), ("W4A16-KV8-INT", "int8_per_token_head", "auto")],
)
def test_formats_become_flags(serving: Serving, quantization: str, kv: str, dtype: str) -> None:
    asked = replace(serving, quantization=Quantization.parse(quantization), devices=(2,))
    launch = Vllm().launch(asked, given(serving))
    assert (value(launch.argv, "--kv-cache-dtype"), value(launch.argv, "--dtype")) == (kv, dtype)
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "2"
    assert "--quantization" not in launch.argv


def test_fp8_is_left_to_the_engine(serving: Serving, tmp_path: Path) -> None:
    asked = replace(serving, quantization=Quantization.parse("FP8"), devices=(0,))
    prepared = Vllm().prepare(asked, tmp_path)
    assert prepared.bits_per_weight is None
    assert value(Vllm().launch(asked, prepared).argv, "--quantization") == "fp8"


def test_on_a_cpu_the_cache_holds_every_sequence_and_w4a16_keeps_16_bit_activations(serving: Serving) -> None:
    launch = Vllm().launch(serving, given(serving))
    block_bytes = 2 * 1 * 3 * 64 * 128 * 2  # keys and values, layers, heads, head size, tokens, bytes
    assert int(value(launch.argv, "--kv-cache-memory-bytes")) == block_bytes * (4 * 512 // 128 + 1)
    assert launch.env["VLLM_CPU_INT4_W4A8"] == "0"


def test_one_cpu_worker_shares_the_process_of_the_scheduler_which_else_spins(serving: Serving) -> None:
    launch = Vllm().launch(serving, given(serving))
    assert value(launch.argv, "--distributed-executor-backend") == "uni"
    assert launch.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    several = Vllm().launch(replace(serving, tp=2), given(serving))
    assert "--distributed-executor-backend" not in several.argv


def test_settings_add_replace_and_leave_out_flags(serving: Serving) -> None:
    settings = {
        "max-num-batched-tokens": 256,
        "max-logprobs": 5,
        "enforce-eager": False,
        "enable-chunked-prefill": True,
    }
    argv = Vllm().launch(replace(serving, settings=settings), given(serving)).argv
    assert value(argv, "--max-num-batched-tokens") == "256"
    assert value(argv, "--max-logprobs") == "5"
    assert "--enforce-eager" not in argv
    assert "--enable-chunked-prefill" in argv


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization": "W8A16"}, "no kernels for W8A16"),
        ({"quantization": "FP8"}, "no kernels for W8A8-FP"),
        ({"quantization": "BF16-KV8-INT"}, "garbage"),
        ({"quantization": "Q4_0"}, "GGUF"),
        ({"quantization": "W4A16-AWQ", "devices": (0,)}, "not quantized"),
        ({"settings": {"kv-cache-dtype": "fp8"}}, "follows from the quantization"),
        ({"devices": (0, 1)}, "needs 1 devices, 2 are given"),
        ({"weights": "nobody/has-this"}, "hf download nobody/has-this"),
    ],
)
def test_what_it_cannot_serve_is_refused(serving: Serving, change: dict[str, object], reason: str) -> None:
    if "quantization" in change:
        change = {**change, "quantization": Quantization.parse(str(change["quantization"]))}
    assert Vllm().refusal(serving) is None
    assert reason in str(Vllm().refusal(replace(serving, **change)))  # type: ignore[arg-type]


def test_four_bits_on_a_cpu_need_avx512(serving: Serving) -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "avx512f"
    for quantization in ("W4A16", "BF16-KV8-FP"):
        refusal = Vllm().refusal(replace(serving, quantization=Quantization.parse(quantization)))
        assert refusal is None if "avx512f" in flags else "without AVX-512" in str(refusal)


def test_a_missing_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QPLAN_VLLM", str(tmp_path / "vllm"))
    with pytest.raises(MeasurementError, match="QPLAN_VLLM"):
        Vllm().version()
    monkeypatch.delenv("QPLAN_VLLM")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasurementError, match="not installed"):
        Vllm().version()
