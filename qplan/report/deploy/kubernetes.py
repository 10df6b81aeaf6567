"""Kubernetes manifests: a Deployment and a Service for each replica set, weights at the gateway, a schedule by hour.

GPUs are asked for through NVIDIA's device plugin and found by the label that NVIDIA's GPU feature discovery gives nodes
(``nvidia.com/gpu.product``). Weights are expected on a volume claim named ``models``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qplan.report.deploy.commands import PORT, Command
from qplan.report.deploy.launches import Launches, ReplicaSet, dns_label

PRODUCT_LABEL = "nvidia.com/gpu.product"
_PRODUCTS = {
    "A100-SXM4-80GB": "NVIDIA-A100-SXM4-80GB",
    "A100-SXM4-40GB": "NVIDIA-A100-SXM4-40GB",
    "H100-SXM5-80GB": "NVIDIA-H100-80GB-HBM3",
    "H200-SXM": "NVIDIA-H200",
}
_LOADING_S = 1800  # for a replica to load its weights before it counts as dead
_PERIOD_S = 10
_SCALER = "qplan-scaler"
_WEIGHT_UNITS = 10_000  # of a route's weights, which are whole numbers
_DAY_H = 24


def replicas(launches: Launches, commands: Mapping[str, Command]) -> Iterator[dict[str, Any]]:
    """Yield the manifests of the replicas, at their number in the first period."""
    for one in launches.sets:
        command = commands[one.name]
        yield from _options(one, command)
        yield _manifest(
            "apps/v1",
            "Deployment",
            one.name,
            spec={
                "replicas": one.replicas[0],
                "selector": {"matchLabels": _labels(one)},
                "template": {"metadata": {"labels": _labels(one)}, "spec": _pod(one, command, "engine")},
            },
        )
        yield _manifest(
            "v1",
            "Service",
            one.name,
            spec={"selector": _labels(one), "ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
        )


def inference_services(launches: Launches, commands: Mapping[str, Command]) -> Iterator[dict[str, Any]]:
    """Yield the same replicas as KServe InferenceServices with a container of their own, instead of the above."""
    for one in launches.sets:
        command = commands[one.name]
        yield from _options(one, command)
        predictor = {
            "minReplicas": one.replicas[0],
            "maxReplicas": max(one.most, 1),
            **_pod(one, command, "kserve-container"),
        }
        yield _manifest("serving.kserve.io/v1beta1", "InferenceService", one.name, spec={"predictor": predictor})


def routes(launches: Launches) -> Iterator[dict[str, Any]]:
    """Yield Gateway API routes of the first period: one for each request class, told apart by a header.

    Weights cannot depend on a request's length there: they are the mean over the requests of the class.
    """
    classes = list(dict.fromkeys(route.request_class for route in launches.routes if route.period == 0))
    for name in classes:
        mine = [route for route in launches.routes if route.period == 0 and route.request_class == name]
        total: dict[str, float] = {}
        for route in mine:
            for target, share in route.weights.items():
                total[target] = total.get(target, 0.0) + share * route.weight
        rule: dict[str, Any] = {
            "backendRefs": [
                {"name": target, "port": 80, "weight": round(share * _WEIGHT_UNITS)} for target, share in total.items()
            ]
        }
        if name is not None:
            rule["matches"] = [{"headers": [{"name": "x-request-class", "value": name}]}]
        yield _manifest(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "qplan" if name is None else dns_label(f"qplan-{name}"),
            spec={"parentRefs": [{"name": "inference-gateway"}], "rules": [rule]},
        )


def schedule(launches: Launches) -> Iterator[dict[str, Any]]:
    """Yield CronJobs that scale each replica set when a period of the day begins, and what allows them to.

    Nothing for a plan whose fleet does not change, or whose horizon is not a day.
    """
    changing = [one for one in launches.sets if len(set(one.replicas)) > 1]
    if not changing or launches.horizon_h != _DAY_H:
        return
    subject = [{"kind": "ServiceAccount", "name": _SCALER}]
    rule = {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": ["get", "patch"]}
    rbac = "rbac.authorization.k8s.io"
    yield _manifest("v1", "ServiceAccount", _SCALER)
    yield _manifest(f"{rbac}/v1", "Role", _SCALER, rules=[rule])
    yield _manifest(
        f"{rbac}/v1",
        "RoleBinding",
        _SCALER,
        subjects=subject,
        roleRef={"apiGroup": rbac, "kind": "Role", "name": _SCALER},
    )
    for number, start_h in enumerate(launches.start_h):
        lines = [
            f"kubectl scale deployment {one.name} --replicas={one.replicas[number]}"
            for one in changing
            if one.replicas[number] != one.replicas[number - 1]
        ]
        if lines:
            minutes = round(start_h * 60)
            yield _cron_job(f"qplan-scale-{minutes // 60:02d}{minutes % 60:02d}", minutes, lines)


def _cron_job(name: str, minutes: int, lines: list[str]) -> dict[str, Any]:
    container = {
        "name": "kubectl",
        "image": "registry.k8s.io/kubectl:v1.34.0",
        "command": ["/bin/sh", "-ec", "\n".join(lines) + "\n"],
    }
    pod = {"serviceAccountName": _SCALER, "restartPolicy": "OnFailure", "containers": [container]}
    return _manifest(
        "batch/v1",
        "CronJob",
        name,
        spec={
            "schedule": f"{minutes % 60} {minutes // 60} * * *",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"template": {"spec": pod}}},
        },
    )


def _options(one: ReplicaSet, command: Command) -> Iterator[dict[str, Any]]:
    """Yield what holds the files that the command reads."""
    if command.files:
        data = {_file(path): text for path, text in command.files.items()}
        yield _manifest("v1", "ConfigMap", one.name, data=data)


def _pod(one: ReplicaSet, command: Command, container: str) -> dict[str, Any]:
    """Return the specification of a replica's pod."""
    gpu = one.deployment.gpu.name
    mounts: list[dict[str, Any]] = [
        {"name": "models", "mountPath": "/models", "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # tensor parallelism needs more than the default 64 MiB
    ]
    for path in command.files:
        volumes.append({"name": "options", "configMap": {"name": one.name}})
        mounts.append({"name": "options", "mountPath": path, "subPath": _file(path)})
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": _PERIOD_S}
    return {
        "nodeSelector": {PRODUCT_LABEL: _PRODUCTS.get(gpu, f"NVIDIA-{gpu}")},
        "containers": [
            {
                "name": container,
                "image": command.image,
                "command": list(command.argv),
                "ports": [{"containerPort": PORT, "name": "http"}],
                "resources": {"limits": {"nvidia.com/gpu": one.deployment.tp}},
                "startupProbe": {**probe, "failureThreshold": _LOADING_S // _PERIOD_S},
                "readinessProbe": probe,
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _manifest(version: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "qplan"}},
        **rest,
    }


def _labels(one: ReplicaSet) -> dict[str, str]:
    return {"app.kubernetes.io/name": one.name, "app.kubernetes.io/part-of": "qplan"}


def _file(path: str) -> str:
    return path.rsplit("/", 1)[-1]
