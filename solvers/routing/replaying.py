"""A trace under a policy and under those that people use, in one simulator: energy, attainment, cost.

Every policy serves the same requests with the same replicas, and energy counts up to the same time. Baselines send a
request only where its class may go, and keep all replicas awake, as they know nothing of sleep; so does ``energy``, the
online rule alone. ``energy, sleeping`` lets replicas sleep as the policy says; a request that waits with its router
counts in the load when it comes. ``all 16-bit`` is the fleet on the same GPUs without quantization, as far as it fits,
under least requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.errors import InputError
from qplan.core.policy import Policy
from qplan.models.simulator.dispatch import Among, Dispatch, Routing, Ruled, Scored, Split
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import Simulation
from qplan.models.simulator.state import Records
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Bools, Floats, Ints
from qplan.solvers.backends import SolverBackend
from qplan.solvers.routing.bound import clairvoyant
from qplan.solvers.routing.compiled import SCRAPE_S, ruled
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.online import GAIN
from qplan.solvers.routing.sleeping import schedule

ENERGY, SLEEPING, FULL = "energy", "energy, sleeping", "all 16-bit"
POLICIES = (*(rule.value for rule in Dispatch), "session-hash", "cheapest-first", FULL, ENERGY, SLEEPING)
SESSIONS = 1024
"""Sessions among which requests of a trace that names none are divided, for the hash of a session."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a trace under one policy. K classes, G groups.

    Attributes
    ----------
    energy_j
        All replicas up to the common end, waking included.
    carbon_kg
        CO2e of that, where the demand says the grid's by the hour.
    attainment : (K,)
        Share of each class's requests within each of its SLOs, in their order; of one that may wait from when it went
        to a replica, which is within its deadline.
    within
        Share of all requests within all their SLOs.
    cost
        US dollars of the GPUs while awake; ``None`` of the fleet at 16 bits, which has other replicas.
    quality : (K,)
        Mean; ``None`` there too, and of a class that none was served of.
    deferred_s : (K,)
        Mean of the time that requests waited for a trough or a cleaner hour.
    requests : (G,)
        That each group served.
    cached
        Share of all prompt tokens that replicas had kept from the turns before.
    latency : (K,)
        p50 and p90 of TTFT and TPOT in seconds.
    series : (T, 2)
        End of each part of the time in seconds, and mean watts in it.
    """

    name: str
    energy_j: float
    carbon_kg: float | None
    attainment: tuple[tuple[float, ...], ...]
    within: float
    cost: float | None
    quality: tuple[float | None, ...]
    deferred_s: tuple[float, ...]
    requests: tuple[int, ...]
    cached: float
    refused: int
    mean_tpot_s: float
    latency: tuple[Mapping[str, float], ...]
    series: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A fleet at 16 bits.

    Attributes
    ----------
    able : (K, R)
        Whether a replica may serve a class.
    """

    replicas: Sequence[Replica]
    able: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A trace under several policies.

    Attributes
    ----------
    outcomes
        In the order asked for.
    bound_j
        Least energy with which any router serves it; ``None`` where it was not asked for, or requests share prefixes,
        which it takes to be prefilled each time.
    """

    requests: int
    duration_s: float
    outcomes: tuple[Outcome, ...]
    bound_j: float | None

    def named(self, name: str) -> Outcome:
        """Return the outcome of a policy."""
        return next(one for one in self.outcomes if one.name == name)

    def closed(self, name: str, baseline: str = "least-outstanding") -> float | None:
        """Return the share of the distance from a baseline down to the bound that a policy covers."""
        if self.bound_j is None:
            return None
        base = self.named(baseline).energy_j
        return (base - self.named(name).energy_j) / (base - self.bound_j) if base > self.bound_j else None


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    name: str
    fleet: Sequence[Replica]
    simulation: Simulation
    done: Records
    waking_j: float


def replay(
    model: FleetModel,
    policy: Policy,
    traffic: Traffic,
    classes: Ints,
    *,
    names: Sequence[str] | None = None,
    full: Whole | None = None,
    backend: SolverBackend | None = None,
    gain: float = GAIN,
    routers: int = 1,
    scrape_s: float = SCRAPE_S,
    affinity: bool = True,
    seed: int = 0,
) -> Replay:
    """Serve `traffic` under the policies called `names`, all by default.

    Parameters
    ----------
    policy
        What ``energy`` and ``energy, sleeping`` follow; it may know lengths, times and energies wrong, which the
        simulated replicas do not follow.
    classes : (N,)
        Class of each request.
    full
        The fleet at 16 bits, for ``all 16-bit``; without it there is none.
    backend
        Solves for the bound; without it there is none.
    gain, routers, scrape_s, affinity
        Of the online rule, as in :func:`qplan.solvers.routing.compiled.ruled`.

    Raises
    ------
    InputError
        ``all 16-bit`` is wanted, and there is no such fleet.
    """
    traffic = replace(traffic, buckets=model.lengths.bucket_of(classes, traffic.input_tokens))
    wanted = names or [name for name in POLICIES if full is not None or name != FULL]
    if FULL in wanted and full is None:
        raise InputError(f"{FULL}: the model fits none of the fleet's GPUs without quantization")
    rule = ruled(policy, gain, routers=routers, scrape_s=scrape_s, affinity=affinity)
    runs = [_run(name, model, policy, rule, traffic, full, seed) for name in wanted]
    end_s = max(run.simulation.use().end_s for run in runs)
    shared = bool((traffic.sessions >= 0).any())
    bound = None if backend is None or shared else clairvoyant(model, traffic, classes, end_s, backend)
    outcomes = tuple(_outcome(run, model, traffic, classes, end_s) for run in runs)
    return Replay(len(traffic), end_s, outcomes, bound)


def _run(
    name: str,
    model: FleetModel,
    policy: Policy,
    rule: Ruled,
    traffic: Traffic,
    full: Whole | None,
    seed: int,
) -> _Run:
    fleet = full.replicas if name == FULL and full is not None else model.replicas
    able = full.able[model.lengths.request_class] if name == FULL and full is not None else model.able
    waking_j = 0.0
    dispatch: Routing
    if name in (ENERGY, SLEEPING):
        dispatch = rule
    elif name == "session-hash":
        drawn = np.random.default_rng(seed).integers(0, SESSIONS, len(traffic))
        of = np.where(traffic.sessions >= 0, traffic.sessions % SESSIONS, drawn)
        traffic = replace(traffic, buckets=traffic.buckets * SESSIONS + of)
        dispatch = Split(np.concatenate([_hashed(np.flatnonzero(row), len(fleet)) for row in able]))
    elif name == "cheapest-first":
        dispatch = _cheapest_first(model)
    else:
        dispatch = Among(Dispatch.LEAST_OUTSTANDING if name == FULL else Dispatch(name), able)
    if name == SLEEPING:
        times = schedule(policy, traffic)
        fleet, waking_j = times.of(fleet, policy), times.waking_j(policy)
    simulation = Simulation(fleet, dispatch, seed)
    done = np.concatenate([simulation.offer(traffic), simulation.finish()])
    return _Run(name, fleet, simulation, done[np.argsort(done["row"])], waking_j)


def _hashed(able: Ints, replicas: int) -> Floats:
    """Return the one replica of each session, (SESSIONS, R)."""
    return np.eye(replicas)[able[np.arange(SESSIONS) % len(able)]]


def _cheapest_first(model: FleetModel) -> Scored:
    """Fill the group with the least energy a request up to the requests in flight at its load limit, then the next."""
    limits = [int(np.interp(one.limit_qps, one.rate_qps, one.in_flight)) for one in model.groups]
    mean_j = np.array([one.energy_j @ model.lengths.weight for one in model.groups])
    buckets, most = len(model.lengths), max(limits) + 2
    rank = np.argsort(np.argsort(mean_j)).astype(float)
    beyond = np.arange(most)[None, :] >= np.array(limits)[:, None]
    scores = np.broadcast_to((rank[:, None] + len(rank) * beyond)[None], (buckets, len(rank), most)).copy()
    able = np.array([[np.isfinite(one.quality[k]) for one in model.groups] for k in model.lengths.request_class])
    scores[~able] = np.inf
    return Scored(scores, model.group_of)


def _outcome(run: _Run, model: FleetModel, traffic: Traffic, classes: Ints, end_s: float) -> Outcome:
    use, done = run.simulation.use(end_s), run.done
    served: Bools = ~np.isnan(done["e2e_s"])
    within = served.copy()
    attainment: list[tuple[float, ...]] = []
    latency: list[Mapping[str, float]] = []
    quality: list[float | None] = []
    groups = model.group_of if run.name != FULL else None
    for k, one in enumerate(model.demand.classes):
        mine = classes == k
        row = []
        for slo in one.slos:
            waited_s = 0.0 if slo.metric == "tpot" else done["deferred_s"]
            met = served & ~(done[f"{slo.metric}_s"] - waited_s > slo.threshold_s)  # NaN: a TPOT of one token
            within &= met | ~mine
            row.append(float(met[mine].mean()) if mine.any() else 1.0)
        attainment.append(tuple(row))
        latency.append(
            {
                f"{metric}_p{p}_s": float(np.nanpercentile(done[f"{metric}_s"][mine & served], p))
                for metric in ("ttft", "tpot")
                for p in (50, 90)
                if np.isfinite(done[f"{metric}_s"][mine & served]).any()
            }
        )
        grades = np.array([group.quality[k] for group in model.groups])
        mine &= served
        used = [] if groups is None else grades[model.group_of[done["replica"][mine]]]
        quality.append(float(np.mean(used)) if np.size(used) else None)
    kinds = len(model.demand.classes)
    steps = np.maximum(traffic.output_tokens - 1.0, 0.0)[served]
    tpot = np.nan_to_num(done["tpot_s"][served])
    counts = np.bincount(done["replica"][served], minlength=len(run.fleet))
    by_group = counts if groups is None else np.bincount(groups, weights=counts, minlength=len(model.groups))
    energy = use.energy_j
    assert energy is not None  # refused where the power is not known
    return Outcome(
        run.name,
        energy + run.waking_j,
        _carbon_kg(run, model, end_s),
        tuple(attainment),
        float(within.mean()),
        _cost(run, model, end_s),
        tuple(quality),
        tuple(float(done["deferred_s"][classes == k].mean()) if (classes == k).any() else 0.0 for k in range(kinds)),
        tuple(int(one) for one in by_group),
        float(done["cached"].sum() / traffic.input_tokens.sum()),
        int((~served).sum()),
        float(tpot @ steps / max(steps.sum(), 1.0)),
        tuple(latency),
        _series(run, end_s),
    )


def _cost(run: _Run, model: FleetModel, end_s: float) -> float | None:
    """Return the price of the GPUs while their replicas are up."""
    if run.name == FULL:
        return None
    hours = [float(one.up_by_s(np.array([end_s]))[0]) / 3600 for one in run.fleet]
    prices = [model.groups[g].group.deployment.price_per_hour for g in model.group_of]
    return float(sum(h * price for h, price in zip(hours, prices, strict=True)))


def _carbon_kg(run: _Run, model: FleetModel, end_s: float) -> float | None:
    """Return the CO2e of the energy, in bins of the series; that of waking at the mean over its time."""
    demand = model.demand
    if not any(demand.carbon):
        return None
    edges_s = np.append(0.0, np.cumsum(demand.hours)) * 3600.0
    ends_s, watts = np.array(_series(run, end_s)).T
    # Grams that one watt emits by each time, in a horizon and in those before it.
    by_edge = np.append(0.0, np.cumsum(np.diff(edges_s) * demand.carbon)) / 3.6e6
    turns, rest_s = np.divmod(np.append(0.0, ends_s), edges_s[-1])
    grams = np.diff(turns * by_edge[-1] + np.interp(rest_s, edges_s, by_edge))
    return float(watts @ grams + run.waking_j * grams.sum() / end_s) / 1000.0


def _series(run: _Run, end_s: float) -> tuple[tuple[float, float], ...]:
    use = run.simulation.use(end_s)
    total: Floats = np.sum([one.power_w for one in use.replicas if one.power_w is not None], axis=0)
    ends = np.minimum(use.replicas[0].bin_s * np.arange(1, len(total) + 1), end_s)
    return tuple(zip(ends.tolist(), total.tolist(), strict=True))
