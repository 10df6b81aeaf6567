"""The way of the pack h200-measured at a tiny size: its plan in slices, the pack, its timestamps, findings, check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from qplan.cli import main
from qplan.measure.campaign.estimate import Estimate
from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.profiles.packs import read_pack
from qplan.profiles.timestamps import differences, read_requests

TINY = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}
IDLE_W, PREFILL_J, DECODE_J = 20.0, 0.2, 1.0
Qplan = Callable[..., str]


@pytest.fixture
def qplan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Qplan:
    """Run `qplan` in this process, in a folder of the test; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["qplan", *arguments])
        try:
            main()
        except SystemExit as ended:
            assert int(ended.code or 0) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def plan_like(name: str, **changes: Any) -> str:
    """Return a shipped plan with some of its keys changed, or, where the change is ``None``, left out."""
    text = resources.files("qplan.profiles.packs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    plan = {**yaml.safe_load(text), **changes}
    return yaml.safe_dump({key: value for key, value in plan.items() if value is not None})


def steps_of(found: Mapping[str, Any]) -> dict[str, Any]:
    return {step["quantization"]: step for step in found["steps"]}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs the engine: pip install 'qplan[llamacpp]'")
def test_a_plan_goes_all_the_way_to_its_findings(
    qplan: Qplan, tmp_path: Path, no_orphans: Callable[[], list[str]]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    Path("plan.yaml").write_text(
        plan_like(
            "h200-measured",
            gpu="cpu",
            devices=None,
            models=[{"name": "llama-2-7b", "weights": f"random:{config}", "context": 128, "max_sequences": 4}],
            quantizations=["F16", "Q8_0-KV8-INT"],
            workloads=["isl=8,osl=12", "isl=24,osl=4"],
            loads=["6qps", "12qps"],
            duration="1.5s",
            warm_up="0.2s",
            retries=4,
        )
    )
    # Time for one engine and its first load, and less beyond that than its four loads take: no second start fits.
    plan, _ = read_plan(Path("plan.yaml"))
    expected, block = Estimate(plan), make_grid(plan).blocks[0]
    limit = f"{expected.start_s(block.target) + expected.point_s(block.points[0]) + 4:g}s"
    first = qplan("measure", "plan.yaml", "--store", "h200.db", "--for", limit, "--json")
    ended = json.loads(first.splitlines()[-1])
    assert ended["done"] <= 4, "one engine has four of the points"
    assert (ended["left"], ended["stopped"]) == (8 - ended["done"], True)
    rest = [json.loads(line) for line in qplan("measure", "plan.yaml", "--store", "h200.db", "--json").splitlines()]
    assert (rest[-1]["done"], rest[-1]["left"]) == (8, 0)
    assert sum(event["event"] == "PointFinished" for event in rest) == ended["left"], "a point was measured twice"

    qplan("profiles", "export", "out.parquet", "--store", "h200.db", "--requests", "--title", "A rehearsal")
    pack = read_pack("out.parquet")
    assert pack.table["status"].to_pylist() == ["ok"] * 8
    assert "random, of the models' shapes" in pack.card.notes[0]
    assert "quality was not measured" in pack.card.notes[0]
    apart = differences(pack.table.to_pylist(), read_requests("out.parquet"))
    assert len(apart) == 8
    assert max(apart.values()) < 1e-3  # microseconds of milliseconds

    shown = qplan("profiles", "show", "out.parquet")
    assert "timestamps of" in shown
    assert "random" in shown
    found = json.loads(qplan("profiles", "findings", "out.parquet", "--plot", "findings.html", "--json"))
    assert Path("findings.html").read_text(encoding="utf-8").count("<h2>") == len(found["findings"]) + 2
    reasons = {one["key"]: one["cannot_tell"] for one in found["findings"]}
    assert "no run has energy" in reasons["energy-and-load"]
    assert reasons["short-outputs-and-ttft"] is None
    assert all(step["tpot_p50_s"] > 0 for step in found["steps"])
    check = json.loads(qplan("profiles", "heldout", "out.parquet", "--json"))
    assert [one["quantity"] for one in check["compared"]] == ["step"] * 8
    assert all(one["extrapolates"] for one in check["compared"])
    assert any("beyond saturation" in one["reason"] for one in check["missing"])  # of a real 7B on a CPU


@pytest.mark.slow
def test_energy_clocks_and_temperature_reach_the_findings(
    qplan: Qplan, write_plan: Callable[..., Path], nvml_library: Path, tmp_path: Path
) -> None:
    """The real command on a stand-in for NVML, with an engine that takes known joules a token."""
    work = tmp_path / "joules"
    work.write_bytes(bytes(8))
    settings = f"{{token-s: 0.002, work: {work}, prefill-j: {PREFILL_J}, decode-j: {DECODE_J}}}"
    plan = write_plan(
        gpu="H200-SXM",
        devices="devices: [0]",
        settings=settings,
        quantizations="[BF16, W4A16]",
        loads="[15, 30]",
        requests=20,
        repeats=2,
        order="grouped",
        more="phase_energy: off",
    )
    plan.write_text(plan.read_text().replace("energy: off", "energy: on").replace("isl=8,osl=4", "isl=8,osl=9"))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(nvml_library),
        "SHIM_LOW_W": str(IDLE_W),
        "SHIM_WORK": str(work),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    child = Path(__file__).with_name("short_windows.py")
    command = [sys.executable, str(child), "0.5", "1", "measure", str(plan), "--store", str(tmp_path / "gpu.db")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    qplan("profiles", "export", "gpu.parquet", "--store", "gpu.db", "--requests")
    rows = read_pack("gpu.parquet").table.to_pylist()
    assert len(rows) == 8
    for row in rows:
        assert row["idle_power_w"] == pytest.approx(IDLE_W, rel=0.3)  # of half a second, five ticks of the counter
        assert row["energy_j"] > row["idle_power_w"] * row["duration_s"]
        assert row["energy_polled_j"] > 0  # how close it is to the counter in longer windows, test_nvml says
        assert row["sm_clock_mean_mhz"] > 0
        assert row["temperature_max_c"] > 0
        assert row["driver"]
    found = json.loads(qplan("profiles", "findings", "gpu.parquet", "--json"))
    step = steps_of(found)["W4A16"]
    above_j = (8 * PREFILL_J + 8 * DECODE_J) / 9  # of each of nine tokens: the first comes with the prompt's eight
    assert step["j_per_token_above_idle"] == pytest.approx(above_j, rel=0.5)
    assert step["j_per_token"] > step["j_per_token_above_idle"]
    assert step["power_w"] > step["idle_power_w"]
    assert step["sm_clock_mean_mhz"] > 0
    assert step["temperature_max_c"] > 0
    energy = next(one for one in found["findings"] if one["key"] == "energy-and-load")
    assert energy["cannot_tell"] is None
    assert energy["spreads"]["j_per_token"]["light"]["freedom"] > 0
    check = json.loads(qplan("profiles", "heldout", "gpu.parquet", "--json"))
    assert "tiny" in check["missing"][0]["reason"]  # a model that no catalogue has: nothing is predicted of it
