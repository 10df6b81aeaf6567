from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from qplan.cli import main
from qplan.profiles.store import ProfileStore

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "measure" / "campaign" / "plugin"
PLAN = """\
name: cli
gpu: cpu
models: [{name: tiny, weights: nothing, context: 512}]
quantizations: [BF16, Q8_0]
engines: [{name: scripted, settings: {token-s: 0.01}}]
workloads: ["isl=8,osl=4", "isl=600,osl=4"]
loads: [20]
slo: ["p90:ttft=1s"]
requests: 4
warm_up: 0
retries: 4
"""


@dataclass
class Done:
    """A command that is over."""

    returncode: int
    stdout: str
    stderr: str


Qplan = Callable[..., Done]
NAMED = ("--quant", "fp8", "--gpu", "h100", "--engine", "vllm")


def connected(process: psutil.Process) -> bool:
    """Whether it, or a process that it started, talks to a server."""
    with suppress(psutil.NoSuchProcess):
        return any(one.net_connections("tcp") for one in (process, *process.children(recursive=True)))
    return False


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with the scripted engine and a cache of its own."""
    paths = os.pathsep.join(filter(None, (str(PLUGIN), os.environ.get("PYTHONPATH"))))
    keyless = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return {**keyless, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def qplan(
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Qplan:
    """Run `qplan` in this process, in a folder of the test."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments: str, **env: str) -> Done:
        for name, value in (environment | env).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["qplan", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of the scripted engine."""
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Start fake servers; returns their addresses."""
    started: list[subprocess.Popen[str]] = []

    def start(**options: object) -> str:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = [sys.executable, str(ROOT / "measure" / "fake_server.py"), *flags]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.communicate("")


def valid(command: Callable[[], Done]) -> Done:
    """Repeat a measurement whose client a busy machine made late."""
    for _ in range(4):
        done = command()
        if "invalid: " not in done.stderr:
            return done
    return command()


def fails(done: Done, code: int) -> str:
    """Check that a command said one line and ended with `code`; return the line."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip()
    assert len(line.splitlines()) == 1, line
    return line


class TestPlan:
    """`qplan measure plan.yaml`."""

    def test_a_dry_run_prints_the_grid_and_starts_nothing(self, qplan: Qplan, plan: Path, tmp_path: Path) -> None:
        done = qplan("measure", "plan.yaml", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "tiny Q8_0 scripted token-s=0.01: isl=8,osl=4, 20 qps" in done.stdout
        assert "not measured: tiny: isl=600,osl=4: its longest request has 604 tokens" in done.stdout
        assert "2 points in 2 engine starts, 2 to do" in done.stdout
        assert not (tmp_path / "qplan.db").exists()
        document = json.loads(qplan("measure", "plan.yaml", "--dry-run", "--json").stdout)
        assert len(document["points"]) == 2
        assert document["estimate_s"] > 0

    def test_a_campaign_is_measured_once(self, qplan: Qplan, plan: Path, tmp_path: Path) -> None:
        first = qplan("measure", "plan.yaml", "--store", "s.db")
        assert first.returncode == 0, first.stderr
        assert "ended: 2 done, 0 failed, 0 invalid, 0 left" in first.stderr
        again = qplan("measure", "--json", "--store", "s.db", "plan.yaml")
        assert [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["CampaignStarted", "CampaignEnded"]
        with ProfileStore(str(tmp_path / "s.db")) as store:
            assert store.read(["status"]).to_pylist() == [{"status": "ok"}] * 2
        report = qplan("measure", "report", "s.db", "--json")
        assert report.returncode == 0, report.stderr
        json.loads(report.stdout)

    def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(
        self, qplan: Qplan, plan: Path, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        plan.write_text(PLAN.replace("requests: 4", "requests: 40"))
        command = [sys.executable, "-m", "qplan", "measure", "plan.yaml", "--store", "s.db", "--json"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "EngineReady":
            pass
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        events = [json.loads(line) for line in out.splitlines()]
        assert [event["event"] for event in events] == ["EngineStopped", "PointPutBack", "BlockEnded", "CampaignEnded"]
        assert "stopped with 2 points left; the same command goes on" in err
        done = qplan("measure", "plan.yaml", "--store", "s.db")
        assert "ended: 2 done" in done.stderr

    def test_what_cannot_be_measured_at_all_is_a_measurement_error(self, qplan: Qplan, plan: Path) -> None:
        plan.write_text(PLAN.replace("token-s: 0.01", "fail: no such device").replace("retries: 4", "retries: 0"))
        done = qplan("measure", "plan.yaml", "--store", "s.db")
        assert done.returncode == 4
        assert "no such device" in done.stderr
        assert done.stderr.rstrip().endswith("none of 2 points could be measured")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("plam.yaml",), "plam.yaml: No such file or directory"),
            (("saturaton",), "no plan file 'saturaton', and no command of that name; did you mean 'saturation'?"),
            (("bad.yaml",), "bad.yaml:4: quantizations[0]: unknown quantization 'W4A17'"),
            (("plan.yaml", "--store", "/nowhere/s.db"), "cannot open or make the file"),
            (("report", "none.db"), "no profile store at none.db"),
        ],
    )
    def test_bad_input_is_one_line(self, qplan: Qplan, plan: Path, arguments: tuple[str, ...], says: str) -> None:
        (plan.parent / "bad.yaml").write_text(PLAN.replace("BF16", "W4A17"))
        assert says in fails(qplan("measure", *arguments), 2)

    def test_the_example_is_a_plan(self, qplan: Qplan, tmp_path: Path) -> None:
        (tmp_path / "example.yaml").write_text(qplan("measure", "run", "--example").stdout)
        done = qplan("measure", "example.yaml", "--dry-run", "--json")
        assert done.returncode == 0, done.stderr


class TestServer:
    """The commands that measure one thing of a server that runs."""

    def test_a_load_is_measured_and_kept_beside_earlier_ones(
        self, qplan: Qplan, server: Callable[..., str], tmp_path: Path
    ) -> None:
        url = server(ttft_s=0.02, itl_s=0.005)
        named = ("--store", "s.db", *NAMED)
        arguments = ("measure", "load", "--url", url, "--qps", "20", "--requests", "20", "--workload", "isl=16,osl=8")
        for _ in range(2):
            done = valid(lambda: qplan(*arguments, "--slo", "p90:ttft=1s", "--json", *named))
            assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["observations"]
        assert row["offered_qps"] == 20
        assert row["slo_attainment"] == 1
        assert row["ttft_p50_s"] >= 0.02
        with ProfileStore(str(tmp_path / "s.db")) as store:
            rows = store.read(["quantization", "gpu", "engine", "repeat"]).to_pylist()
        assert sorted(row["repeat"] for row in rows) == list(range(len(rows)))
        assert len(rows) >= 2
        assert rows[0] | {"repeat": 0} == {
            "quantization": "W8A8-FP", "gpu": "H100-SXM5-80GB", "engine": "vllm", "repeat": 0,
        }  # fmt: skip

    def test_a_store_that_cannot_be_written_is_refused_before_anything_is_measured(
        self, qplan: Qplan, tmp_path: Path
    ) -> None:
        (tmp_path / "junk.db").write_bytes(b"no database " * 100)
        nobody = ("--url", "http://127.0.0.1:9", "--model", "m")
        done = qplan("measure", "load", *nobody, "--qps", "5", "--store", "junk.db", *NAMED)
        assert "not a profile store" in fails(done, 2)

    def test_a_load_reads_as_figures_and_a_table_of_times(self, qplan: Qplan, server: Callable[..., str]) -> None:
        url = server(ttft_s=0.02, itl_s=0.005)
        arguments = ("measure", "load", "--url", url, "--qps", "20", "--requests", "20", "--workload", "isl=16,osl=8")
        done = valid(lambda: qplan(*arguments))
        lines = [line.split() for line in done.stdout.splitlines()]
        assert ["time", "mean", "p50", "p90", "p95", "p99", "p90", "(95%", "CI)"] in lines
        assert {"TTFT", "TPOT", "ITL", "E2E"} <= {line[0] for line in lines if line}
        times = done.stdout.partition("\n\n")[2].splitlines()
        assert len(times) == 6
        assert max(len(line.rstrip()) for line in times) <= 80

    def test_ctrl_c_ends_a_load_on_a_server_that_never_answers(
        self, server: Callable[..., str], tmp_path: Path, environment: dict[str, str]
    ) -> None:
        command = [sys.executable, "-m", "qplan", "measure", "load", "--url", server(fault="hangs"), "--qps", "5"]
        process = subprocess.Popen(
            [*command, "--model", "fake"], cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        deadline_s = time.monotonic() + 60
        while not connected(psutil.Process(process.pid)):
            assert time.monotonic() < deadline_s, "it never connected"
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err

    @pytest.mark.slow
    def test_saturation_is_an_interval(self, qplan: Qplan, server: Callable[..., str]) -> None:
        url = server(slots=2, service_s=0.1)
        done = qplan(
            *("measure", "saturation", "--url", url, "--slo", "p90:ttft=200ms", "--workload", "isl=16,osl=4"),
            *("--budget", "12s", "--json"),
        )
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["observations"]
        assert row["saturation_low_qps"] < row["saturation_qps"] < row["saturation_high_qps"]
        assert row["saturation_low_qps"] < 20

    @pytest.mark.parametrize(
        ("options", "arguments", "code", "says"),
        [
            ({}, ("--qps", "0"), 2, "--qps: '0'; expected more than 0"),
            ({}, ("--qps", "1e9", "--duration", "1s"), 2, "1,000,000,000 requests; expected at most 1,000,000"),
            ({}, ("--qps", "5", "--requests", "5", "--workload", "isl=1e9,osl=4"), 2, "have 5,000,000,000 tokens"),
            ({}, ("--qps", "5", "--duration", "5s", "--warm-up", "5s"), 2, "--warm-up: '5s'; expected from 0 to less"),
            ({}, ("--qps", "5", "--api", "chatt"), 2, "--api: unknown API 'chatt'"),
            ({}, ("--qps", "5", "--store", " ", *NAMED), 2, "no store is named"),
            ({}, ("--qps", "5", "--workload", "chatt"), 2, "did you mean 'chat'?"),
            ({}, ("--qps", "5", "--slo", "ttfd=1s"), 2, "did you mean 'ttft'?"),
            ({}, ("--qps", "5", "--store", "s.db"), 2, "--store: an observation says what was served; add --quant"),
            ({}, ("--qps", "5", "--model", "other", "--api-key-env", "NOT_THERE"), 2, "no variable NOT_THERE"),
            ({"api_key": "secret"}, ("--qps", "5"), 4, "401"),
            ({"fault": "garbage"}, ("--qps", "20", "--requests", "5"), 4, "no request succeeded"),
            ({"fault": "error_body"}, ("--qps", "20", "--requests", "5"), 4, "no request succeeded"),
            ({"fault": "endless"}, ("--qps", "20", "--requests", "5", "--timeout", "1s"), 4, "no request succeeded"),
        ],
    )
    def test_what_is_wrong_is_one_line_and_an_exit_code(
        self,
        qplan: Qplan,
        server: Callable[..., str],
        options: dict[str, Any],
        arguments: tuple[str, ...],
        code: int,
        says: str,
    ) -> None:
        mix = () if "--workload" in arguments else ("--workload", "isl=8,osl=4")
        assert says in fails(qplan("measure", "load", "--url", server(**options), *arguments, *mix), code)

    def test_the_key_comes_from_the_environment_and_is_never_shown(
        self, qplan: Qplan, server: Callable[..., str]
    ) -> None:
        url = server(api_key="sesame")
        arguments = ("measure", "load", "--url", url, "--qps", "20", "--requests", "5", "--workload", "isl=8,osl=4")
        done = valid(lambda: qplan(*arguments, "--api-key-env", "THE_KEY", THE_KEY="sesame"))
        assert done.returncode == 0, done.stderr
        wrong = qplan(*arguments, "--api-key-env", "THE_KEY", THE_KEY="wrong-key-1234")
        assert "401" in fails(wrong, 4)
        assert "wrong-key-1234" not in wrong.stderr + wrong.stdout

    def test_nobody_answers(self, qplan: Qplan) -> None:
        for arguments in (("load", "--qps", "5"), ("saturation", "--slo", "ttft=1s"), ("quality",)):
            line = fails(qplan("measure", *arguments, "--url", "http://127.0.0.1:9"), 4)
            assert "127.0.0.1:9" in line
            assert "cannot be reached" in line

    def test_energy_where_there_is_no_counter_says_so(self, qplan: Qplan) -> None:
        done = qplan("measure", "energy", "--duration", "100ms", "--json")
        document = json.loads(done.stdout)
        if document["energy_j"] is None:
            assert done.returncode == 4
            assert "no energy counter" in done.stderr
        else:
            assert done.returncode == 0


@pytest.mark.parametrize("command", ["run", "load", "saturation", "quality", "energy", "report"])
def test_every_command_helps_with_an_example(qplan: Qplan, command: str) -> None:
    done = qplan("measure", command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert "qplan measure" in done.stdout
