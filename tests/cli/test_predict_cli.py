from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from qplan.cli.app import app
from qplan.core.errors import InputError, QplanError
from qplan.profiles.packs import Card, read_pack, write_pack

ASKED = ("--model", "llama-2-70b", "--quant", "W4A16", "--gpu", "h100", "--tp", "2")
LENGTHS = ("--isl", "1024", "--osl", "256")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def predict(*arguments: str) -> Result:
    return run("predict", *ASKED, *arguments)


def test_a_forecast_shows_every_number_with_interval_and_source() -> None:
    shown = predict(*LENGTHS, "--qps", "1")
    assert shown.exit_code == 0
    for word in ("TTFT p50", "TPOT p90", "output ", "power ", "J/token", "quality", "trtllm-composed"):
        assert word in shown.output
    assert "of the highest stable rate" in shown.output


def test_json_holds_the_same_numbers() -> None:
    found = json.loads(predict(*LENGTHS, "--qps", "1", "--json").output)
    assert found["schema_version"] == 1
    assert found["deployment"]["engine"] == "trtllm"
    ttft = found["quantities"]["ttft_p90"]
    assert ttft["lower"] <= ttft["value"] <= ttft["upper"]
    assert (ttft["unit"], ttft["coverage"]) == ("s", 0.9)


@pytest.mark.parametrize("name", ["load.png", "load.svg"])
def test_a_plot_is_written(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    written = predict(*LENGTHS, "--qps", "1", "--plot", str(tmp_path / name))
    assert written.exit_code == 0
    assert (tmp_path / name).stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--qps", "1"), "--isl and --osl, or --workload"),
        ((*LENGTHS, "--workload", "chat", "--qps", "1"), "leave out --isl and --osl"),
        ((*LENGTHS, "--qps", "1", "--engine", "vlm"), "--engine: 'vlm' is none of trtllm="),
        ((*LENGTHS, "--qps", "1", "--gpu", "b200"), "has nothing on B200"),
        ((*LENGTHS, "--qps", "1", "--plot", "load.gif"), "expected .png, .svg, .pdf"),
        ((*LENGTHS, "--qps", "1", "--fitted", "nothing.qplan"), "no such file"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], says: str) -> None:
    failed = predict(*arguments)
    assert isinstance(failed.exception, QplanError)
    assert says in str(failed.exception)


@pytest.mark.slow
def test_what_was_fitted_is_what_predicts(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    table = read_pack("trtllm-composed", models=["llama-2-7b"]).table
    here = zip(table["gpu"].to_pylist(), table["tp"].to_pylist(), strict=True)
    table = table.filter(np.array([gpu == "L40S" and tp == 1 for gpu, tp in here]))
    card = Card("slice", "Slice", "kernel-composed", "Apache-2.0", "a test", "2026-11-21")
    write_pack(tmp_path / "slice.parquet", card, table)
    fitted = run("fit", str(tmp_path / "slice.parquet"), "-o", str(tmp_path / "slice.qplan"), "--json")
    assert fitted.exit_code == 0
    report = json.loads(fitted.stdout)
    assert report["latency_measured_over_predicted"] == {}
    assert {one["what"] for one in report["step_times_left_out"]} >= {"load, in between", "quantization"}
    asked = ("predict", "--model", "llama-2-7b", "--quant", "W4A16", "--gpu", "l40s", *LENGTHS, "--qps", "1")
    ours = json.loads(run(*asked, "--fitted", str(tmp_path / "slice.qplan"), "--json").output)
    shipped = json.loads(run(*asked, "--json").output)
    assert ours["quantities"]["tpot_p50"]["value"] == pytest.approx(
        shipped["quantities"]["tpot_p50"]["value"], rel=0.05
    )
    assert ours["quantities"]["tpot_p50"]["upper"] is None
    damaged = (tmp_path / "slice.qplan").read_bytes()[:-100]
    (tmp_path / "slice.qplan").write_bytes(damaged)
    failed = run(*asked, "--fitted", str(tmp_path / "slice.qplan"))
    assert isinstance(failed.exception, QplanError)
    assert not isinstance(failed.exception, InputError)
