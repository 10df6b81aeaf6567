"""Docker compose files, one for each machine: a service for each replica, on GPUs of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qplan.core.errors import InputError
from qplan.report.deploy.commands import PORT, Command
from qplan.report.deploy.launches import Launches

_FIRST_PORT = 8001


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine's compose file.

    Attributes
    ----------
    name
        Of the file.
    document
        The compose file.
    endpoints
        Host port of each replica, by name of its replica set.
    """

    name: str
    document: dict[str, Any]
    endpoints: tuple[tuple[str, int], ...]


def machines(launches: Launches, commands: Mapping[str, Command], gpus: int) -> Iterator[Machine]:
    """Yield the machines that the fleet of the largest period takes, filled with the widest replicas first.

    Parameters
    ----------
    gpus
        GPUs of a machine.

    Raises
    ------
    InputError
        When a replica spans more GPUs than a machine has.
    """
    types = dict.fromkeys(one.deployment.gpu.name for one in launches.sets)
    for gpu in types:
        free: list[list[tuple[str, list[int]]]] = []
        room: list[int] = []
        mine = [one for one in launches.sets if one.deployment.gpu.name == gpu]
        for one in sorted(mine, key=lambda each: -each.deployment.tp):
            tp = one.deployment.tp
            if tp > gpus:
                raise InputError(f"--machine-gpus: {gpus}; {one.deployment} spans {tp} GPUs of one machine")
            for _ in range(one.most):
                at = next((m for m, left in enumerate(room) if left >= tp), len(room))
                if at == len(room):
                    free.append([])
                    room.append(gpus)
                first = gpus - room[at]
                free[at].append((one.name, list(range(first, first + tp))))
                room[at] -= tp
        for number, placed in enumerate(free):
            yield _machine(f"{gpu.lower()}-{number}", placed, commands)


def _machine(name: str, placed: list[tuple[str, list[int]]], commands: Mapping[str, Command]) -> Machine:
    services: dict[str, Any] = {}
    configs: dict[str, Any] = {}
    endpoints = []
    for index, (replica_set, devices) in enumerate(placed):
        command, port = commands[replica_set], _FIRST_PORT + index
        service: dict[str, Any] = {
            "image": command.image,
            "command": [text.replace("$", "$$") for text in command.argv],
            "entrypoint": [],  # images differ in theirs
            "ipc": "host",
            "ports": [f"{port}:{PORT}"],
            "volumes": ["${MODELS:-/models}:/models:ro"],
            "healthcheck": {
                "test": ["CMD", "curl", "-fsS", f"http://127.0.0.1:{PORT}/health"],
                "interval": "10s",
                "start_period": "30m",
            },
            "restart": "unless-stopped",
            "deploy": {
                "resources": {
                    "reservations": {
                        "devices": [
                            {"driver": "nvidia", "device_ids": [str(each) for each in devices], "capabilities": ["gpu"]}
                        ]
                    }
                }
            },
        }
        for path, text in command.files.items():
            configs[replica_set] = {"content": text.replace("$", "$$")}
            service["configs"] = [{"source": replica_set, "target": path}]
        services[f"{replica_set}-{index}"] = service
        endpoints.append((replica_set, port))
    document = {"name": f"qplan-{name}", "services": services}
    return Machine(name, document | ({"configs": configs} if configs else {}), tuple(endpoints))
