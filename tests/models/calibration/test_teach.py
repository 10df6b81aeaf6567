from __future__ import annotations

import json
from pathlib import Path

import pytest

from qplan.models.calibration import ClosedLoopPrior, teach
from qplan.models.validation import read_runs

HEADER = "backend,model_path,system,mode,isl,osl,gemm_quant_mode,batch_size,tp_size,silicon_ttft_ms,silicon_tpot_ms"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
ROWS = [
    f"{backend},{MODEL},h100_sxm,agg,1024,256,,{n},{tp},{ttft * n},{tpot + n / 8}"
    for backend, ttft, tpot in (("vllm", 9, 7), ("trtllm", 12, 6))
    for tp in (1, 2)
    for n in (1, 4, 16)
]
OTHERS = [
    f"vllm,{MODEL},h100_sxm,disagg,1024,256,,4,1,9,7",
    f"vllm,{MODEL},b200_sxm,agg,1024,256,,4,1,9,7",
    f"vllm,{MODEL},h100_sxm,agg,1024,256,nvfp4,4,1,9,7",
    f"vllm,{MODEL},h100_sxm,agg,1024,256,,4,8,9,7",  # not in the prior below
]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "silicon_sample.csv"
    path.write_text("\n".join([HEADER, *ROWS, *OTHERS]) + "\n", encoding="utf-8")
    return path


def test_runs_are_grouped_by_system_and_tensor_parallelism(sample: Path, prior: ClosedLoopPrior) -> None:
    runs = read_runs(sample.read_text(encoding="utf-8"))
    families = teach.families(runs, prior)
    assert [family.name for family in families] == [
        f"llama-3.1-8b BF16 H100-SXM5-80GB {engine} x{tp}" for engine in ("trtllm", "vllm") for tp in (1, 2)
    ]
    assert {family.system for family in families} == {
        "llama-3.1-8b BF16 H100-SXM5-80GB trtllm",
        "llama-3.1-8b BF16 H100-SXM5-80GB vllm",
    }
    assert families[3].measured["ttft"].tolist() == pytest.approx([0.009, 0.036, 0.144])
    assert [len(family.rows) for family in teach.families(runs, prior, by_tp=False)] == [6, 6]


def test_a_format_without_tables_can_be_read_as_another(sample: Path) -> None:
    text = sample.read_text(encoding="utf-8")
    assert [run.quantization for run in read_runs(text, {"nvfp4": "W4A16"})] == ["W4A16"]


def test_the_command_prints_lessons_and_writes_them_on_request(
    sample: Path, prior: ClosedLoopPrior, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = sample.with_name("lessons.json")
    monkeypatch.setattr(teach, "SHIPPED", shipped)
    monkeypatch.setattr(teach, "composed_prior", lambda: prior)
    teach.main(["--rows", str(sample)])
    printed = capsys.readouterr().out
    assert not shipped.exists()
    assert json.loads(printed)["lessons"]["tpot"]["families"] == 4
    teach.main(["--rows", str(sample), "--write"])
    assert shipped.read_text(encoding="utf-8") == printed
