"""``qplan tune`` as a user runs it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qplan.cli.app import app
from qplan.core.errors import InputError
from qplan.solvers.tuning.measuring import Hooks, Measured
from qplan.solvers.tuning.setup import open_job
from qplan.solvers.tuning.space import Configuration, enumerate_space
from qplan.solvers.tuning.study import storage_at
from qplan.solvers.tuning.tunefile import parse_tuning
from qplan.solvers.tuning.worker import work

PLAN = """\
name: pack
models: [{name: smollm2-135m, context: 512, max_sequences: 8}]
space:
  quantization: [F16, Q8_0, Q4_0, Q5_K]
  kv: [16, KV8-INT]
  gpu: cpu
  engine: llamacpp
objectives: [saturation, perplexity:english, memory]
workload: isl=16,osl=8
slo: [p90:ttft=1s]
stop_below: never
budget: 4 measurements
"""
TABLE = ("--from-store", "llamacpp-cpu")


def tune(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["tune", *arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tuning file, and a study of it that spent its budget."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "tune.yaml").write_text(PLAN)
    tune(str(folder / "tune.yaml"), *TABLE, "--storage", str(folder / "tuning.db"))
    return folder


def test_the_example_is_a_plan(tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text(tune("run", "--example"))
    said = tune(str(tmp_path / "tune.yaml"), *TABLE, "--dry-run")
    assert "10 configurations" in said


def test_a_dry_run_lists_what_is_no_configuration(folder: Path) -> None:
    found = json.loads(tune(str(folder / "tune.yaml"), *TABLE, "--dry-run", "--json"))
    assert len(found["configurations"]) == 6
    assert [one["what"] for one in found["refused"]] == ["Q5_K KV16", "Q5_K KV8-INT"]


def test_the_same_command_goes_on_with_a_greater_budget(folder: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "study.journal")
    (tmp_path / "more.yaml").write_text(PLAN.replace("4 measurements", "6 measurements"))
    plans = (folder / "tune.yaml", tmp_path / "more.yaml")
    first, second = (
        [json.loads(line) for line in tune(str(plan), *TABLE, "--storage", storage, "--json").splitlines()]
        for plan in plans
    )
    assert [line["event"] for line in first] == ["Began", "Ended"] * 4 + ["Stopped"]
    assert [line["event"] for line in second] == ["Began", "Ended"] * 2 + ["Stopped"]
    measured = [line["configuration"] for line in (*first, *second) if line["event"] == "Ended"]
    assert len(set(measured)) == 6
    assert {one["configuration"] for one in second[-1]["front"]} < set(measured)


@pytest.mark.slow
def test_the_report_says_what_was_found(folder: Path) -> None:
    said = tune("report", str(folder / "tuning.db"))
    for words in ("configuration", "what moves saturation", "left on the table", "left out: Q5_K KV16"):
        assert words in said
    found = json.loads(tune("report", str(folder / "tuning.db"), "--json"))
    assert len(found["found"]) == 4
    assert found["hypervolume"][-1] == 1
    assert found["hypervolume"] == sorted(found["hypervolume"])
    assert set(found["importance"]) == {"saturation", "perplexity:english", "memory"}
    assert {one["trial"] for one in found["front"]} <= {one["trial"] for one in found["found"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study.png", "study.html"])
def test_the_report_is_drawn(folder: Path, tmp_path: Path, name: str) -> None:
    tune("report", str(folder / "tuning.db"), "--plot", str(tmp_path / name))
    written = (tmp_path / name).read_bytes()
    assert written.startswith(b"\x89PNG" if name.endswith("png") else b"<!DOCTYPE html>")


def test_the_chosen_configuration_is_shown(folder: Path) -> None:
    front = json.loads(tune("report", str(folder / "tuning.db"), "--json"))["front"]
    fastest = max(front, key=lambda one: one["values"]["saturation"])
    found = json.loads(tune("apply", str(folder / "tuning.db"), "--best", "saturation", "--json"))
    assert found["trial"]["trial"] == fastest["trial"]
    assert found["target"]["engine"] == "llamacpp"
    assert fastest["configuration"] in tune("apply", str(folder / "tuning.db"), "--trial", str(fastest["trial"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("apply", "--best", "satration"), "did you mean 'saturation'"),
        (("apply", "--trial", "99"), "99 was not measured; on the front are"),
        (("apply", "--trial", "0", "--best", "memory"), "expected one of them"),
        (("apply", "--best", "memory", "--launch", "-"), "names no weights to serve"),
        (("apply", "--best", "memory", "--slo", "p90:ttft=1s"), "expected --qps"),
        (("report", "--study", "pakc"), "did you mean 'pack'"),
        (("report", "--plot", "study.gif"), "ends in .png or .html"),
    ],
)
def test_bad_input_is_one_clear_line(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    command, *rest = arguments
    with pytest.raises(InputError, match=said):
        tune(command, str(folder / "tuning.db"), *rest)


def test_workers_are_of_a_cluster(folder: Path) -> None:
    with pytest.raises(InputError, match="only with --ray"):
        tune(str(folder / "tune.yaml"), *TABLE, "--workers", "2")


def test_a_study_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        tune("report", str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(InputError, match="did you mean 'report'"):
        tune("repot")


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_what_is_no_storage_is_left_as_it_is(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.db"
    if content is None:
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE mine (x)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    for command in ("report", "apply"):
        with pytest.raises(InputError, match="holds no study"):
            tune(command, str(path))
    assert path.read_bytes() == before


def test_a_table_of_other_models_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(PLAN.replace("smollm2-135m", "smollm2-360m"))
    with pytest.raises(InputError, match="llamacpp-cpu has nothing of the models"):
        tune(str(tmp_path / "other.yaml"), *TABLE, "--storage", str(tmp_path / "study.db"))


def test_another_question_under_the_same_name_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(PLAN.replace("saturation, ", ""))
    with pytest.raises(InputError, match="asks for other objectives"):
        tune(str(tmp_path / "other.yaml"), *TABLE, "--storage", str(folder / "tuning.db"))


@pytest.mark.slow
def test_a_fleet_of_the_chosen_configuration_is_sized(tmp_path: Path) -> None:
    plan = """\
name: gpus
space: {model: llama-2-13b, quantization: [BF16, W4A16], gpu: h100, tp: 1, engine: trtllm}
objectives: [throughput, p90:ttft]
workload: chat
slo: [p90:ttft=1s]
load: 1qps
budget: 1
"""

    def measure(one: Configuration, known: object, hooks: Hooks) -> Measured:
        serving = {"phase": "serving", "status": "ok", "output_tokens_per_s": 900.0, "ttft_p90_s": 0.1}
        return Measured((serving,), 10.0)

    tuning = parse_tuning(plan, "t")
    with storage_at(str(tmp_path / "study.db")) as storage:
        job = open_job(tuning, storage, enumerate_space(tuning.space, lambda _: None), measure, "made up")
        work(job, emit=lambda _: None, stopping=lambda: False)
    found = json.loads(tune("apply", str(tmp_path / "study.db"), "--qps", "10", "--json"))
    assert found["status"] == "optimal"
    served = {(group["model"], group["quantization"]) for group in found["replicas"]}
    assert served == {("llama-2-13b", str(job.study.trials[0].params["quantization"]))}
