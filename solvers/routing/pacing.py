"""When requests that may wait begin, so that a day's CO2e is least: a linear program over the periods of the demand.

With ``g`` grams of CO2e per kWh in each period (the same in all where nobody said: then energy is least), its length
``T``, and of each class that may wait the requests ``a`` that come and ``x`` that begin in it::

    minimise    sum over periods of g T w
    subject to  w >= slope (sum of work x / T) + offset        for each segment of the hull of the period's power
                came by (t - deadline) <= begun by t <= came by t                  for each class, at all times

The power of a period is that of the fleet as it is simulated with the period's requests that do not wait, over what
begins beside them; beyond the part of its limit up to which waiting requests fill the fleet it rises many times as
steeply. In the optimum a request costs as much CO2e, ``g`` times the slope, in all periods between which it may choose.
Both sides of the last line are linear between the edges of periods, and these moved by the deadline: there it is asked
for.

First come, first begun: what comes at a time begins when as many have begun as had come. That is all the policy holds,
so a router follows it without a count of those that wait, and where more come than was thought, more begin at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from qplan.core.demand import Demand
from qplan.core.policy import Policy
from qplan.models.simulator.simulation import Simulation
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats
from qplan.solvers.backends import MatrixProgram, SolverBackend
from qplan.solvers.routing.compiled import ruled
from qplan.solvers.routing.online import TROUGH, work
from qplan.solvers.routing.trying import Trial

TIME_LIMIT_S = 20.0
BEYOND = 10.0
"""Slope of power beyond what waiting requests fill, over the steepest before."""

RESTS, LOADS = 3, 8
"""Loads that do not wait, and that begin beside them, at which power is simulated; linear in between."""

TRIED_S, TRIED_REQUESTS = 60.0, 300
"""Each is simulated for so long, and so many requests, at least."""

PATIENCE = 0.02
"""Part of its CO2e for which a request waits for the time of the whole demand, and less for less: of equal times the
earliest."""


def paced(seen: Trial, policy: Policy, backend: SolverBackend) -> Policy:
    """Return the policy with how long requests of its classes with a deadline wait, by when they come.

    Parameters
    ----------
    seen
        Tells the power of the fleet over load, and the demand by period; one of a single period paces nothing.
    """
    demand = seen.model.demand
    waiting = [one for one in policy.classes if one.deadline_s is not None and any(_rates(demand, one.name))]
    if len(demand.hours) < 2 or not waiting:
        return policy
    edges_s = np.append(0.0, np.cumsum(demand.hours)) * 3600.0
    length_s = np.diff(edges_s)
    each = class_work(policy)
    came = np.array([_rates(demand, one.name) for one in waiting]) * length_s  # (W, H)
    rest_qps = sum(
        (each.get(one.name, 0.0) * _rates(demand, one.name) for one in policy.classes if one not in waiting),
        start=np.zeros(len(length_s)),
    )
    starts, backlog = begun(
        came,
        np.array([each[one.name] for one in waiting]),
        np.array([float(one.deadline_s or 0.0) for one in waiting]),
        edges_s,
        np.array(demand.carbon) if any(demand.carbon) else np.ones(len(length_s)),
        power_lines(seen, policy, rest_qps),
        backend,
    )
    found = {
        one.name: waits(edges_s, came[n], starts[n], backlog[n], float(one.deadline_s or 0.0))
        for n, one in enumerate(waiting)
    }
    classes = tuple(replace(one, waits=found.get(one.name, ())) for one in policy.classes)
    return replace(policy, classes=classes, horizon_s=round(float(edges_s[-1]), 3))


def _rates(demand: Demand, name: str) -> Floats:
    return np.array(next(one.rate_qps for one in demand.classes if one.name == name))


def class_work(policy: Policy) -> dict[str, float]:
    """Return what a request of each class counts in the load."""
    each, of_class = work(policy), policy.class_weight
    return {
        name: sum(
            share * bucket.weight / weight
            for share, bucket in zip(each, policy.buckets, strict=True)
            if bucket.request_class == name
        )
        for name, weight in of_class.items()
        if weight > 0
    }


def _power_w(seen: Trial, policy: Policy, rest_qps: Floats, more_qps: Floats) -> Floats:
    """Return the power of the fleet, as simulated, at loads that do not wait and so much more of what does, (R, M).

    All are awake; what replicas that are to sleep at that load save is taken off.
    """
    dispatch = ruled(replace(policy, classes=tuple(replace(one, deadline_s=None, waits=()) for one in policy.classes)))
    power_w = np.zeros((len(rest_qps), len(more_qps)))
    for n, m in np.ndindex(power_w.shape):
        load_qps = float(rest_qps[n] + more_qps[m])
        power_w[n, m] = -_asleep_w(policy, load_qps)
        if load_qps == 0:
            power_w[n, m] += sum(group.count * (group.idle_w or 0.0) for group in policy.groups)
            continue
        traffic = _mixed(seen, policy, float(rest_qps[n]), float(more_qps[m]))
        simulation = Simulation(seen.model.replicas, dispatch)
        ends = []
        for part in (traffic.part(0, len(traffic) // 4), traffic.part(len(traffic) // 4, len(traffic))):
            simulation.offer(part)
            use = simulation.use()
            ends.append((use.end_s, use.energy_j or 0.0))
        (from_s, from_j), (to_s, to_j) = ends
        power_w[n, m] += (to_j - from_j) / (to_s - from_s)
    return power_w


def _mixed(seen: Trial, policy: Policy, rest_qps: float, more_qps: float) -> Traffic:
    """Return requests that do not wait at one load, and those that do at another."""
    waits = np.array([policy.class_named(bucket.request_class).deadline_s is not None for bucket in policy.buckets])
    each, traffic = np.array(work(policy)), seen.traffic
    lasts_s = max(TRIED_S, TRIED_REQUESTS / (rest_qps + more_qps))
    rows, times_s = [], []
    for mine, load_qps in ((~waits[traffic.buckets], rest_qps), (waits[traffic.buckets], more_qps)):
        if load_qps > 0 and mine.any():
            # As often over as it takes, at the pace at which they make this load.
            load = each[traffic.buckets[mine]]
            arrives_s = traffic.arrivals_s[mine] * load.sum() / load_qps / traffic.arrivals_s[-1]
            turns = np.arange(np.ceil(lasts_s / arrives_s[-1]))
            rows.append(np.tile(np.flatnonzero(mine), len(turns)))
            times_s.append((arrives_s[-1] * turns[:, None] + arrives_s).ravel())
    row, at_s = np.concatenate(rows), np.concatenate(times_s)
    order = np.argsort(at_s, kind="stable")
    order = order[at_s[order] < lasts_s]
    row = row[order]
    return Traffic(at_s[order], traffic.input_tokens[row], traffic.output_tokens[row], traffic.buckets[row])


def _asleep_w(policy: Policy, load_qps: float) -> float:
    """Return what replicas save that are to sleep at a load."""
    levels = [one.awake for one in policy.levels if one.load_qps >= load_qps] or [policy.levels[-1].awake]
    standby = [one.awake for one in policy.standby if one.load_qps >= load_qps] or levels
    return sum(
        (group.count - max(awake, least)) * ((group.idle_w or 0.0) - (group.asleep_w or 0.0))
        for group, awake, least in zip(policy.groups, levels[0], standby[0], strict=True)
    )


def power_lines(seen: Trial, policy: Policy, rest_qps: Floats) -> list[list[tuple[float, float]]]:
    """Return slopes and offsets of lines, of each period, below which its power over what begins in it does not lie."""
    most_qps = TROUGH * policy.levels[-1].load_qps
    at_qps, more_qps = np.unique(np.linspace(rest_qps.min(), rest_qps.max(), RESTS)), np.linspace(0.0, most_qps, LOADS)
    power_w = _power_w(seen, policy, at_qps, more_qps)
    hulls = []
    for rest in rest_qps:
        watts = np.array([np.interp(rest, at_qps, column) for column in power_w.T])
        room = max(most_qps - rest, 0.0)
        inside = more_qps < room
        hulls.append(_hull([*more_qps[inside], room], [*watts[inside], float(np.interp(room, more_qps, watts))]))
    steepest = max((_slope(one, other) for hull in hulls for one, other in pairwise(hull)), default=0.0) or 1.0
    lines = []
    for hull in hulls:
        slopes = [*(_slope(one, other) for one, other in pairwise(hull)), BEYOND * steepest]
        lines.append([(slope, watts - slope * load) for slope, (load, watts) in zip(slopes, hull, strict=True)])
    return lines


def _hull(loads: list[float], watts: list[float]) -> list[tuple[float, float]]:
    """Return the lower convex hull of power over load, which does not fall."""
    hull: list[tuple[float, float]] = []
    for point in zip(loads, np.maximum.accumulate(watts).tolist(), strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def begun(
    came: Floats,
    each: Floats,
    deadlines_s: Floats,
    edges_s: Floats,
    carbon: Floats,
    lines: Sequence[Sequence[tuple[float, float]]],
    backend: SolverBackend,
) -> tuple[Floats, Floats]:
    """Return how many requests of each class begin in each period, (W, H), and wait when the first begins, (W,)."""
    waiting, periods = came.shape
    length_s, total = np.diff(edges_s), came.sum(axis=1)
    x = np.arange(waiting * periods).reshape(waiting, periods)
    b, w = waiting * periods + np.arange(waiting), waiting * (periods + 1) + np.arange(periods)
    program = MatrixProgram(np.empty(0), np.empty(0), np.empty(0), np.empty(0, bool), ())
    program = program.with_columns([f"begun {n}" for n in range(waiting * periods)])
    program = program.with_columns([f"backlog {k}" for k in range(waiting)])
    program = program.with_columns([f"power {h}" for h in range(periods)], lower=-np.inf)
    for h in range(periods):
        for slope, offset in lines[h]:
            program = program.with_row([w[h], *x[:, h]], [1.0, *(-slope * each / length_s[h])], lower=offset)
    # What it is worth to begin a second earlier, in grams times 3.6e6: a part of the mean over the whole horizon.
    steepest = max(slope for period in lines for slope, _ in period) / BEYOND
    second = PATIENCE * steepest * float(carbon @ length_s) / edges_s[-1] ** 2
    cost = np.zeros(len(program.cost))
    cost[w] = carbon * length_s
    for k in range(waiting):
        program = program.with_row(x[k], 1.0, lower=total[k], upper=total[k])
        arrived = np.append(0.0, np.cumsum(came[k]))
        for at_s in np.unique(np.concatenate([edges_s[:-1], (edges_s[:-1] + deadlines_s[k]) % edges_s[-1]])):
            share = np.clip((at_s - edges_s[:-1]) / length_s, 0.0, 1.0)  # of each period that is over
            turns, rest_s = np.divmod(at_s - deadlines_s[k], edges_s[-1])
            due = turns * total[k] + np.interp(rest_s, edges_s, arrived)
            upper = float(np.interp(at_s, edges_s, arrived))
            program = program.with_row([*x[k], b[k]], [*share, -1.0], lower=due, upper=upper)
        cost[x[k]] = each[k] * second * (edges_s[1:] + edges_s[:-1]) / 2
        cost[b[k]] = each[k] * second * edges_s[-1]
    program = program.with_cost(np.arange(len(cost)), cost / cost.max())
    solution = backend.solve(program, time_limit_s=TIME_LIMIT_S, mip_gap=0.0)
    if solution.values is None:  # what comes begins
        return came, np.zeros(waiting)
    return np.maximum(solution.values[x], 0.0), np.maximum(solution.values[b], 0.0)


def waits(
    edges_s: Floats, came: Floats, begun: Floats, backlog: float, deadline_s: float
) -> tuple[tuple[float, float], ...]:
    """Return how long what comes at a time of the horizon waits: pairs of both, linear in between."""
    end_s, total = edges_s[-1], came.sum()
    arrived, started = np.append(0.0, np.cumsum(came)), np.append(0.0, np.cumsum(begun)) - backlog
    turns = np.arange(-2, 3 + int(deadline_s // end_s))[:, None]
    came_s, came_n = (turns * end_s + edges_s[:-1]).ravel(), (turns * total + arrived[:-1]).ravel()
    begun_s, begun_n = (turns * end_s + edges_s[:-1]).ravel(), (turns * total + started[:-1]).ravel()
    arrives_s = np.concatenate([came_s, np.interp(begun_n, came_n, came_s)])
    begins_s = np.concatenate([np.interp(came_n, begun_n, begun_s), begun_s])
    order = np.lexsort((begins_s, arrives_s))
    pairs: dict[tuple[float, float], None] = {}
    for at_s, begin_s in zip(arrives_s[order].tolist(), begins_s[order].tolist(), strict=True):
        if -1e-6 <= at_s <= end_s + 1e-6:
            pairs[round(at_s, 3), min(max(round(begin_s - at_s, 3), 0.0), deadline_s)] = None
    return tuple(pairs)
