"""``qplan capacity demand.yaml`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qplan.cli import main
from qplan.cli.app import app
from qplan.core.errors import InputError, QplanError
from qplan.core.fleetplan import FleetPlan

DEMAND = """\
classes:
  - name: chat
    rate: 30qps
    demand: [1, 2]
    lengths: isl=256,osl=64
    slo: [p90:ttft=1s]
    models: [llama-3.1-8b]
    quantizations: [BF16]
gpus: [{gpu: h100, count: 4}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "demand.yaml"
    file.write_text(DEMAND)
    return file


def qplan(*arguments: str) -> str:
    """Run the command in this process; what it raises is what :func:`qplan.cli.main` prints."""
    done = CliRunner().invoke(app, ["capacity", *arguments])
    if isinstance(done.exception, QplanError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_demand_file_becomes_a_plan(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qplan", "capacity", str(path), "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert done.stderr == ""
    plan = FleetPlan.from_json(json.loads(done.stdout))
    assert plan.name == "demand"
    assert plan.status == "optimal"
    assert len(plan.periods) == 2


@pytest.mark.slow
def test_the_table_and_the_figure(path: Path) -> None:
    figure = path.with_name("fleet.png")
    shown = qplan(str(path), "--plot", str(figure), "--objective", "gpus")
    assert "GPU-hours (gpus)" in shown
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_what_if_shows_both_and_the_difference(path: Path) -> None:
    document = json.loads(qplan(str(path), "--what-if", "qps=60", "--json"))
    assert document["kind"] == "fleet-what-if"
    (change,) = document["changes"]
    assert change["difference"]["cost"] >= 0
    assert max(sum(period["rate_qps"].values()) for period in change["plan"]["periods"]) == pytest.approx(60)


def test_flags_stand_for_a_demand_of_one_class() -> None:
    flags = ["--qps", "20", "--slo", "ttft=1s", "--workload", "isl=256,osl=64", "--gpus", "h100", "--quant", "BF16"]
    document = json.loads(qplan(*flags, "--sweep", "qps=20..60/2", "--json"))
    few, more = document["points"]
    assert (few["peak_qps"], more["peak_qps"]) == (20, 60)
    assert few["cost"] <= more["cost"]


def test_the_example_is_printed() -> None:
    assert qplan("--example").startswith("name: ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--qps", "3"], r"--qps: .*demand.yaml says that"),
        (["--gpus", "h100"], r"--gpus: .*demand.yaml says that"),
        (["--objective", "cots"], r"unknown measure 'cots'.* did you mean 'cost'"),
        (["--confidence", "95"], r"--confidence: 95; expected at least 0.5 and below 1"),
        (["--time-limit", "-3s"], r"--time-limit: '-3s'; expected more than 0"),
        (["--sweep", "qps=1..2", "--pareto", "cost,gpus"], r"--sweep and --pareto: expected one of them"),
        (["--sweep", "qps=1..2", "--explain"], r"--explain: goes with a single plan, not with --sweep"),
        (["--pareto", "cost,watts"], r"pareto: unknown 'watts'"),
        (["--what-if", "+1h10"], r"--what-if: unknown GPU 'h10'"),
        (["--what-if", "+1h100", "--plot", "x.png"], r"--plot: draws a plan"),
        (["--plot", "x.pdf"], r"--plot: x.pdf; expected a name that ends in .png or .html"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        qplan(str(path), *flags)


def test_something_must_be_asked() -> None:
    with pytest.raises(InputError, match="expected --qps RATE, or a demand file"):
        qplan()
    with pytest.raises(InputError, match=r"none.yaml: No such file"):
        qplan("none.yaml")


def test_no_fleet_is_an_answer_with_exit_code_3(path: Path) -> None:
    path.write_text(DEMAND.replace("30qps", "30000qps"))
    done = CliRunner().invoke(app, ["capacity", str(path)])
    assert done.exit_code == 3
    assert "No feasible plan" in done.output
    assert "nearest change" in done.output


def test_long_work_is_shown_on_a_terminal(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qplan", "capacity", str(path), "--json"])
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "planning" in shown.err
    assert json.loads(shown.out)["status"] == "optimal"


def test_ctrl_c_is_one_line_and_exit_code_130(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qplan.solvers.fleet.planning.plan_fleet", pressed)
    monkeypatch.setattr(sys, "argv", ["qplan", "capacity", str(path), "--plot", str(path.with_name("fleet.png"))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "qplan: interrupted\n")
    assert list(path.parent.iterdir()) == [path]
