"""The SGLang adapter against the scripted engine that takes the real one's flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import EngineError, Server, Serving
from qplan.measure.engines.sglang import SgLang

FLAGS = Path(__file__).with_name("flags") / "sglang-0.5.23.txt"


@pytest.fixture(autouse=True)
def sglang_python(foreign_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_SGLANG", str(foreign_environment / "bin" / "python"))


@pytest.fixture
def serving(tiny_checkpoint: Path) -> Serving:
    return Serving("tiny", str(tiny_checkpoint), Quantization.parse("BF16"), devices=(0,), context_tokens=512)


def script(monkeypatch: pytest.MonkeyPatch, **what: object) -> None:
    monkeypatch.setenv("SCRIPTED_ENGINE", json.dumps({"flags": str(FLAGS), **what}))


@pytest.mark.parametrize("quantization", ["W8A8KV8-FP", "W4A16"])
def test_the_real_engine_takes_every_flag(
    serving: Serving, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, metrics="sglang:num_running_reqs 4\nsglang:num_queue_reqs 0\nsglang:token_usage 0.5\n")
    asked = replace(
        serving,
        quantization=Quantization.parse(quantization),
        tp=2,
        devices=(0, 1),
        settings={"mem-fraction-static": 0.8},
    )
    engine = SgLang()
    with engine.start(asked, engine.prepare(asked, tmp_path), tmp_path / "run", deadline_s=30) as server:
        assert server.version == "0.5.23"
        assert (server.state().running, server.state().waiting, server.state().kv_usage) == (4, 0, 0.5)
        made = "--quantization" not in server.command
        assert made == (quantization == "W4A16")


def test_a_crash_in_mid_run_is_noticed(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, crash_after_s=0.2)
    engine = SgLang()
    with (
        engine.start(serving, engine.prepare(serving, tmp_path), tmp_path / "run", deadline_s=30) as server,
        pytest.raises(EngineError, match="illegal memory access"),
    ):
        check_until_dead(server)


def check_until_dead(server: Server) -> None:
    while True:
        server.check()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"devices": ()}, "needs GPUs"),
        ({"quantization": "Q4_0"}, "GGUF"),
        ({"quantization": "BF16-KV8-INT"}, "8-bit int KV cache"),
        ({"quantization": "W4A16-GPTQ"}, "is not quantized"),
        ({"settings": {"tp": 4}}, "follows from the tensor parallelism"),
        ({"tp": 2}, "needs 2 devices"),
    ],
)
def test_what_it_cannot_serve_is_refused(serving: Serving, change: dict[str, object], reason: str) -> None:
    if "quantization" in change:
        change = {"quantization": Quantization.parse(str(change["quantization"]))}
    assert SgLang().refusal(serving) is None
    assert reason in str(SgLang().refusal(replace(serving, **change)))  # type: ignore[arg-type]
