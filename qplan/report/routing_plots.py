"""Figures of routing: policies side by side, and what the fleet takes over time and over load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qplan.report.measured_axes import Drawn, finished, grid, legend, style

if TYPE_CHECKING:
    from qplan.core.policy import Policy
    from qplan.solvers.routing.replaying import Replay


def draw_replay(replay: Replay, source: str) -> Drawn:
    """Draw energy and attainment of each policy, and the power of the fleet over time."""
    names = [one.name for one in replay.outcomes]
    places = list(range(len(names)))[::-1]
    with style():
        figure, (energy, within, power) = grid(3, title=source, panel=(4.6, 3.4))
        energy.barh(places, [one.energy_j / 3.6e6 for one in replay.outcomes], color="#0072B2")
        if replay.bound_j is not None:
            energy.axvline(replay.bound_j / 3.6e6, color="#D55E00", label="clairvoyant bound")
        energy.set(xlabel="energy (kWh)", yticks=places, yticklabels=names)
        within.barh(places, [100 * one.within for one in replay.outcomes], color="#009E73")
        within.set(xlabel="requests within all SLOs (%)", yticks=places, yticklabels=names, xlim=(0, 100))
        for n, one in enumerate(replay.outcomes):
            power.step(*zip(*one.series, strict=True), where="pre", linewidth=1, label=one.name, color=f"C{n % 10}")
        power.set(xlabel="time (s)", ylabel="power of the fleet (W)", ylim=(0, None))
        legend(figure, [energy, power])
        caption = (
            "Energy of the fleet for the same requests, and the share of them within all SLOs, by policy; the power of "
            "the fleet over time, in means over bins. All but the one that sleeps keep every replica awake."
        )
        return finished("routing", source, caption, figure)


def draw_loads(replays: Sequence[tuple[float, Replay]], title: str, names: Sequence[str]) -> Drawn:
    """Draw energy and attainment of some policies over the load, as shares of saturation."""
    with style():
        figure, (energy, within) = grid(2, title=title, panel=(4.6, 3.2))
        loads = [100 * load for load, _ in replays]
        for n, name in enumerate(names):
            found = [replay.named(name) for _, replay in replays]
            watts = [one.energy_j / replay.duration_s for one, (_, replay) in zip(found, replays, strict=True)]
            energy.plot(loads, watts, marker="o", label=name, color=f"C{n}")
            within.plot(loads, [100 * one.within for one in found], marker="o", color=f"C{n}")
        bounds = [replay.bound_j / replay.duration_s for _, replay in replays if replay.bound_j is not None]
        if len(bounds) == len(loads):
            energy.plot(loads, bounds, color="#000000", linestyle="--", label="clairvoyant bound")
        energy.set(xlabel="load (% of saturation)", ylabel="mean power of the fleet (W)", ylim=(0, None))
        within.set(xlabel="load (% of saturation)", ylabel="requests within all SLOs (%)")
        legend(figure, [energy, within])
        caption = "Mean power of the fleet, and requests within all SLOs, by the load of the same trace."
        return finished("routing by load", title, caption, figure)


def draw_policy(policy: Policy) -> Drawn:
    """Draw who serves, and the least power of the fleet, over its load."""
    loads = [level.load_qps for level in policy.levels]
    with style():
        figure, (served, power) = grid(2, title=policy.name, panel=(4.6, 3.2))
        rates: Mapping[str, list[float]] = {group.name: [] for group in policy.groups}
        total = sum(bucket.weight for bucket in policy.buckets)
        for level in policy.levels:
            for g, group in enumerate(policy.groups):
                share = sum(bucket.weight * row[g] for bucket, row in zip(policy.buckets, level.shares, strict=True))
                rates[group.name].append(level.load_qps * share / total)
        served.stackplot(loads, list(rates.values()), labels=list(rates), alpha=0.7)
        served.set(xlabel="load (requests/s)", ylabel="served by (requests/s)", ylim=(0, None))
        known = [(load, level.power_w) for load, level in zip(loads, policy.levels, strict=True) if level.power_w]
        if known:
            power.plot(*zip(*known, strict=True), marker="o", color="#0072B2")
        power.set(xlabel="load (requests/s)", ylabel="least power of the fleet (W)", ylim=(0, None))
        legend(figure, [served])
        caption = "Requests/s that each group serves at the optimum, and the power of the whole fleet, by its load."
        return finished("policy", policy.name, caption, figure)
