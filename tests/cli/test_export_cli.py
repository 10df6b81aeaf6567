"""``qplan export`` from a plan that ``qplan capacity`` printed."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from qplan.cli.app import app

runner = CliRunner()


def test_a_printed_plan_becomes_files(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(runner.invoke(app, ["capacity", "--qps", "10", "--slo", "ttft=1s", "--json"]).stdout)
    out = tmp_path / "deploy"
    said = runner.invoke(app, ["export", str(plan), "-o", str(out), "--kind", "compose", "--kind", "routing", "--json"])
    files = json.loads(said.stdout)["files"]
    assert sorted(files) == sorted(str(path) for path in out.rglob("*") if path.is_file())
    assert {Path(file).parent.name for file in files} == {"compose", "deploy"}
    assert any("checkpoint" in note for note in json.loads(said.stdout)["notes"])


def test_mistyped_options_say_what_was_expected(tmp_path: Path) -> None:
    for arguments, hint in (
        (["--kind", "kubernets"], "did you mean 'kubernetes'"),
        (["--weights", "llama"], "MODEL:QUANTIZATION=WHERE"),
    ):
        said = runner.invoke(app, ["export", str(tmp_path / "plan.json"), "-o", str(tmp_path / "x"), *arguments])
        assert hint in str(said.exception), said.exception
