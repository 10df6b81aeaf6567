"""``qplan simulate`` as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qplan.cli.app import app
from qplan.core.errors import InputError

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2026-01-01 00:00:{second:02d}.5,{300 + 10 * second},{20 + second}\n" for second in range(60)
)
GROUP = {"model": "llama-2-7b", "quantization": "W4A16", "gpu": "h100", "count": 2}


def simulate(*arguments: str) -> Any:
    """Run the command in this process, which has compiled already; errors come through."""
    done = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


def fleet_file(folder: Path, *groups: dict[str, Any], **top: Any) -> str:
    path = folder / "fleet.json"
    path.write_text(json.dumps({"schema_version": 1, "replicas": list(groups or [GROUP]), **top}))
    return str(path)


def test_a_trace_is_replayed(trace: str, tmp_path: Path) -> None:
    fleet = fleet_file(tmp_path)
    shown = simulate(trace, "--fleet", fleet, "--slo", "p90:ttft=1s", "--slo", "tpot=1us")
    for said in (
        "60 requests (trace.csv)",
        "TTFT",
        "p99",
        "llama-2-7b W4A16 H100",
        "100.00% of requests; met",
        "0.00%",
    ):
        assert said in shown
    found = simulate(trace, "--fleet", fleet, "--slo", "p90:ttft=1s", "--json")
    assert found["requests"] == 60
    assert found["attainment"] == 1
    assert 59 < found["duration_s"] < 65
    assert [replica["requests"] for replica in found["replicas"]] == [30, 30]
    assert 0 < found["latency"]["tpot"]["p50_s"] < found["latency"]["ttft"]["p50_s"] < found["latency"]["e2e"]["p50_s"]
    assert found["energy_j"] == pytest.approx(sum(replica["energy_j"] for replica in found["replicas"]))
    assert found["provenance"][0] == "simulated"
    assert "kernel-composed" in found["provenance"][1]


def test_options_change_what_they_say(trace: str, tmp_path: Path) -> None:
    fleet = fleet_file(tmp_path)
    faster = simulate(trace, "--fleet", fleet, "--speed-up", "10", "--json")
    assert faster["duration_s"] < 10
    assert simulate(trace, "--fleet", fleet, "--requests", "7", "--json")["requests"] == 7
    assert simulate(trace, "--fleet", fleet, "--duration", "9.5s", "--json")["requests"] == 10
    load = ("--qps", "20", "--workload", "isl=500,osl=50", "--requests", "300", "--fleet", fleet, "--json")
    first = simulate(*load)
    assert first == simulate(*load)
    assert first["requests"] == 300
    assert first["latency"] != simulate(*load, "--seed", "1")["latency"]
    whole = simulate(*load, "--no-chunked-prefill", "--dispatch", "least-outstanding")
    assert whole["latency"] != first["latency"]
    assert simulate(*load[:4], "--duration", "10s", *load[6:])["requests"] == pytest.approx(200, rel=0.3)


def test_prefill_and_decode_may_be_apart(trace: str, tmp_path: Path) -> None:
    link = {"bandwidth_gb_s": 1, "latency_s": 0.01}
    apart = fleet_file(tmp_path, *({**GROUP, "role": role} for role in ("prefill", "decode")), kv_transfer=link)
    found = simulate(trace, "--fleet", apart, "--json")
    assert found["requests"] == 60
    assert len(found["replicas"]) == 4
    assert [replica["requests"] for replica in found["replicas"]] == [30] * 4


def test_a_plan_is_a_fleet(tmp_path: Path) -> None:
    plan = CliRunner().invoke(app, ["capacity", "--qps", "20", "--slo", "ttft=1s", "--json"], catch_exceptions=False)
    path = tmp_path / "plan.json"
    path.write_text(plan.stdout)
    found = simulate("--qps", "20", "--requests", "2000", "--fleet", str(path), "--slo", "p90:ttft=1s", "--json")
    assert len(found["replicas"]) == sum(group["count"] for group in json.loads(plan.stdout)["replicas"])
    assert found["attainment"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("name", "replicas"), [("run.html", 8), ("run.png", 2)])
def test_a_figure_is_written(name: str, replicas: int, trace: str, tmp_path: Path) -> None:
    plot = tmp_path / name
    shown = simulate(trace, "--fleet", fleet_file(tmp_path, {**GROUP, "count": replicas}), "--plot", str(plot))
    assert name in shown.replace("\n", "")
    assert plot.read_bytes().startswith(b"\x89PNG" if name == "run.png" else b"<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TRACE"], "--fleet: which replicas"),
        (["--fleet", "FLEET"], "either a trace or --qps"),
        (["TRACE", "--qps", "3", "--fleet", "FLEET"], "either a trace or --qps"),
        (["TRACE", "--workload", "chat", "--fleet", "FLEET"], "--workload: a trace has its own"),
        (["TRACE", "--speed-up", "0", "--fleet", "FLEET"], "--speed-up: 0"),
        (["--qps", "3", "--speed-up", "2", "--fleet", "FLEET"], "--speed-up: expected with a trace"),
        (["--qps", "0", "--fleet", "FLEET"], "--qps: '0'; expected more than 0"),
        (["--qps", "3", "--duration", "0s", "--fleet", "FLEET"], "--duration: '0s'"),
        (["TRACE", "--dispatch", "least-outstandin", "--fleet", "FLEET"], "did you mean 'least-outstanding'"),
        (["TRACE", "--plot", "run.pdf", "--fleet", "FLEET"], "--plot: run.pdf; expected a name that ends"),
        (["TRACE", "--plot", "/nowhere/run.png", "--fleet", "FLEET"], "--plot: no folder /nowhere"),
        (["TRACE", "--slo", "itl=1s", "--fleet", "FLEET"], "no single gaps"),
        (["none.csv", "--fleet", "FLEET"], "trace: no file none.csv"),
        (["TRACE", "--fleet", "none.json"], "--fleet: no file none.json"),
        (["TRACE", "--profiles", "nowhere", "--fleet", "FLEET"], "nowhere"),
    ],
)
def test_wrong_input_is_a_clear_error(arguments: list[str], message: str, trace: str, tmp_path: Path) -> None:
    places = {"TRACE": trace, "FLEET": fleet_file(tmp_path)}
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        simulate(*(places.get(argument, argument) for argument in arguments))
    assert "\n" not in str(raised.value)


def test_a_plan_by_the_hour_is_sent_to_the_planner(tmp_path: Path) -> None:
    plan = tmp_path / "day.json"
    plan.write_text(json.dumps({"kind": "fleet-plan", "objective_name": "cost", "periods": []}))
    with pytest.raises(InputError, match=r"plan by the hour, which qplan capacity DEMAND.yaml --verify simulates"):
        simulate("--qps", "3", "--fleet", str(plan))


def test_the_process_says_it_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qplan", "simulate", "--qps", "3", "--fleet", str(tmp_path / "none.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_the_pack_lacks_is_predicted_with_a_warning(tmp_path: Path) -> None:
    fleet = fleet_file(tmp_path, {**GROUP, "model": "qwen3-8b", "count": 1})
    load = ("--qps", "5", "--requests", "50", "--fleet", fleet)
    found = simulate(*load, "--json")
    (warning,) = found["warnings"]
    assert "no step times of qwen3-8b W4A16" in warning
    assert "predicted from its GPU, engine and quantization" in warning
    assert "by GPU, engine and quantization" in found["provenance"][1]
    assert "warning" in simulate(*load)


def test_a_pack_of_measured_loads_can_be_simulated(tmp_path: Path) -> None:
    group = {"model": "smollm2-135m", "quantization": "FP16", "gpu": "cpu", "engine": "llamacpp"}
    load = ("--qps", "0.5", "--workload", "isl=16,osl=8", "--requests", "50", "--profiles", "llamacpp-cpu", "--json")
    found = simulate(*load, "--fleet", fleet_file(tmp_path, group))
    # Measured alone: 126 ms to the first token, 20 ms to each further one.
    assert found["latency"]["ttft"]["p50_s"] == pytest.approx(0.126, rel=0.2)
    assert found["latency"]["tpot"]["p50_s"] == pytest.approx(0.020, rel=0.2)
    assert found["provenance"][1].endswith("runs at low load")
    assert "no iteration was timed" in found["warnings"][0]
    assert found["energy_j"] is None
