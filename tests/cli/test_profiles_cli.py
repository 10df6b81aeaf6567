from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from qplan.cli.profiles import app
from qplan.core.errors import InputError, StoreError
from qplan.profiles.packs import read_pack
from qplan.profiles.store import ProfileStore

if TYPE_CHECKING:
    from typer.testing import Result

CSV = "offered_qps,ttft_p99_s,workload\n1,0.2,chat\n2,0.3,chat\n"
SAID = [
    "--model",
    "llama-2-7b",
    "--quant",
    "w4a16",
    "--gpu",
    "l40s",
    "--tp",
    "1",
    "--engine",
    "vllm",
    "--engine-version",
    "0.33.0",
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with no store named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QPLAN_STORE", raising=False)
    Path("runs.csv").write_text(CSV)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def import_runs(*more: str) -> Result:
    return run("import", "runs.csv", "--format", "csv", *SAID, *more)


def test_import_show_export_validate_and_import_again() -> None:
    assert import_runs().output == "qplan.db: 2 new, 0 unchanged, 0 replaced\n"
    assert import_runs().output == "qplan.db: 0 new, 2 unchanged, 0 replaced\n"
    shown = run("show", "qplan.db")
    assert "llama-2-7b" in shown.output
    assert "vllm 0.33.0" in shown.output
    assert run("export", "ours.parquet", "--title", "Ours").output == "ours.parquet: 2 observations, with ours.json\n"
    assert read_pack("ours.parquet").card.title == "Ours"
    checked = run("validate", "ours.parquet")
    assert (checked.exit_code, checked.output) == (0, "ours.parquet: ok\n")
    again = run("import", "ours.parquet", "--format", "parquet", "--store", "other.db", "--json")
    assert json.loads(again.output)["new"] == 2
    with ProfileStore("qplan.db") as ours, ProfileStore("other.db") as other:
        assert ours.read().equals(other.read())


def test_every_command_speaks_json() -> None:
    assert json.loads(import_runs("--json").output) == {
        "schema_version": 1,
        "store": "qplan.db",
        "new": 2,
        "unchanged": 0,
        "replaced": 0,
    }
    listed = json.loads(run("list", "--json").output)
    assert listed["stores"] == [{"store": "qplan.db", "rows": 2}]
    assert isinstance(listed["packs"], list)
    [group] = json.loads(run("show", "--json").output)["groups"]
    assert (group["model"], group["quantization"], group["rows"], group["ok"]) == (
        "llama-2-7b",
        "W4A16",
        2,
        2,
    )
    said = ("--made-by", "qplan measure ours.yaml", "--note", "Short runs.", "--note", "Shared machine.")
    exported = json.loads(run("export", "ours.parquet", *said, "--json").output)
    assert (exported["rows"], exported["provenance"], exported["made_from"]) == (2, "measured", ["runs.csv"])
    assert exported["made_by"] == "qplan measure ours.yaml"
    assert exported["notes"] == ["Short runs.", "Shared machine."]
    assert json.loads(run("show", "ours.parquet", "--json").output)["groups"] == [group]
    assert json.loads(run("validate", "ours.parquet", "--json").output)["valid"] is True


def test_the_store_is_the_option_then_the_environment_then_a_file_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QPLAN_STORE", "env.db")
    import_runs()
    import_runs("--store", "option.db")
    assert sorted(path.name for path in Path().glob("*.db")) == ["env.db", "option.db"]


def test_one_broken_file_keeps_all_out() -> None:
    Path("broken.csv").write_text("offered_qps,ttft_p99_s\n3,-1\n")
    result = run("import", "runs.csv", "broken.csv", "--format", "csv", *SAID)
    assert isinstance(result.exception, InputError)
    assert not Path("qplan.db").exists()


def test_other_measurements_need_replace() -> None:
    import_runs()
    Path("runs.csv").write_text(CSV.replace("0.3", "0.4"))
    refused = import_runs()
    assert isinstance(refused.exception, InputError)
    assert "runs.csv: 1 of 2 observations differ" in str(refused.exception)
    assert import_runs("--replace").output == "qplan.db: 0 new, 1 unchanged, 1 replaced\n"


def test_validate_names_every_wrong_file_and_exits_2() -> None:
    import_runs()
    run("export", "good.parquet")
    Path("bad.parquet").write_text("no")
    result = run("validate", "bad.parquet", "good.parquet")
    assert result.exit_code == 2
    bad, good = result.output.splitlines()
    assert bad.startswith("bad.parquet: not a readable Parquet file")
    assert good == "good.parquet: ok"


def test_showing_what_is_not_there_makes_nothing() -> None:
    assert isinstance(run("show").exception, StoreError)
    assert isinstance(run("show", "typo.db").exception, StoreError)
    assert isinstance(run("show", "typo").exception, InputError)
    assert run("list").exit_code == 0
    assert not list(Path().glob("*.db"))


@pytest.mark.parametrize("command", ["list", "show", "import", "export", "validate"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert "--json" in result.output
