"""What is written to run a plan: read by the shells, YAML readers and Kubernetes schemas that will read it."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qplan.core.errors import InputError
from qplan.core.fleetplan import FleetPlan, Group, Period, PlannedBucket, PlannedOption
from qplan.core.plan import Plan, Prediction, ReplicaGroup
from qplan.report.deploy import KINDS, Launches, read_launches, write_deployment

QUALITY = Prediction(1.0, 0.9, 1.1, None, "assumed")


def group(**changes: Any) -> ReplicaGroup:
    given = ReplicaGroup(
        deployment="llama-3.1-8b W4A16 H100-SXM5-80GB x2",
        model="llama-3.1-8b",
        quantization="W4A16",
        gpu="H100-SXM5-80GB",
        tp=2,
        engine="vllm",
        engine_version="0.11.0",
        count=3,
        cost_per_hour=8.0,
        share=1.0,
        load_qps=1.0,
        saturation_qps=2.0,
        quality=QUALITY,
        predicted=(),
    )
    return replace(given, **changes)


def plan(*groups: ReplicaGroup) -> Plan:
    return Plan(
        status="optimal",
        objective_name="cost",
        replicas=groups,
        gpus={},
        cost_per_hour=1.0,
        power_w=None,
        power_note="",
        quality=QUALITY,
        predicted=(),
        headroom=0.1,
        objective=1.0,
        bound=1.0,
        gap=0.0,
        solver="highs",
        solve_s=0.1,
        provenance=(),
        assumptions=(),
    )


def option(name: str, pool: str, quantization: str = "W8A8-FP") -> PlannedOption:
    return PlannedOption(
        name=name,
        model="llama-2-70b",
        quantization=quantization,
        gpu="H100-SXM5-80GB",
        tp=4,
        engine="trtllm",
        engine_version="1.0.0",
        pool=pool,
        quality={"chat": QUALITY},
        saturation_qps={"chat": 2.0},
        idle_w=300.0,
        provenance="measured",
    )


def in_period(name: str, count: int, shares: tuple[float, ...]) -> Group:
    return Group(name, count, 0, 1.0, 1.0, 0.5, None, shares, {})


def day() -> FleetPlan:
    """Two periods: two replicas by night; three, one of them on spot GPUs, by day."""
    night = Period(0.0, 8.0, {"chat": 1.0}, {"h100": 8}, (in_period("a", 2, (1.0, 1.0)),), None)
    groups = (in_period("a", 2, (1.0, 0.25)), in_period("b", 1, (0.0, 0.75)))
    busy = Period(8.0, 16.0, {"chat": 2.0}, {"h100": 8, "h100 spot": 4}, groups, None)
    return FleetPlan(
        status="optimal",
        name="day",
        hours=24.0,
        buckets=(PlannedBucket("chat", 100, 50, 0.6), PlannedBucket("chat", 1000, 100, 0.4)),
        options=(option("a", "h100"), option("b", "h100 spot", "W8A8KV8-FP")),
        periods=(night, busy),
        bought={},
        totals=None,
        objective_name="cost",
        objective=1.0,
        bound=1.0,
        gap=0.0,
        solver="highs",
        solve_s=0.1,
        energy_note="",
        provenance=(),
        assumptions=(),
    )


def read(planned: Plan | FleetPlan, folder: Path) -> Launches:
    path = folder / "plan.json"
    path.write_text(json.dumps(planned.to_json()))
    return read_launches(path)


def write(planned: Plan | FleetPlan, folder: Path, weights: dict[str, str] | None = None, gpus: int = 8) -> Path:
    write_deployment(read(planned, folder), folder / "out", KINDS, weights or {}, gpus)
    return folder / "out"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def test_kubernetes_accepts_every_manifest(tmp_path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    out = write(day(), tmp_path)
    kinds = []
    for name in ("replicas", "schedule"):
        for document in documents(out / f"kubernetes/{name}.yaml"):
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            kinds.append(document["kind"])
    assert set(kinds) == {"ConfigMap", "Deployment", "Service", "ServiceAccount", "Role", "RoleBinding", "CronJob"}


def test_a_replica_gets_its_gpus_its_limits_and_its_weights(tmp_path: Path) -> None:
    out = write(plan(group()), tmp_path, {"llama-3.1-8b:W4A16": "org/llama-awq"})
    (deployment, service) = documents(out / "kubernetes/replicas.yaml")
    assert deployment["spec"]["replicas"] == 3
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert container["image"] == "vllm/vllm-openai:v0.11.0"
    command = container["command"]
    assert command[:3] == ["vllm", "serve", "org/llama-awq"]
    for flag, value in {"--tensor-parallel-size": "2", "--max-num-seqs": "512", "--kv-cache-dtype": "auto"}.items():
        assert command[command.index(flag) + 1] == value
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]


def test_replicas_follow_the_hours(tmp_path: Path) -> None:
    out = write(day(), tmp_path)
    jobs = [one for one in documents(out / "kubernetes/schedule.yaml") if one["kind"] == "CronJob"]
    scaled = {}
    for job in jobs:
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        scaled[job["spec"]["schedule"]] = container["command"][-1].split()
    (spot,) = (one.name for one in read(day(), tmp_path).sets if one.pool == "h100 spot")
    assert scaled["0 0 * * *"][3:] == [spot, "--replicas=0"]
    assert scaled["0 8 * * *"][3:] == [spot, "--replicas=1"]


def test_weights_at_the_gateway_are_the_mean_over_the_requests_of_a_class(tmp_path: Path) -> None:
    periods = day().periods
    out = write(replace(day(), periods=(replace(periods[1], start_h=0.0, hours=24.0),)), tmp_path)
    (route,) = documents(out / "kubernetes/routes.yaml")
    (rule,) = route["spec"]["rules"]
    assert rule["matches"] == [{"headers": [{"name": "x-request-class", "value": "chat"}]}]
    assert [target["weight"] for target in rule["backendRefs"]] == [7000, 3000]  # 0.6 + 0.4 x 0.25
    assert not (out / "kubernetes/schedule.yaml").exists()


def test_the_routing_table_says_it_by_length(tmp_path: Path) -> None:
    table = json.loads((write(day(), tmp_path) / "routing.json").read_text())
    assert [(period["start_h"], period["end_h"]) for period in table["periods"]] == [(0.0, 8.0), (8.0, 24.0)]
    names = [target["name"] for target in table["targets"]]
    assert [target["replicas"] for target in table["targets"]] == [[2, 2], [0, 1]]
    routes = table["periods"][1]["routes"]
    assert routes[0]["weights"] == {names[0]: 1.0}
    assert routes[1]["weights"] == {names[0]: 0.25, names[1]: 0.75}


def test_compose_gives_each_replica_gpus_of_its_own_and_fills_machines(tmp_path: Path) -> None:
    out = write(plan(group(count=3), group(tp=4, quantization="W8A8-FP", count=1)), tmp_path)
    files = sorted((out / "compose").iterdir())
    assert len(files) == 2  # 4 + 3 x 2 GPUs on machines of 8
    for file in files:
        services = documents(file)[0]["services"].values()
        used = [
            device
            for service in services
            for device in service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        ]
        assert len(set(used)) == len(used) <= 8
        assert len({service["ports"][0] for service in services}) == len(services)


def test_a_replica_wider_than_a_machine_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spans 2 GPUs of one machine"):
        write(plan(group()), tmp_path, gpus=1)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_scripts_are_shell_that_runs_the_engine_with_its_options(tmp_path: Path) -> None:
    out = write(day(), tmp_path, {"llama-2-70b:W8A8-FP": "/a folder/weights"})
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stub = bin_folder / "trtllm-serve"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    (script,) = (out / "commands").glob("*kv8*.sh")
    said = subprocess.run(
        [script], env={"PATH": f"{bin_folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    words = said.stdout.splitlines()
    assert words[0] == "/a folder/weights"
    options = json.loads(Path(words[words.index("--extra_llm_api_options") + 1]).read_text())
    assert options["kv_cache_config"]["dtype"] == "fp8"


def test_kserve_runs_the_same_container(tmp_path: Path) -> None:
    out = write(plan(group()), tmp_path)
    (service,) = documents(out / "kserve/inference-services.yaml")
    predictor = service["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["containers"][0]["name"]) == (3, "kserve-container")


def test_names_are_labels_and_differ(tmp_path: Path) -> None:
    long = group(model="codellama-34b", quantization="W8A8-FP-KV8-FP", engine="sglang")
    names = [one.name for one in read(plan(long, long, group()), tmp_path).sets]
    assert len(set(names)) == 3
    assert all(name == name.lower() and len(name) <= 63 and name.replace("-", "").isalnum() for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "schema_version is None"),
        (
            json.dumps(replace(plan(), status="infeasible", reason="too slow").to_json()),
            "infeasible and has no fleet.*slow",
        ),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_launches(path)


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the plan has no llama-2-7b:W4A16; it has llama-3.1-8b:W4A16"):
        write(plan(group()), tmp_path, {"llama-2-7b:W4A16": "x"})
    with pytest.raises(InputError, match="no launch command is known for 'tgi'"):
        write(plan(group(engine="tgi")), tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(InputError, match="expected a new or an empty folder"):
        write(plan(group()), tmp_path)
