"""``qplan route`` as a user runs it: solve, simulate, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from qplan.cli.app import app
from qplan.core.errors import InputError
from qplan.core.policy import Policy

DEMAND = """
classes:
  - name: chat
    rate: 8qps
    lengths: isl=400,osl=60
    slo: [p90:ttft=1s, p90:tpot=50ms]
    models: [llama-2-7b]
    quality: 90%
  - name: nightly
    rate: 2qps
    lengths: isl=900,osl=30
    models: [llama-2-7b]
    quality: 90%
start: {time: 20s}
"""
FLEET = [
    {"model": "llama-2-7b", "quantization": "BF16", "gpu": "a100", "count": 2},
    {"model": "llama-2-7b", "quantization": "W8A8-FP", "gpu": "h100", "count": 2},
]


def run(*arguments: str) -> str:
    """Run the command in this process; errors come through."""
    done = CliRunner().invoke(app, ["route", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A fleet, a demand, and the policy that `solve` writes."""
    folder = tmp_path_factory.mktemp("route")
    (folder / "fleet.json").write_text(json.dumps({"schema_version": 1, "replicas": FLEET}))
    (folder / "demand.yaml").write_text(DEMAND)
    found = {name: str(folder / name) for name in ("fleet.json", "demand.yaml", "policy.json")}
    found["shown"] = run(
        *("solve", found["fleet.json"], found["demand.yaml"], "-o", found["policy.json"]),
        *("--levels", "3", "--batch", "nightly=2h"),
    )
    return found


def read(path: str) -> Policy:
    return Policy.from_json(json.loads(Path(path).read_text()))


def test_solve_writes_a_policy_and_shows_it(files: dict[str, str]) -> None:
    policy = read(files["policy.json"])
    assert [(group.quantization, group.count) for group in policy.groups] == [("BF16", 2), ("W8A8-FP", 2)]
    assert policy.class_named("nightly").deadline_s == 7200
    assert len(policy.levels) == 3
    for said in ("llama-2-7b-bf16-a100-tp1", "spills to", "margin", "wake time: 20 s", "lower convex hull"):
        assert said in files["shown"]


def test_simulate_compares(files: dict[str, str], tmp_path: Path) -> None:
    common = ("simulate", files["policy.json"], files["fleet.json"], files["demand.yaml"])
    found: Any = json.loads(run(*common, "--qps", "6", "--requests", "600", "--json"))
    energy = {one["name"]: one["energy_j"] for one in found["policies"]}
    assert {"round-robin", "session-hash", "power-of-two", "all 16-bit", "energy", "energy, sleeping"} <= set(energy)
    assert energy["energy"] < energy["least-outstanding"]
    assert found["bound_j"] < min(energy.values())
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2026-01-01 00:00:{second:02d}.5,{300 + 10 * second},{20 + second}\n" for second in range(60))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    plot = tmp_path / "routing.html"
    shown = run(
        *(*common, "--trace", str(trace), "--class", "nightly", "--speed-up", "2", "--no-bound", "--plot", str(plot)),
        *("--policy", "least-outstanding", "--policy", "energy", "--times-off", "1.3", "--lengths-off", "0.5"),
    )
    assert "60 requests (trace.csv, 2 times as fast)" in " ".join(shown.split())
    assert "p90:ttft=1s" in shown
    assert "data:image/png" in plot.read_text()


def test_export_splits_each_class(files: dict[str, str], tmp_path: Path) -> None:
    policy = read(files["policy.json"])
    load = f"{policy.levels[0].load_qps}qps"
    out = tmp_path / "routes.yaml"
    run("export", files["policy.json"], "--load", load, "--kind", "llm-d", "-o", str(out))
    routes = list(yaml.safe_load_all(out.read_text()))
    assert [route["kind"] for route in routes] == ["HTTPRoute"] * 2
    for route in routes:
        backends = route["spec"]["rules"][0]["backendRefs"]
        assert sum(one["weight"] for one in backends) == pytest.approx(1000, abs=2)
        assert {one["kind"] for one in backends} == {"InferencePool"}
    weights = json.loads(run("export", files["policy.json"], "--load", load, "--kind", "weights"))
    assert sum(weights["weights"]["chat"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("solve", "fleet.json", "demand.yaml", "--batch", "nightli=2h"), "did you mean 'nightly'"),
        (("solve", "fleet.json", "demand.yaml", "--batch", "nightly=-2h"), "to wait for more than 0 s"),
        (("solve", "fleet.json", "demand.yaml", "--class", "chat"), "expected --trace"),
        (("solve", "fleet.json", "demand.yaml", "-o", "no folder/policy.json"), "--out: no folder no folder"),
        (("solve", "fleet.json", "demand.yaml", "-o", "."), "expected the name of a file"),
        (("simulate", "policy.json", "fleet.json", "demand.yaml", "--qps", "5", "--class", "chat"), "expected --trace"),
        (("simulate", "policy.json", "fleet.json", "demand.yaml", "--qps", "5", "--times-off", "-1"), "more than 0"),
        (("simulate", "policy.json", "fleet.json", "demand.yaml", "--qps", "5", "--lengths-off", "0"), "more than 0"),
        (("simulate", ".", "fleet.json", "demand.yaml", "--qps", "5"), "cannot read .: Is a directory"),
        (("simulate", "policy.json", "fleet.json", "demand.yaml"), "either --trace or --qps"),
        (("simulate", "policy.json", "fleet.json", "demand.yaml", "--qps", "5", "--policy", "enery"), "'energy'"),
        (("simulate", "none.json", "fleet.json", "demand.yaml", "--qps", "5"), "no file"),
        (("simulate", "fleet.json", "fleet.json", "demand.yaml", "--qps", "5"), "routing-policy"),
        (("export", "policy.json", "--load", "1e6qps"), "the policy serves from 0 to"),
        (("export", "policy.json", "--load", "1qps", "--kind", "gate"), "gateway"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], said: str, files: dict[str, str]) -> None:
    with pytest.raises(InputError, match=said):
        run(*(files.get(one, one) for one in arguments))


def test_the_examples_make_a_policy(tmp_path: Path) -> None:
    for command, name in (("simulate", "fleet.json"), ("capacity", "demand.yaml")):
        done = CliRunner().invoke(app, [command, "--example"], catch_exceptions=False)
        (tmp_path / name).write_text(done.stdout)
    out = tmp_path / "policy.json"
    run("solve", str(tmp_path / "fleet.json"), str(tmp_path / "demand.yaml"), "-o", str(out), "--levels", "2")
    policy = read(str(out))
    assert {one.name for one in policy.classes} == {"assistant", "completion"}
    assert all(group.quality for group in policy.groups)
