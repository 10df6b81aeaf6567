"""Fleets from files: one that a person wrote, or a plan of ``qplan capacity --json``.

::

    {
      "schema_version": 1,
      "replicas": [
        {"model": "llama-2-13b", "quantization": "W4A16", "gpu": "h100", "tp": 1, "count": 2}
      ]
    }

A group of replicas may also say ``engine`` and ``engine_version`` (which of several profiles), ``weight`` (its part of
the requests, per replica), ``kv_tokens`` (what its KV cache holds, instead of what its memory leaves),
``max_sequences``, ``max_batched_tokens``, ``block_tokens`` and ``chunked_prefill``, and its ``role``: ``prefill`` or
``decode`` in a fleet that keeps the two apart, which also says at its top
``"kv_transfer": {"bandwidth_gb_s": 50, "latency_s": 0.001}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError, nearest
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.plan import Plan
from qplan.core.quantization import Quantization
from qplan.models.power.watts import power_grid
from qplan.models.simulator.disaggregated import Disaggregated, Transfer
from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.replica import Batching, Replica, default_batching
from qplan.models.simulator.simulation import Runner, Simulation
from qplan.models.simulator.sources import Source, Times

SCHEMA_VERSION = 1
EXAMPLE = """\
{
  "schema_version": 1,
  "replicas": [
    {"model": "llama-3.1-8b", "quantization": "BF16", "gpu": "a100", "count": 2},
    {"model": "llama-3.1-8b", "quantization": "W8A8KV8-FP", "gpu": "h100", "count": 2},
    {"model": "codellama-34b", "quantization": "BF16", "gpu": "h100", "tp": 2, "count": 2},
    {"model": "codellama-34b", "quantization": "W4A16", "gpu": "a100", "count": 2}
  ]
}
"""
"""A fleet that serves the demand of :func:`qplan.profiles.demands.example`."""
ROLES = ("both", "prefill", "decode")

_BATCHING = {"max_sequences": int, "max_batched_tokens": int, "block_tokens": int, "chunked_prefill": bool}
_KINDS: dict[str, type] = {
    "model": str,
    "quantization": str,
    "gpu": str,
    "tp": int,
    "count": int,
    "engine": str,
    "engine_version": str,
    "weight": float,
    "role": str,
    "kv_tokens": int,
    **_BATCHING,
}
_REQUIRED = ("model", "quantization", "gpu")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Group:
    """Equal replicas of a fleet; what was not said is ``None``."""

    deployment: Deployment
    count: int
    weight: float
    role: str
    kv_tokens: int | None
    batching: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a file says of a fleet."""

    groups: tuple[Group, ...]
    transfer: Transfer | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that can serve.

    Attributes
    ----------
    prefill
        Replicas that only prefill, and hand over to `replicas`; empty in a fleet that does not keep the two apart.
    provenance
        What the iteration times of each deployment stand on.
    warnings
        Which of them are of deployments that were not profiled.
    power_note
        Why watts are unknown; empty where they are not.
    """

    replicas: tuple[Replica, ...]
    prefill: tuple[Replica, ...]
    transfer: Transfer | None
    provenance: tuple[str, ...]
    warnings: tuple[str, ...]
    power_note: str

    def runner(self, dispatch: Dispatch, seed: int) -> Runner:
        """Start it."""
        if self.transfer is None:
            return Simulation(self.replicas, dispatch, seed)
        return Disaggregated(self.prefill, self.replicas, self.transfer, dispatch, seed)


def read_fleet(path: Path, where: str = "--fleet") -> FleetFile:
    """Read a fleet, or a plan.

    Raises
    ------
    InputError
        It cannot be read, or is neither; with the place.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{where}: no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot read {path} as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: {path} holds no JSON object; expected a fleet, or a plan of qplan capacity --json")
    if "periods" in data:
        raise InputError(
            f"{where}: {path} is a plan by the hour, which qplan capacity DEMAND.yaml --verify simulates; "
            "expected a fleet, or a plan for one rate"
        )
    return _plan(data, f"{where}: {path}") if "objective_name" in data else _fleet(data, f"{where}: {path}")


def make_fleet(
    file: FleetFile, profiles: str, fitted: Path | None = None, *, chunked_prefill: bool | None = None
) -> Fleet:
    """Find the iteration times of a fleet's deployments; :class:`qplan.models.simulator.sources.Source` says where.

    Parameters
    ----------
    file
        The fleet.
    profiles
        Pack, store or file of `qplan fit` with step times, or with loads of an engine on a CPU.
    fitted
        File of `qplan fit` that answers for what `profiles` lack.
    chunked_prefill
        For all replicas whose group does not say it.

    Raises
    ------
    InputError
        Nothing tells the times of a deployment, or it does not fit its GPUs; the pack or file cannot be read.
    """
    source = Source(profiles, tuple(sorted({group.deployment.model.name for group in file.groups})), fitted)
    made: dict[str, list[Replica]] = {role: [] for role in ROLES}
    provenance, warnings, notes = [], [], []
    for group in file.groups:
        try:
            times = source.times_of(group.deployment, group.batching.get("max_sequences"))
            replica, note = _replica(group, times, chunked_prefill)
        except (InputError, StoreError) as error:
            raise InputError(f"{group.where}: {error}") from None
        made[group.role] += [replica] * group.count
        provenance.append(f"{replica.name}: {times.provenance}")
        warnings.append(times.warning)
        notes.append(note)
    prefill, decode = tuple(made["prefill"]), tuple(made["decode"])
    return Fleet(
        tuple(made["both"]) or decode,
        prefill,
        file.transfer,
        tuple(dict.fromkeys(provenance)),
        tuple(dict.fromkeys(filter(None, warnings))),
        "; ".join(dict.fromkeys(filter(None, notes))),
    )


def _replica(group: Group, times: Times, chunked_prefill: bool | None) -> tuple[Replica, str]:
    """Return a replica of a group, and why its watts are unknown."""
    said = dict(group.batching)
    if chunked_prefill is not None:
        said.setdefault("chunked_prefill", chunked_prefill)
    batching: Batching = replace(default_batching(times.grid), **said)
    power_w, idle_w, note = None, None, ""
    try:
        power_w, idle_w = power_grid(times.deployment, times.grid)
    except InputError as error:
        note = str(error)
    replica = Replica.of(
        times.deployment,
        times.grid,
        batching,
        kv_tokens=group.kv_tokens,
        weight=group.weight,
        power_w=power_w,
        idle_w=idle_w,
    )
    return replica, note


def _fleet(data: Mapping[str, Any], where: str) -> FleetFile:
    _check_names(data, ("schema_version", "replicas", "kv_transfer"), where)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{where}: schema_version is {data.get('schema_version')!r}; this qplan reads {SCHEMA_VERSION}"
        )
    entries = data.get("replicas")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: replicas is {entries!r}; expected a list of at least one group")
    groups = tuple(_group(entry, f"{where}, replicas[{n}]") for n, entry in enumerate(entries))
    roles = {group.role for group in groups}
    transfer = _transfer(data["kv_transfer"], where) if "kv_transfer" in data else None
    if roles not in ({"both"}, {"prefill", "decode"}):
        raise InputError(f"{where}: roles are {', '.join(sorted(roles))}; expected prefill and decode, or neither")
    if (transfer is None) != (roles == {"both"}):
        raise InputError(f"{where}: kv_transfer and the roles prefill and decode go together; expected both or neither")
    return FleetFile(groups, transfer)


def _group(entry: Any, where: str) -> Group:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {entry!r}; expected an object")
    _check_names(entry, tuple(_KINDS), where)
    for name in _REQUIRED:
        if name not in entry:
            raise InputError(f"{where}: {name} is missing")
    for name, value in entry.items():
        kind = _KINDS[name]
        good = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not good:
            raise InputError(f"{where}: {name} is {value!r}; expected {_WORDS[kind]}")
    if entry.get("count", 1) < 1:
        raise InputError(f"{where}: count is {entry['count']}; expected at least 1")
    role = entry.get("role", "both")
    if role not in ROLES:
        raise InputError(f"{where}: role '{role}'; expected {', '.join(ROLES)}{nearest(role, ROLES)}")
    return Group(
        Deployment(
            Model.named(entry["model"], where),
            Quantization.parse(entry["quantization"], where),
            Gpu.named(entry["gpu"], where),
            entry.get("tp", 1),
            entry.get("engine", ""),
            entry.get("engine_version", ""),
        ),
        entry.get("count", 1),
        float(entry.get("weight", 1.0)),
        role,
        entry.get("kv_tokens"),
        {name: entry[name] for name in _BATCHING if name in entry},
        where,
    )


def _transfer(entry: Any, where: str) -> Transfer:
    place = f"{where}, kv_transfer"
    if not isinstance(entry, dict):
        raise InputError(f"{place} is {entry!r}; expected an object")
    _check_names(entry, ("bandwidth_gb_s", "latency_s"), place)
    values = [entry.get("bandwidth_gb_s"), entry.get("latency_s", 0.0)]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise InputError(f"{place}: expected bandwidth_gb_s, and latency_s if not 0, as numbers")
    try:
        return Transfer(values[0] * 1e9, float(values[1]))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_names(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in entry:
        if name not in known:
            raise InputError(f"{where}: unknown field '{name}'; expected {', '.join(known)}{nearest(name, known)}")


def _plan(data: Mapping[str, Any], where: str) -> FleetFile:
    try:
        plan = Plan.from_json(data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not plan.replicas:
        raise InputError(f"{where}: the plan is {plan.status} and has no replicas")
    groups = [
        Group(
            Deployment(
                Model.named(one.model, where),
                Quantization.parse(one.quantization, where),
                Gpu.named(one.gpu, where),
                one.tp,
                one.engine,
                one.engine_version,
            ),
            one.count,
            max(one.share, 1e-9) / one.count,
            "both",
            None,
            {},
            f"{where}, {one.deployment}",
        )
        for one in plan.replicas
    ]
    return FleetFile(tuple(groups), None)
