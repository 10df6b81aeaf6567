"""The fleet question written down again, without cleverness: a PuLP model, a check of plans, random instances."""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray
from scipy.optimize import linprog

from qplan.solvers.fleet.problem import FleetProblem, FleetResult

MEASURES = ("cost", "gpus", "energy", "carbon")


def make_fleet(seed: int) -> FleetProblem:
    """Return a small instance; constraints of every kind occur among a hundred seeds."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 3))
    buckets = classes + int(rng.integers(0, 2))
    options, pools, periods = (int(rng.integers(low, high)) for low, high in ((1, 5), (1, 4), (1, 4)))
    pool = rng.integers(0, pools, options)
    node = rng.choice([1, 1, 4, 8], pools)
    gpus = rng.choice([1, 2, 3, 4], options, p=[0.4, 0.3, 0.1, 0.2])
    swing = np.ones((1, periods)) if rng.random() < 0.5 else rng.uniform(0.7, 1.3, (1, periods))
    capacity = gpus * rng.uniform(1.0, 4.0, (buckets, options)).round(2)
    capacity *= rng.random((buckets, options)) < 0.93
    rate = rng.uniform(0.5, 6.0, (buckets, periods)).round(2) * (rng.random((buckets, periods)) < 0.9)
    quality = rng.choice([0.92, 0.96, 1.0], (1, options)) * rng.choice([0.98, 1.0], (buckets, 1))
    names = [str(name) for name in rng.permutation(MEASURES)]
    weights = [("cost", 1.0)]
    if rng.random() < 0.5:
        weights = [(names[0], 1.0), (names[1], float(rng.choice([0.1, 2.0])))]
    at_most = {}
    if rng.random() < 0.3:
        at_most[names[2]] = float(rng.uniform(10, 60) * periods * (0.4 if names[2] == "carbon" else 1.0))
    if rng.random() < 0.2:
        at_most["quality"] = float(rng.choice([0.93, 0.96]))
    return FleetProblem(
        classes=tuple(f"class{k}" for k in range(classes)),
        options=tuple(f"option{d}" for d in range(options)),
        pools=tuple(f"pool{g}" for g in range(pools)),
        bucket_class=np.r_[np.arange(classes), rng.integers(0, classes, buckets - classes)],
        hours=rng.choice([0.5, 1.0, 4.0], periods),
        rate_qps=rate,
        capacity_qps=capacity,
        pool=pool,
        gpus=gpus,
        gpu_price=rng.choice([0.8, 1.1, 2.2, 3.9], (pools, 1)) * swing,
        committed=rng.random(pools) < 0.3,
        inventory=np.where(rng.random(pools) < 0.4, np.inf, rng.integers(4, 25, pools)),
        node_gpus=node,
        idle_w=gpus * rng.choice([80.0, 120.0], pools)[pool],
        dynamic_j=rng.uniform(50.0, 400.0, (buckets, options)).round(),
        energy_price=np.where(rng.random() < 0.5, 0.0, rng.choice([0.1, 0.3], periods)),
        carbon=rng.choice([50.0, 400.0], periods),
        power_cap_w=np.inf if rng.random() < 0.6 else float(rng.uniform(1000, 8000)),
        start_s=rng.choice([0.0, 300.0], options),
        start_cost=rng.choice([0.0, 0.5], options),
        quality=quality,
        mean_quality=np.where(rng.random(classes) < 0.6, 0.0, rng.choice([0.91, 0.93, 0.97], classes)),
        spare=int(rng.choice([0, 0, 0, 1, 2])),
        cyclic=bool(rng.random() < 0.6),
        objective=tuple(weights),
        then=() if rng.random() < 0.6 else (names[3], "quality"),
        at_most=at_most,
    )


def reference(problem: FleetProblem) -> tuple[float, list[float]] | None:
    """Return the least objective, then the least of each later measure (quality negated); None if infeasible."""
    model, measures = _model(problem)
    stages: list[Any] = [pulp.lpSum(weight * measures[name] for name, weight in problem.objective)]
    stages += [-measures[name] if name == "quality" else measures[name] for name in problem.then]
    found: list[float] = []
    for stage in stages:
        model.setObjective(stage)
        if not _is_optimal(model.solve(pulp.HiGHS(msg=False, gapRel=0.0))):
            assert not found
            return None
        found.append(float(pulp.value(stage)))
        model += stage <= found[-1] + 1e-7 * max(1.0, abs(found[-1]))
    return found[0], found[1:]


def _is_optimal(outcome: Any) -> bool:
    """Read what solving returned: the status code in PuLP 3, the statistics in PuLP 4."""
    status = getattr(outcome, "status", outcome)
    return bool(status == (pulp.LpSolveStatus.Optimal if hasattr(pulp, "LpSolveStatus") else pulp.LpStatusOptimal))


def _model(problem: FleetProblem) -> tuple[pulp.LpProblem, dict[str, Any]]:
    """Shares, replicas, every node by itself, and an assignment of its own for every loss."""
    p = problem
    B, D, G, H, R = len(p.bucket_class), len(p.options), len(p.pools), len(p.hours), p.spare
    model = pulp.LpProblem("fleet", pulp.LpMinimize)
    some = 0.0
    most = [[sum(p.rate_qps[b].max() / c for b, c in enumerate(p.capacity_qps[:, d]) if c > 0)] for d in range(D)]
    top = [int(np.ceil(bound[0])) + R + 1 for bound in most]

    def var(name: str, *index: int, up: float | None = None, whole: bool = False) -> pulp.LpVariable:
        label = "_".join([name, *map(str, index)])
        return model.add_variable(label, 0, up, pulp.LpInteger if whole else pulp.LpContinuous)

    n = {(d, h): var("n", d, h, up=top[d], whole=True) for d in range(D) for h in range(H)}
    s = {(d, h): var("s", d, h) for d in range(D) for h in range(H)}
    for d, h in product(range(D), range(H)):
        if h > 0 or p.cyclic:
            model += n[d, h] - n[d, (h - 1) % H] <= s[d, h]
        else:
            model += n[d, h] <= s[d, h]

    def assignment(name: str, h: int, replicas: list[Any]) -> dict[tuple[int, int], pulp.LpVariable]:
        served = [(b, d) for b in range(B) for d in range(D) if p.rate_qps[b, h] > 0 and p.capacity_qps[b, d] > 0]
        x = {(b, d): var(name, b, d, h, up=1) for b, d in served}
        for b in range(B):
            if p.rate_qps[b, h] > 0:
                model.addConstraint(pulp.lpSum([some, *(x[pair] for pair in served if pair[0] == b)]) == 1)
        for d in range(D):
            busy = pulp.lpSum(p.rate_qps[b, h] / p.capacity_qps[b, e] * x[b, e] for b, e in served if e == d)
            model.addConstraint(busy <= replicas[d])
        return x

    x = {}
    for h in range(H):
        for (b, d), share in assignment("x", h, [n[d, h] for d in range(D)]).items():
            x[b, d, h] = share
        if R:
            runs = {(d, j): var("runs", d, j, h, up=1, whole=True) for d in range(D) for j in range(R)}
            for d, j in runs:
                model += n[d, h] <= j + top[d] * runs[d, j]
            for loss in combinations_with_replacement(range(D), R):
                left = [n[d, h] - pulp.lpSum(runs[d, j] for j in range(loss.count(d))) for d in range(D)]
                assignment("after_" + "_".join(map(str, loss)), h, left)

    held: dict[tuple[int, int], Any] = {}
    for g in range(G):
        mine = [d for d in range(D) if p.pool[d] == g]
        size, stock = int(p.node_gpus[g]), float(p.inventory[g])
        bought = var("bought", g, whole=True)
        for h in range(H):
            if size == 1:
                used = pulp.lpSum([some, *(int(p.gpus[d]) * n[d, h] for d in mine)])
            else:
                nodes = min(sum(top[d] for d in mine), int(stock // size) if np.isfinite(stock) else 10**9)
                opened = [var("open", g, i, h, up=1, whole=True) for i in range(nodes)]
                for i in range(1, nodes):
                    model += opened[i] <= opened[i - 1]
                inside = {(d, i): var("in", d, i, h, whole=True) for d in mine for i in range(nodes)}
                for i in range(nodes):
                    model += pulp.lpSum([some, *(int(p.gpus[d]) * inside[d, i] for d in mine)]) <= size * opened[i]
                for d in mine:
                    model += pulp.lpSum([some, *(inside[d, i] for i in range(nodes))]) == n[d, h]
                used = size * pulp.lpSum([some, *opened])
            if np.isfinite(stock):
                model += used <= stock
            if p.committed[g]:
                model += used <= size * bought
                if np.isfinite(stock):
                    model += size * bought <= stock
            held[g, h] = size * bought if p.committed[g] else used

    kwh, warm = [], []
    for h in range(H):
        idle = pulp.lpSum(p.idle_w[d] / 1000 * (n[d, h] * p.hours[h] + s[d, h] * p.start_s[d] / 3600) for d in range(D))
        requests = [
            p.rate_qps[b, h] * p.hours[h] * 3600 * p.dynamic_j[b, d] / 3.6e6 * share
            for (b, d, i), share in x.items()
            if i == h
        ]
        kwh.append(idle + pulp.lpSum([some, *requests]))
        paid = [d for d in range(D) if not p.committed[p.pool[d]]]
        warm.append({d: int(p.gpus[d]) * p.start_s[d] / 3600 * s[d, h] for d in paid})
        if np.isfinite(p.power_cap_w):
            model += kwh[h] * 1000 / p.hours[h] <= p.power_cap_w

    def mean(buckets: list[int]) -> Any:
        total = sum(p.rate_qps[b, h] * p.hours[h] for b in buckets for h in range(H))
        weighed = [
            p.rate_qps[b, h] * p.hours[h] / total * p.quality[b, d] * share
            for (b, d, h), share in x.items()
            if b in buckets
        ]
        return pulp.lpSum([some, *weighed])

    measures = {
        "cost": pulp.lpSum(
            [some]
            + [p.gpu_price[g, h] * p.hours[h] * held[g, h] for g, h in held]
            + [p.gpu_price[p.pool[d], h] * warm[h][d] for h in range(H) for d in warm[h]]
            + [p.start_cost[d] * s[d, h] for d, h in s]
            + [p.energy_price[h] * kwh[h] for h in range(H)]
        ),
        "gpus": pulp.lpSum(
            [some] + [p.hours[h] * held[g, h] for g, h in held] + [w for h in range(H) for w in warm[h].values()]
        ),
        "energy": pulp.lpSum(kwh),
        "carbon": pulp.lpSum(p.carbon[h] / 1000 * kwh[h] for h in range(H)),
        "quality": mean(list(range(B))),
    }
    for k in range(len(p.classes)):
        buckets = [b for b in range(B) if p.bucket_class[b] == k and p.rate_qps[b].any()]
        if p.mean_quality[k] > 0 and buckets:
            model += mean(buckets) >= p.mean_quality[k]
    if p.rate_qps.any():
        for name, limit in p.at_most.items():
            model += (measures[name] >= limit) if name == "quality" else (measures[name] <= limit)
    return model, measures


def check_fleet(problem: FleetProblem, result: FleetResult) -> None:
    """Assert what holds of every fleet: demand, capacity, inventory, nodes, power, quality, limits, losses, figures."""
    p, n, x = problem, result.counts, result.share
    demand = p.rate_qps > 0
    np.testing.assert_allclose(x.sum(1)[demand], 1.0, rtol=1e-9)
    assert (x >= 0).all()
    assert not x[np.broadcast_to((p.capacity_qps == 0)[:, :, None], x.shape)].any()
    for h in range(len(p.hours)):
        assert _carries(p, n[:, h], h, x[:, :, h])
        for loss in combinations_with_replacement(np.flatnonzero(n[:, h]).tolist(), p.spare):
            lost = np.bincount(np.array(loss, int), minlength=len(n))
            assert _carries(p, np.maximum(n[:, h] - lost, 0), h)
    before = np.roll(n, 1, axis=1)
    if not p.cyclic:
        before[:, 0] = 0
    np.testing.assert_array_equal(result.starts, np.maximum(n - before, 0))

    for g, size in enumerate(p.node_gpus):
        mine = np.flatnonzero(p.pool == g)
        for h in range(len(p.hours)):
            replicas = np.repeat(p.gpus[mine], n[mine, h])
            held = result.bought[g] if p.committed[g] else result.held[g, h]
            assert result.held[g, h] == held <= p.inventory[g]
            assert held % size == 0
            assert replicas.sum() <= held
            assert size == 1 or _fits(sorted(replicas.tolist(), reverse=True), [int(size)] * int(held // size))

    warm = result.starts * (p.start_s / 3600)[:, None]
    dynamic = np.einsum("bh,bdh,bd->h", p.rate_qps * p.hours * 3600, x, p.dynamic_j) / 3.6e6
    kwh = (p.idle_w / 1000) @ (n * p.hours + warm) + dynamic
    assert (kwh * 1000 / p.hours <= p.power_cap_w * (1 + 1e-5)).all()
    paid = (~p.committed)[p.pool, None] * p.gpus[:, None] * warm
    cost = (p.gpu_price * p.hours * result.held).sum() + (p.gpu_price[p.pool] * paid).sum()
    found = {
        "cost": cost + (p.start_cost @ result.starts).sum() + p.energy_price @ kwh,
        "gpus": (p.hours * result.held).sum() + paid.sum(),
        "energy": kwh.sum(),
        "carbon": p.carbon @ kwh / 1000,
    }
    for name, figure in found.items():
        np.testing.assert_allclose(result.measures[name], figure, rtol=1e-9, atol=1e-9)
        assert figure <= p.at_most.get(name, np.inf) * (1 + 1e-5)
    np.testing.assert_allclose(result.objective or 0.0, sum(w * found[name] for name, w in p.objective), rtol=1e-9)
    requests = p.rate_qps * p.hours
    for k, floor in enumerate(p.mean_quality):
        mine = p.bucket_class == k
        if requests[mine].any():
            mean = np.einsum("bh,bdh,bd->", requests[mine], x[mine], p.quality[mine]) / requests[mine].sum()
            assert mean >= floor - 1e-5
    if demand.any():
        mean = np.einsum("bh,bdh,bd->", requests, x, p.quality) / requests.sum()
        np.testing.assert_allclose(result.measures["quality"], mean, rtol=1e-9)
        assert mean >= p.at_most.get("quality", 0.0) - 1e-5


def _carries(p: FleetProblem, replicas: NDArray[np.int64], h: int, share: NDArray[np.float64] | None = None) -> bool:
    """Whether replicas carry a period's demand, at the given shares or at the best ones."""
    b, d = np.nonzero((p.capacity_qps > 0) & (p.rate_qps[:, [h]] > 0))
    busy = np.zeros((len(replicas), len(b)))
    busy[d, np.arange(len(b))] = p.rate_qps[b, h] / p.capacity_qps[b, d]
    if share is not None:
        return bool((busy @ share[b, d] <= replicas + 1e-5).all())
    if not len(b):
        return not p.rate_qps[:, h].any()
    served = (b == np.arange(len(p.rate_qps))[:, None]).astype(float)
    wanted = (p.rate_qps[:, h] > 0).astype(float)
    return linprog(np.zeros(len(b)), A_ub=busy, b_ub=replicas + 1e-4, A_eq=served, b_eq=wanted).status == 0


def _fits(replicas: list[int], room: list[int]) -> bool:
    """Whether replicas, by falling size, fit into nodes."""
    if not replicas:
        return True
    for i in {left: i for i, left in enumerate(room) if left >= replicas[0]}.values():
        if _fits(replicas[1:], [*room[:i], room[i] - replicas[0], *room[i + 1 :]]):
            return True
    return False
