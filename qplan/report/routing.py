"""Routing policies and their replays: on the terminal, as JSON, and as weights for gateways."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.report.output import console, facts_table, print_json

if TYPE_CHECKING:
    from qplan.core.policy import Policy, PolicyLevel
    from qplan.solvers.routing.fleet import FleetModel
    from qplan.solvers.routing.replaying import Outcome, Replay

SCHEMA_VERSION = 1
BASELINE = "least-outstanding"
_WEIGHT_UNITS = 1000


def write_policy(path: Path, policy: Policy) -> None:
    """Write a policy as JSON; what is wrong with the file is an InputError."""
    write_text(path, json.dumps(policy.to_json(), indent=1, allow_nan=False) + "\n")


def check_out(path: Path) -> None:
    """Refuse a place where no file can be, before any work."""
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder; expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out: no folder {path.parent}")


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Raises
    ------
    InputError
        It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out: cannot write {path}: {error.strerror}") from None


def print_policy(policy: Policy, out: Path | None = None) -> None:
    """Print the levels of a policy: who is awake, who serves what, and what that takes."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("load", *(f"{n + 1}" for n in range(len(policy.groups))), "power", "bound", "prices"):
        table.add_column(title, justify="right")
    for level in policy.levels:
        shares = _class_shares(policy, level)
        cells = [
            f"{level.awake[g]} awake, {sum(policy.class_weight[name] * row[g] for name, row in shares.items()):.0%}"
            for g in range(len(policy.groups))
        ]
        prices = [f"{name} {price:,.0f} J" for name, price in level.quality_price.items() if price > 0]
        prices += [f"{g + 1}: {price:,.0f} W" for g, price in enumerate(level.capacity_price) if price > 1]
        power, bound = (f"{one:,.0f} W" if one is not None else "—" for one in (level.power_w, level.bound_w))
        table.add_row(f"{level.load_qps:.3g}/s", *cells, power, bound, ", ".join(prices) or "—")
    console().print(table)
    facts = facts_table()
    for n, group in enumerate(policy.groups):
        quality = ", ".join(f"{name} {one:.1%}" for name, one in group.quality.items())
        facts.add_row(f"group {n + 1}", f"{group.count} x {group.name}; quality: {quality or 'may serve no class'}")
    facts.add_row("spills to", " > ".join(policy.groups[g].name for g in policy.levels[-1].spill))
    facts.add_row("margin", f"{policy.margin:g} times a predicted latency is kept within its SLO")
    for number, source in enumerate(policy.provenance):
        facts.add_row("stands on" if number == 0 else "", source)
    for number, one in enumerate(policy.assumptions):
        facts.add_row("assumed" if number == 0 else "", f"{one.what}: {one.value} [{one.flag}]".replace("[", "\\["))
    for warning in policy.warnings:
        facts.add_row("[yellow]warning[/yellow]", warning)
    facts.add_row("", "prices: joules of one request's quality at the margin, watts that one more replica saves")
    if out is not None:
        facts.add_row("policy", f"{out}")
    console().print(facts)


def print_replay(replay: Replay, model: FleetModel, source: str, plot: Path | None = None, *, as_json: bool) -> None:
    """Print what a trace took under each policy; `plot` is where a figure was written."""
    if as_json:
        print_json(replay_json(replay, model, source))
        return
    from rich import box
    from rich.table import Table

    out = console()
    out.print(f"[bold]{replay.requests:,}[/bold] requests ({source}) in {replay.duration_s:,.0f} s")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    slos = [(k, n, slo) for k, one in enumerate(model.demand.classes) for n, slo in enumerate(one.slos)]
    several = len(model.demand.classes) > 1
    named = (f"{model.demand.classes[k].name} {slo}" if several else str(slo) for k, _, slo in slos)
    carbon = ("CO2e",) if any(model.demand.carbon) else ()
    for title in ("policy", "energy", *carbon, "saved", "gap closed", *named, "within all", "quality", "$"):
        table.add_column(title, justify="left" if title == "policy" else "right")
    least = _baseline(replay)
    for one in replay.outcomes:
        closed = replay.closed(one.name) if least is not None else None
        table.add_row(
            one.name,
            f"{one.energy_j / 3.6e6:.3f} kWh",
            *(() if one.carbon_kg is None else (f"{1000 * one.carbon_kg:,.0f} g",)),
            "—" if least is None else f"{1 - one.energy_j / least.energy_j:.1%}",
            "—" if closed is None or one.name == BASELINE else f"{closed:.0%}",
            *(_attained(one.attainment[k][n], slo.percentile) for k, n, slo in slos),
            f"{one.within:.2%}",
            ", ".join("—" if value is None else f"{value:.2%}" for value in one.quality),
            "—" if one.cost is None else f"{one.cost:,.2f}",
        )
    if replay.bound_j is not None:
        table.add_row("[dim]clairvoyant bound[/dim]", f"{replay.bound_j / 3.6e6:.3f} kWh")
    out.print(table)
    facts = facts_table()
    facts.add_row("saved", f"against {BASELINE}; gap: from it down to the bound, which no router can go below")
    facts.add_row("all but sleeping", "keep every replica awake; $ are for the GPUs of replicas that are awake")
    waited = {one.name: max(one.deferred_s) for one in replay.outcomes if any(one.deferred_s)}
    if waited:
        facts.add_row("waited", ", ".join(f"{name}: {time_s:,.0f} s in the mean" for name, time_s in waited.items()))
    cached = {one.name: one.cached for one in replay.outcomes if one.cached}
    if cached:
        facts.add_row("prompts cached", ", ".join(f"{name}: {share:.0%}" for name, share in cached.items()))
    refused = {one.name: one.refused for one in replay.outcomes if one.refused}
    if refused:
        facts.add_row("[yellow]refused[/yellow]", ", ".join(f"{name}: {count:,}" for name, count in refused.items()))
    for number, text in enumerate(model.provenance):
        facts.add_row("step times" if number == 0 else "", text)
    for warning in model.warnings:
        facts.add_row("[yellow]warning[/yellow]", warning)
    facts.add_row("", "simulated; the policy knows neither output lengths nor what is to come")
    if plot is not None:
        facts.add_row("figure", f"{plot}")
    out.print(facts)


def replay_json(replay: Replay, model: FleetModel, source: str) -> dict[str, Any]:
    """Return what a trace took under each policy as data."""
    classes = [one.name for one in model.demand.classes]
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "requests": replay.requests,
        "duration_s": replay.duration_s,
        "bound_j": replay.bound_j,
        "classes": classes,
        "slos": [[str(slo) for slo in one.slos] for one in model.demand.classes],
        "groups": [one.name for one in model.groups],
        "policies": [
            {**asdict(one), "gap_closed": replay.closed(one.name) if _baseline(replay) else None}
            for one in replay.outcomes
        ],
        "provenance": ["simulated", *model.provenance],
        "warnings": list(model.warnings),
    }


def weights_text(policy: Policy, load_qps: float, kind: str) -> str:
    """Return the split of each class at a load: HTTPRoutes to Services or to InferencePools, or plain JSON.

    Raises
    ------
    InputError
        The load is more than the policy serves.
    """
    from qplan.report.deploy.yamltext import yaml_text

    loads = [level.load_qps for level in policy.levels]
    if not 0 <= load_qps <= loads[-1]:
        raise InputError(f"--load: {load_qps:g} req/s; the policy serves from 0 to {loads[-1]:.4g} req/s")
    level = policy.levels[bisect_left(loads, load_qps)]
    split = _class_shares(policy, level)
    if kind == "weights":
        document = {
            "load_qps": level.load_qps,
            "awake": {group.name: count for group, count in zip(policy.groups, level.awake, strict=True)},
            "weights": {
                name: {group.name: share for group, share in zip(policy.groups, shares, strict=True) if share > 0}
                for name, shares in split.items()
            },
        }
        return json.dumps(document, indent=1) + "\n"
    routes = [_route(policy, name, shares, kind) for name, shares in split.items()]
    note = f"Split at up to {level.load_qps:.4g} req/s; parentRefs names your Gateway"
    return yaml_text(routes, note)


def _route(policy: Policy, name: str, shares: tuple[float, ...], kind: str) -> dict[str, Any]:
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool"} if kind == "llm-d" else {"port": 80}
    backends = [
        {"name": _label(group.name), **pool, "weight": round(share * _WEIGHT_UNITS)}
        for group, share in zip(policy.groups, shares, strict=True)
        if round(share * _WEIGHT_UNITS)
    ]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": _label(f"qplan-{name}")},
        "spec": {
            "parentRefs": [{"name": "inference-gateway"}],
            "rules": [
                {
                    "matches": [{"headers": [{"name": "x-qplan-class", "value": name}]}],
                    "backendRefs": backends,
                }
            ],
        },
    }


def _label(name: str) -> str:
    from qplan.report.deploy.launches import dns_label

    return dns_label(name)


def _class_shares(policy: Policy, level: PolicyLevel) -> Mapping[str, tuple[float, ...]]:
    """Return the part of each class's requests on each group."""
    shares: dict[str, list[float]] = {one.name: [0.0] * len(policy.groups) for one in policy.classes}
    of_class = policy.class_weight
    for bucket, row in zip(policy.buckets, level.shares, strict=True):
        for g, share in enumerate(row):
            shares[bucket.request_class][g] += bucket.weight / (of_class[bucket.request_class] or 1.0) * share
    return {name: tuple(row) for name, row in shares.items()}


def _baseline(replay: Replay) -> Outcome | None:
    return next((one for one in replay.outcomes if one.name == BASELINE), None)


def _attained(share: float, percentile: float | None) -> str:
    if percentile is None:
        return f"{share:.2%}"
    colour = "green" if share >= percentile / 100 else "red"
    return f"[{colour}]{share:.2%}[/{colour}]"
