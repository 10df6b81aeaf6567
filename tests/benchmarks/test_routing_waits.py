"""What it saves that requests which may wait begin when the grid is clean: two fleets, two grids, a day in short.

    pytest -s tests/benchmarks/test_routing_waits.py

Simulated days of two hours, an hour of which takes five minutes: chat comes by the hour as people do, batch evenly,
with a deadline of some hours. A load is that of the busiest hour, over what the policy serves. The day before is served
too, as far as its requests may begin in the day that counts. All stands on composed step times and a fitted power
model, and on grids that are made up; the part of the SLOs up to which what waits fills a replica was chosen with the
first fleet's days in sight. How fast replicas wake, and how long they stay awake, is not shortened with the day.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from qplan.core.policy import Policy
from qplan.models.simulator.fleetfile import make_fleet, read_fleet
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats, Ints
from qplan.profiles.demands import read_demand
from qplan.solvers.backends import open_backend
from qplan.solvers.routing.fleet import FleetModel, model_fleet
from qplan.solvers.routing.pacing import class_work, paced, power_lines
from qplan.solvers.routing.replaying import ENERGY, SLEEPING, Outcome, replay
from qplan.solvers.routing.solving import solve_policy
from qplan.solvers.routing.trying import Trial
from tests.benchmarks.routing_fleets import FLEETS, show

pytestmark = pytest.mark.model_figures

DAY_S = 7200.0
SUN = (*(380,) * 7, *(320, 260, 200, 160, 140, 130, 130, 140, 170, 230), *(420,) * 7)
"""Made up: grams of CO2e per kWh of a grid with much sun."""

WIND = (
    *(150, 140, 130, 130, 140, 170, 250, 300, 320, 330, 330, 320),
    *(300, 300, 310, 330, 350, 380, 400, 400, 400, 330, 260, 200),
)
"""Made up: one with wind at night."""

DEMAND = """
classes:
  - {{name: chat, rate: 5qps, demand: diurnal, lengths: chat, slo: [{slo}], models: [{model}], quality: 80%}}
  - {{name: batch, rate: {batch}qps, demand: flat, lengths: "isl=1500,osl=200", slo: [p90:tpot=200ms],
     models: [{model}], quality: 80%}}
energy: {{carbon: [{carbon}]}}
start: {{time: 30s}}
"""


@dataclass(frozen=True)
class Day:
    """A fleet, its demand at a load, and its policy, by which batch waits for room."""

    model: FleetModel
    waiting: Policy
    deadline_s: float

    def traffic(self, off: tuple[float, float] = (1.0, 1.0)) -> tuple[Traffic, Ints]:
        """Draw what comes in the day and in one deadline before it, so many times what was thought of each class."""
        demand, random = self.model.demand, np.random.default_rng(2)
        periods = len(demand.hours)
        edges_s = np.linspace(-DAY_S, DAY_S, 2 * periods + 1)
        times_s, rows = [], []
        most = int(4 * sum(sum(one.rate_qps) for one in demand.classes) * DAY_S / periods)
        drawn = self.model.lengths.draw(1.0, most, seed=1)
        of_class = self.model.lengths.request_class[drawn.buckets]
        for k, one in enumerate(demand.classes):
            came = np.append(0.0, np.cumsum(off[k] * np.tile(one.rate_qps, 2) * DAY_S / periods))
            at_s = np.interp(np.sort(random.random(random.poisson(came[-1]))) * came[-1], came, edges_s)
            at_s = at_s[at_s >= -self.deadline_s]
            times_s.append(at_s + DAY_S)  # as the clock of a policy begins at 0
            rows.append(np.flatnonzero(of_class == k)[: len(at_s)])
        at_s, row = np.concatenate(times_s), np.concatenate(rows)
        order = np.argsort(at_s, kind="stable")
        row = row[order]
        return Traffic(at_s[order], drawn.input_tokens[row], drawn.output_tokens[row], drawn.buckets[row]), of_class[
            row
        ]

    def emitted(self, one: Outcome) -> tuple[float, float]:
        """Return kWh and kg of CO2e of the second day, to which two days' waking counts by half."""
        carbon = np.array(self.model.demand.carbon)
        by_edge = np.append(0.0, np.cumsum(carbon * DAY_S / len(carbon)))
        ends_s, watts = np.array(one.series).T
        edges_s = np.append(0.0, ends_s)
        inside_s = np.clip(edges_s - DAY_S, 0.0, DAY_S)
        grams = np.diff(np.interp(inside_s, np.linspace(0.0, DAY_S, len(carbon) + 1), by_edge))
        waking_j = (one.energy_j - float(watts @ np.diff(edges_s))) / 2
        kwh = (float(watts @ np.diff(inside_s)) + waking_j) / 3.6e6
        return kwh, (float(watts @ grams) + waking_j * carbon.mean()) / 3.6e9


@cache
def solved(name: str, grid: tuple[int, ...], batch: float, sleep: bool) -> tuple[FleetModel, Policy]:
    """Return a fleet and its demand, and a policy by which batch may wait for hours."""
    model_name, slo, groups = FLEETS[name]
    text = DEMAND.format(model=model_name, slo=slo, batch=batch, carbon=", ".join(map(str, grid)))
    entries = [{"model": model_name, "quantization": q, "gpu": gpu, "tp": tp, "count": n} for q, gpu, tp, n in groups]
    with TemporaryDirectory() as folder:
        demand, fleet = Path(folder) / "demand.yaml", Path(folder) / "fleet.json"
        demand.write_text(text)
        fleet.write_text(json.dumps({"schema_version": 1, "replicas": entries}))
        asked, file = read_demand(demand), read_fleet(fleet)
    model = model_fleet(file, make_fleet(file, asked.profiles), asked, sleep=sleep)
    classes = tuple(replace(one, rate_qps=(float(np.mean(one.rate_qps)),)) for one in asked.classes)
    flat = replace(asked, hours=(24.0,), carbon=(0.0,), energy_price=(0.0,), classes=classes)
    steady = replace(model, demand=flat)  # by which nothing is paced
    return model, solve_policy(steady, levels=8, deadlines_s={"batch": DAY_S / 3})


def made(name: str, grid: tuple[int, ...], load: float, hours: float, batch: float, sleep: bool) -> Day:
    model, policy = solved(name, grid, batch, sleep)
    rest, more = loads(policy, model)
    factor = load * policy.levels[-1].load_qps / float((rest + more).max())
    demand = replace(model.demand.scaled(factor), hours=(DAY_S / 3600 / len(grid),) * len(grid))
    return Day(replace(model, demand=demand), due(policy, hours * DAY_S / 24), hours * DAY_S / 24)


def due(policy: Policy, deadline_s: float | None) -> Policy:
    """Return the policy with another deadline of batch; none: it begins at once."""
    classes = (replace(one, deadline_s=deadline_s if one.name == "batch" else None) for one in policy.classes)
    return replace(policy, classes=tuple(classes))


def loads(policy: Policy, model: FleetModel) -> tuple[Floats, Floats]:
    """Return the loads of chat and of batch by period."""
    each = class_work(policy)
    chat, batch = (each[one.name] * np.array(one.rate_qps) for one in model.demand.classes)
    return chat, batch


def promised_kg(day: Day, policy: Policy) -> tuple[float, float]:
    """Return the CO2e of a day by the program's own power, where nobody waits and under a policy."""
    chat, batch = loads(policy, day.model)
    lines = power_lines(Trial.of(day.model, day.model.lengths.draw(1.0, 4000, 0)), policy, chat)
    periods, begins = len(batch), np.zeros(len(batch))
    at_s = (np.arange(400 * periods) + 0.5) * DAY_S / (400 * periods)
    waits = np.array(policy.class_named("batch").waits).T
    period = ((at_s + np.interp(at_s, *waits)) % DAY_S / DAY_S * periods).astype(int)
    np.add.at(begins, period, batch[(at_s / DAY_S * periods).astype(int)] / 400)
    first, then = (
        np.array([max(slope * x + offset for slope, offset in rows) for x, rows in zip(more, lines, strict=True)])
        for more in (batch, begins)
    )
    carbon = np.array(day.model.demand.carbon) * DAY_S / periods / 3.6e9
    return float(first @ carbon), float(then @ carbon)


CASES = {
    "sun, 50 %, awake": ("70B, 22 GPUs", SUN, 0.5, 8.0, 1.5, False),
    "sun, 80 %, awake": ("70B, 22 GPUs", SUN, 0.8, 8.0, 1.5, False),
    "sun, 50 %, sleeping": ("70B, 22 GPUs", SUN, 0.5, 8.0, 1.5, True),
    "sun, 80 %, sleeping": ("70B, 22 GPUs", SUN, 0.8, 8.0, 1.5, True),
    "wind, 50 %, awake": ("34B, 12 GPUs", WIND, 0.5, 12.0, 1.0, False),
}


@pytest.mark.parametrize("case", CASES)
def test_waiting_for_a_clean_grid_lowers_co2e(case: str) -> None:
    name, _, share, hours, _, sleep = CASES[case]
    day = made(*CASES[case])
    trial = Trial.of(day.model, day.model.lengths.draw(1.0, 4000, 0))
    policy = paced(trial, day.waiting, open_backend("highs"))
    first_kg, then_kg = promised_kg(day, policy)
    promised = 1 - then_kg / first_kg
    show(f"\n{case}: {name}, {hours:g} h to begin; the program promises {promised:.1%} less CO2e")
    forecasts = {"as forecast": (1.0, 1.0)}
    if case == "sun, 50 %, awake":
        forecasts |= {"chat +30 %, batch -30 %": (1.3, 0.7), "chat -30 %, batch +30 %": (0.7, 1.3)}
    for forecast, off in forecasts.items():
        traffic, classes = day.traffic(off)
        found: dict[str, tuple[Outcome, float]] = {}
        at_once = due(day.waiting, None)
        for what, followed in (("nobody waits", at_once), ("for room", day.waiting), ("and clean hours", policy)):
            (one,) = replay(day.model, followed, traffic, classes, names=[SLEEPING if sleep else ENERGY]).outcomes
            kwh, kg = day.emitted(one)
            found[what] = one, kg
            less = kg / found["nobody waits"][1] - 1
            chat, late = (min(row) for row in one.attainment)
            show(
                f"  {forecast}, {what:15} {kwh:7.3f} kWh, {kg:6.3f} kg CO2e {less:+6.1%}, chat {chat:6.1%} and batch "
                f"{late:6.1%} within, batch waited {one.deferred_s[1] * 24 / DAY_S:4.1f} h"
            )
            assert chat >= 0.9
            assert chat >= min(found["nobody waits"][0].attainment[0]) - 0.01
            assert one.deferred_s[1] <= day.deadline_s
        none, room, clean = (kg for _, kg in found.values())
        assert clean < none
        assert clean < (room if share == 0.5 else 1.005 * room)  # at 80 % what waits for room leaves no choice of hours
        assert 1 - clean / none > 0.4 * promised
