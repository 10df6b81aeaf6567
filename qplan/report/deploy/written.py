"""Writes what runs a plan into a folder."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError
from qplan.report.deploy import kubernetes
from qplan.report.deploy.commands import Command, command
from qplan.report.deploy.compose import machines
from qplan.report.deploy.launches import Launches
from qplan.report.deploy.yamltext import yaml_text

KINDS = ("commands", "compose", "kubernetes", "kserve", "routing")
_ROUTING_VERSION = 1


def write_deployment(
    launches: Launches, out: Path, kinds: Collection[str], weights: Mapping[str, str], machine_gpus: int
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write files of the given kinds into the folder `out`, which is made.

    Parameters
    ----------
    kinds
        Of :data:`KINDS`.
    weights
        Where checkpoints are, by ``MODEL:QUANTIZATION``.
    machine_gpus
        GPUs of a machine, for compose files.

    Returns
    -------
    The files, and what has to be done before they can run.

    Raises
    ------
    InputError
        When a replica cannot be launched so, a checkpoint is given for nothing in the plan, or `out` cannot be written.
    """
    commands = {one.name: command(one.deployment, weights) for one in launches.sets}
    known = [f"{one.deployment.model}:{one.deployment.quantization.scheme}" for one in launches.sets]
    for key in weights:
        if key not in known:
            raise InputError(f"--weights: the plan has no {key}; it has {', '.join(dict.fromkeys(known))}")
    files: dict[str, str] = {}
    if "commands" in kinds:
        files |= _scripts(launches, commands)
    if "compose" in kinds:
        for machine in machines(launches, commands, machine_gpus):
            ports = "; ".join(f"{name} at port {port}" for name, port in machine.endpoints)
            files[f"compose/{machine.name}.yaml"] = yaml_text([machine.document], f"One machine: {ports}")
    if "kubernetes" in kinds:
        files["kubernetes/replicas.yaml"] = yaml_text(
            kubernetes.replicas(launches, commands), "kubectl apply -f replicas.yaml"
        )
        files["kubernetes/routes.yaml"] = yaml_text(
            kubernetes.routes(launches), "Gateway API; parentRefs names your Gateway"
        )
        by_hour = list(kubernetes.schedule(launches))
        if by_hour:
            files["kubernetes/schedule.yaml"] = yaml_text(by_hour, "Replicas by the hour of the cluster's day (UTC)")
    if "kserve" in kinds:
        files["kserve/inference-services.yaml"] = yaml_text(
            kubernetes.inference_services(launches, commands), "Instead of kubernetes/replicas.yaml, where KServe runs"
        )
    if "routing" in kinds:
        files["routing.json"] = json.dumps(routing_table(launches), indent=1) + "\n"
    notes = tuple(dict.fromkeys(note for one in commands.values() for note in one.notes))
    return _write(out, files), notes


def routing_table(launches: Launches) -> dict[str, Any]:
    """Return who is sent where, by period, request class and length, as plain data."""
    ends = (*launches.start_h[1:], launches.horizon_h)
    return {
        "schema_version": _ROUTING_VERSION,
        "kind": "routing-table",
        "targets": [
            {"name": one.name, "deployment": str(one.deployment), "pool": one.pool, "replicas": list(one.replicas)}
            for one in launches.sets
        ],
        "periods": [
            {
                "start_h": start,
                "end_h": end,
                "routes": [
                    {
                        "class": route.request_class,
                        "input_tokens": route.input_tokens,
                        "output_tokens": route.output_tokens,
                        "share_of_class": route.weight,
                        "weights": dict(route.weights),
                    }
                    for route in launches.routes
                    if route.period == number
                ],
            }
            for number, (start, end) in enumerate(zip(launches.start_h, ends, strict=True))
        ],
    }


def _scripts(launches: Launches, commands: Mapping[str, Command]) -> dict[str, str]:
    """Return a script for each replica set, and the files that its command reads."""
    files = {}
    for one in launches.sets:
        given = commands[one.name]
        argv, lines = list(given.argv), []
        for path, text in given.files.items():
            name = f"{one.name}.yaml"
            files[f"commands/{name}"] = text + "\n"
            argv = [f"QPLAN_HERE/{name}" if word == path else word for word in argv]
            lines.append('here=$(cd "$(dirname "$0")" && pwd)')
        quoted = " ".join(map(shlex.quote, argv)).replace("QPLAN_HERE", '"$here"')
        counts = ", ".join(map(str, dict.fromkeys(one.replicas)))
        files[f"commands/{one.name}.sh"] = "\n".join(
            [
                "#!/bin/sh -e",
                f"# {one.deployment}: {counts} replica(s), each on {one.deployment.tp} GPU(s) of its own, which",
                "# CUDA_VISIBLE_DEVICES names.",
                *lines,
                f"exec {quoted}",
                "",
            ]
        )
    return files


def _write(out: Path, files: Mapping[str, str]) -> tuple[Path, ...]:
    """Write all files, or none: into a new folder, which then takes the place of `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; expected a new or an empty folder")
    fresh = out.with_name(f".{out.name}-new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        for name, text in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if path.suffix == ".sh":
                path.chmod(0o755)
        if out.exists():
            out.rmdir()
        fresh.rename(out)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from None
    return tuple(out / name for name in files)
