from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qplan.cli.app import app
from qplan.core.errors import QplanError
from qplan.profiles.packs import Card, write_pack
from tests.models.measured_rows import quickly, table

pytest.importorskip("sklearn")
CARD = Card("ours", "Made up", "measured", "Apache-2.0", "a test", "2026-11-21")
ASKED = ("predict", "--model", "llama-2-7b", "--quant", "BF16", "--gpu", "h100", "--isl", "512", "--osl", "64")


def run(*arguments: str) -> Result:
    with quickly():
        return CliRunner().invoke(app, arguments)


@pytest.mark.slow
def test_measured_loads_are_fitted_shown_drawn_saved_and_asked(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    pytest.importorskip("matplotlib")
    write_pack(tmp_path / "ours.parquet", CARD, table())
    saved, drawn = tmp_path / "ours.qplan", tmp_path / "calibration.png"
    shown = run("fit", str(tmp_path / "ours.parquet"), "-o", str(saved), "--plot", str(drawn))
    assert shown.exit_code == 0, shown.output
    for word in (
        "TPOT p50",
        "load, in between",
        "lengths",
        "configuration",
        "model",
        "in 90% intervals",
        "pooled-curves",
    ):
        assert word in shown.output
    assert "power_w: none, no energy counter" in shown.output
    assert drawn.read_bytes()[:4] == b"\x89PNG"

    found = json.loads(run(*ASKED, "--qps", "2", "--fitted", str(saved), "--json").output)
    tpot = found["quantities"]["tpot_p50"]
    assert tpot["lower"] < tpot["value"] < tpot["upper"]
    assert tpot["coverage"] == 0.9
    assert found["quantities"]["power_w"]["reason"] == "no energy counter"
    loud = run(*ASKED, "--qps", "9", "--fitted", str(saved), "--plot", str(tmp_path / "load.png"))
    assert "above saturation" in loud.output
    assert "(judged)" in loud.output
    assert (tmp_path / "load.png").stat().st_size > 5_000
    refused = run(*ASKED, "--qps", "100", "--fitted", str(saved))
    assert isinstance(refused.exception, QplanError)


@pytest.mark.parametrize("name", ["none/ours.qplan", "."])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_fitted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = run("fit", "nothing-of-this-name", "-o", name)
    assert str(failed.exception).startswith(f"--out: {name}; expected the name of a file")


def test_a_plot_of_another_kind_is_refused_before_anything_is_fitted() -> None:
    pytest.importorskip("matplotlib")
    failed = run("fit", "llamacpp-cpu", "--plot", "calibration.gif")
    assert isinstance(failed.exception, QplanError)
    assert "expected .png" in str(failed.exception)
