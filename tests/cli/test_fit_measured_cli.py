from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qplan.cli.app import app
from qplan.core.errors import QplanError
from qplan.models.fitted import KIND, load_fitted
from qplan.models.saved import save
from qplan.profiles.observations import from_rows
from qplan.profiles.store import ProfileStore
from tests.models.calibration import made

PLAN = ("--slo", "ttft=500ms", "--model", "llama-3.1-8b", "--gpus", "h100", "--quant", "BF16", "--json")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two runs of one's own, and what calibrating on them printed and saved."""
    folder = tmp_path_factory.mktemp("measured")
    with ProfileStore(str(folder / "mine.db")) as store:
        store.add(from_rows(made.runs((10.0, 36.0)), "made"))
    shown = run(
        *("fit", "trtllm-composed", "--measured", str(folder / "mine.db"), "--json"),
        *("-o", str(folder / "ours.qplan"), "--plot", str(folder / "curve.png")),
    )
    assert shown.exit_code == 0, shown.output
    (folder / "report.json").write_text(shown.stdout)
    return folder


def test_the_report_tells_errors_before_after_and_by_points(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    report = json.loads((folder / "report.json").read_text())
    system = next(one for one in report["corrections"] if one["level"] != "other systems")
    assert system["points"] == {"tpot": 2, "ttft": 2}
    assert system["median_error_left_out"]["ttft"] < system["median_error_before"]["ttft"]
    assert [one["points"] for one in report["error_by_points"]["tpot"]] == [0, 1]
    assert (folder / "curve.png").stat().st_size > 5_000


def test_predictions_and_plans_are_of_the_measured_engine(folder: Path) -> None:
    ours = str(folder / "ours.qplan")
    asked = ("--model", "llama-3.1-8b", "--quant", "BF16", "--gpu", "h100", "--workload", "chat", "--qps", "20")
    found = json.loads(run("predict", *asked, "--fitted", ours, "--json").output)
    assert (found["deployment"]["engine"], found["deployment"]["engine_version"]) == ("vllm", "0.12.0")
    assert "2 measured runs" in found["quantities"]["ttft_p90"]["provenance"]
    plans = [json.loads(run("capacity", "--qps", "100", *PLAN, *more).output) for more in ((), ("--profiles", ours))]
    assert plans[1]["replicas"][0]["engine"] == "vllm"
    assert plans[1]["cost_per_hour"] > plans[0]["cost_per_hour"]  # the made engine is slower
    widths = [plan["predicted"]["ttft"]["upper"] / plan["predicted"]["ttft"]["lower"] for plan in plans]
    assert widths[1] < widths[0]


def test_a_fleet_is_planned_on_the_corrected_times_with_confidence(folder: Path) -> None:
    chat = "{name: chat, rate: 100qps, demand: flat, lengths: chat, models: [llama-3.1-8b], quantizations: [BF16]}"
    (folder / "demand.yaml").write_text(
        f"profiles: {folder / 'ours.qplan'}\nclasses: [{chat}]\ngpus: [{{gpu: h100, count: 64}}]\nperiod: 24h\n"
    )
    shown = run("capacity", str(folder / "demand.yaml"), "--confidence", "0.8", "--json")
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.output)
    assert all("corrected by" in option["provenance"] for option in plan["options"])
    assert not any("unknown" in warning for warning in plan["warnings"])  # the errors came with the model


def test_a_simulation_runs_on_the_corrected_times(folder: Path) -> None:
    group = {"model": "llama-3.1-8b", "quantization": "BF16", "gpu": "h100", "engine": "vllm"}
    (folder / "fleet.json").write_text(json.dumps({"schema_version": 1, "replicas": [group]}))
    asked = ("simulate", "--qps", "5", "--requests", "50", "--fleet", str(folder / "fleet.json"), "--json")
    shown = run(*asked, "--profiles", str(folder / "ours.qplan"))
    assert shown.exit_code == 0, shown.output
    assert "corrected by" in shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trtllm-composed", "--measured", "nothing.db"), "no profile store at nothing.db"),
        (("trtllm-composed", "--measured", "trtllm-composed"), "has no serving row"),
        (("trtllm-composed", "--measured", "mine.db", "--plot", "curve.gif"), "--plot: curve.gif: expected a name"),
        (("ours.qplan", "--measured", "mine.db"), "is calibrated already"),
        (("llamacpp-cpu", "--measured", "mine.db"), "no prefill or decode row"),
    ],
)
def test_wrong_input_is_one_clear_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(folder)
    failed = run("fit", *arguments)
    assert isinstance(failed.exception, QplanError)
    assert says in str(failed.exception)


def test_a_model_without_step_times_makes_no_plan(folder: Path) -> None:
    save(folder / "empty.qplan", KIND, {"fitted": {**load_fitted(None).to_data(), "steps": 0}})
    failed = run("capacity", "--qps", "1", "--profiles", str(folder / "empty.qplan"))
    assert isinstance(failed.exception, QplanError)
    assert "not a step surrogate" in str(failed.exception)
