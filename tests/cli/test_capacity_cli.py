"""``qplan capacity`` as a user runs it: a process, its output and its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qplan.cli import main
from qplan.core.plan import Plan


def qplan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "qplan", *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """Run a command without a process; returns what that would: exit code, output and errors."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["qplan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_main_job_prints_a_fleet_and_what_it_assumed() -> None:
    done = qplan("capacity", "--qps", "40", "--slo", "ttft=1s")
    assert done.returncode == 0
    assert done.stderr == ""
    for said in (
        "$/h",
        "TTFT p90",
        "quality",
        "proven lower bound",
        "kernel-composed",
        "--model",
        "--workload",
        "--quality",
    ):
        assert said in done.stdout


def test_json_holds_what_a_program_needs_and_reads_back() -> None:
    done = qplan("capacity", "--qps", "40", "--slo", "ttft=1s", "--slo", "p99:tpot=80ms", "--json")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["status"] == "optimal"
    assert document["gap"] == pytest.approx(0, abs=1e-6)
    assert document["bound"] == pytest.approx(document["objective"])
    tdp_w = 350  # of an L40S
    assert 0.1 * tdp_w < document["power_w"] / sum(document["gpus"].values()) < tdp_w
    assert "between" in document["power_note"]
    for replicas in document["replicas"]:
        assert {"deployment", "model", "quantization", "gpu", "tp", "count"} <= set(replicas)
    assert document["gpus"] == {
        gpu: sum(r["count"] * r["tp"] for r in document["replicas"] if r["gpu"] == gpu) for gpu in document["gpus"]
    }
    assert document["cost_per_hour"] == pytest.approx(
        sum(r["count"] * r["cost_per_hour"] for r in document["replicas"])
    )
    ttft, tpot = document["predicted"]["ttft"], document["predicted"]["tpot"]
    assert ttft["percentile"] == 90
    assert tpot["percentile"] == 99
    assert ttft["lower"] <= ttft["value"] <= min(ttft["upper"], ttft["slo"])
    assert tpot["value"] <= tpot["slo"] == 0.08
    plan = Plan.from_json(document)
    assert plan.to_json() == document


def test_said_things_are_not_assumed() -> None:
    options = [
        "--model",
        "llama-2-13b",
        "--workload",
        "code",
        "--quality",
        "98%",
        "--percentile",
        "95",
        "--gpus",
        "h100",
    ]
    prices = ["--price", "h100=2.5", "--slo", "tpot=50ms"]
    document = json.loads(qplan("capacity", "--qps", "9", "--slo", "ttft=1s", *options, *prices, "--json").stdout)
    assert [assumption["what"] for assumption in document["assumptions"]] == ["arrivals"]
    assert set(document["gpus"]) == {"H100-SXM5-80GB"}
    assert document["cost_per_hour"] == pytest.approx(2.5 * document["gpus"]["H100-SXM5-80GB"])
    assert document["predicted"]["ttft"]["percentile"] == 95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--qps", "40", "--model", "lama-2-7b"], "unknown model 'lama-2-7b'.*did you mean 'llama-2-7b'"),
        (["--qps", "40", "--model", "qwen3-8b"], "no step times of qwen3-8b"),
        (["--qps", "40", "--slo", "ttft=1parsec"], "--slo: unknown unit 'parsec'"),
        (["--qps", "-4"], "--qps: -4 requests/s; expected more than 0"),
        (["--qps", "nan"], "--qps: "),
        (["--qps", "40", "--quality", "good"], "--quality: 'good' is not"),
        (["--qps", "40", "--gpus", "b100=3"], "--gpus: unknown GPU 'b100'"),
        (["--qps", "40", "--gpus", "l4=3"], "--gpus: .* has no profile on L4"),
        (["--qps", "40", "--quant", "W3A16-GPTQ"], "--quant: .* has no W3A16-GPTQ"),
        (["--qps", "40", "--objective", "costs"], "did you mean 'cost'"),
        (["--qps", "40", "--spare", "2"], "--spare: 2; expected 0 or 1"),
        (["--qps", "40", "--percentile", "100"], "--percentile: 100; expected between 0 and 100"),
        (["--qps", "40", "--workload", "chats"], "--workload: unknown workload 'chats'.*did you mean 'chat'"),
        (["--qps", "40", "--workload", "none.csv"], "--workload: no file none.csv"),
        (["--qps", "40", "--profiles", "nowhere"], "nowhere"),
        (["--qps", "40", "--solver", "cplux"], "cplux"),
        (["--qps", "40", "--time-limit", "soon"], "--time-limit: "),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_2(
    arguments: list[str], message: str, here: Callable[..., tuple[object, str, str]]
) -> None:
    code, out, said = here("capacity", *arguments)
    assert code == 2
    assert out == ""
    assert len(said.strip().splitlines()) == 1
    assert re.search(message, said), said


def test_a_process_ends_with_the_same_line_and_exit_code() -> None:
    done = qplan("capacity", "--qps", "-4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qplan: --qps: -4 requests/s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "constraint", "nearest"),
    [
        (["--qps", "40", "--slo", "ttft=1ms"], "slo", "--slo p90:ttft="),
        (["--qps", "4000", "--slo", "ttft=1s", "--gpus", "h100=8", "--model", "llama-2-70b"], "inventory", "--qps"),
        (["--qps", "40", "--slo", "ttft=1s", "--quality", "101%"], "quality", "--quality"),
        (["--qps", "1", "--model", "llama-2-70b", "--gpus", "l40s=1", "--quant", "BF16"], "inventory", "--gpus"),
        (["--qps", "1", "--model", "llama-2-70b", "--workload", "isl=9000,osl=9"], "memory", "--workload"),
    ],
)
def test_an_infeasible_ask_names_the_constraint_and_the_nearest_change(
    arguments: list[str], constraint: str, nearest: str, here: Callable[..., tuple[object, str, str]]
) -> None:
    code, out, _ = here("capacity", *arguments, "--json")
    assert code == 3
    document = json.loads(out)
    assert document["status"] == "infeasible"
    assert document["constraint"] == constraint
    assert nearest in document["nearest"][0]
    assert document["reason"]
    code, out, _ = here("capacity", *arguments)
    assert code == 3
    assert "No feasible plan" in out


@pytest.mark.slow
def test_the_nearest_change_is_feasible(here: Callable[..., tuple[object, str, str]]) -> None:
    impossible = ["capacity", "--qps", "5", "--slo", "ttft=1ms", "--slo", "p99:tpot=1ms", "--json"]
    (nearest, *_) = json.loads(here(*impossible)[1])["nearest"]
    assert here("capacity", "--qps", "5", *nearest.split(), "--json")[0] == 0
    scarce = ["capacity", "--slo", "ttft=1s", "--model", "llama-2-70b", "--gpus", "h100=8", "--json"]
    nearest = json.loads(here(*scarce, "--qps", "4000")[1])["nearest"]
    flag, rate = nearest[0].split()
    assert flag == "--qps"
    assert here(*scarce, "--qps", rate)[0] == 0


def test_a_trace_is_a_workload(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00,400,100\n2026-01-01 00:00:01,80,300\n"
    )
    done = qplan("capacity", "--qps", "5", "--workload", str(trace), "--json")
    assert done.returncode == 0
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00,many,100\n")
    done = qplan("capacity", "--qps", "5", "--workload", str(trace))
    assert done.returncode == 2
    assert "line 2: ContextTokens is 'many'" in done.stderr


@pytest.mark.slow
def test_explain_says_what_binds_and_what_else_there_is() -> None:
    ask = [
        "capacity",
        "--qps",
        "200",
        "--slo",
        "ttft=1s",
        "--model",
        "llama-2-70b",
        "--gpus",
        "h100=8,a100=64",
        "--explain",
    ]
    done = qplan(*ask)
    assert done.returncode == 0
    assert "why this plan" in done.stdout
    explanation = json.loads(qplan(*ask, "--json").stdout)["explanation"]
    assert explanation["marginal_cost_per_qps"] > 0
    assert explanation["runner_ups"]


@pytest.mark.parametrize("command", [["--help"], ["capacity", "--help"], ["profiles", "--help"], ["doctor", "--help"]])
def test_help_has_examples(command: list[str]) -> None:
    done = qplan(*command)
    assert done.returncode == 0
    assert "qplan" in done.stdout


def test_doctor_lists_what_is_installed() -> None:
    document = json.loads(qplan("doctor", "--json").stdout)
    assert "highs" in document["solvers"]
    assert "trtllm-composed" in document["packs"]
    assert "trtllm-composed" in qplan("doctor").stdout


def test_debug_shows_the_traceback() -> None:
    done = qplan("capacity", "--qps", "-1", "--debug")
    assert "Traceback" in done.stderr
