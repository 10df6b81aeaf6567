"""Fleet plans on the terminal and as figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.core.fleetplan import ClassLatency, FleetPlan, Group, Period, PlannedBucket, PlannedOption, Totals
from qplan.core.plan import Assumption, LatencyPrediction, Prediction
from qplan.report.figure_files import check_plot, write_figure
from qplan.report.fleet_plots import draw_fleet, draw_front, draw_sweep
from qplan.report.fleetplans import print_fleet_plan, spans
from qplan.report.sweeps import differences, figures, print_front, print_sweep, print_what_if
from qplan.solvers.fleet.why import Doubt, FleetExplanation, OtherFleet


def fleet(counts: tuple[int, ...], cost: float = 48.0) -> FleetPlan:
    """Return a plan of one option with so many replicas in each hour."""
    grade = Prediction(0.99, 0.97, 1.0, 0.9, "published: a table")
    latency = ClassLatency(0.97, (LatencyPrediction("ttft", 90.0, 0.2, 0.1, 0.4, 1.0),))
    periods = tuple(
        Period(
            float(hour),
            1.0,
            {"chat": 10.0 * count},
            {"h100": count},
            (Group("deployment", count, 0, 4.0 * count, 10.0, 0.8, 300.0 * count, (1.0,), {"chat": latency}),),
            300.0 * count,
        )
        for hour, count in enumerate(counts)
    )
    return FleetPlan(
        status="optimal",
        name="a demand",
        hours=float(len(counts)),
        buckets=(PlannedBucket("chat", 100.0, 50.0, 1.0),),
        options=(
            PlannedOption(
                "deployment", "m", "BF16", "H100", 1, "e", "1", "h100", {"chat": grade}, {"chat": 12.0}, 70.0, ""
            ),
        ),
        periods=periods,
        bought={},
        totals=Totals(cost, 3.0, None, float(sum(counts)), {"chat": grade}, {"chat": 0.97}),
        objective_name="cost",
        objective=cost,
        bound=cost,
        gap=0.0,
        solver="highs",
        solve_s=0.5,
        energy_note="GPUs alone",
        provenance=("composed: somewhere",),
        assumptions=(Assumption("arrivals", "Poisson", "classes"),),
        warnings=("measure before relying on it",),
    )


@pytest.fixture
def refused() -> FleetPlan:
    return replace(
        fleet((1,)),
        status="infeasible",
        totals=None,
        periods=(),
        options=(),
        reason="too few GPUs",
        constraint="inventory",
        nearest=("h100: count 9 (+1)",),
    )


def test_hours_with_the_same_fleet_share_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    plan = fleet((1, 1, 3, 2, 2))
    assert [len(span) for span in spans(plan)] == [2, 1, 2]
    print_fleet_plan(plan, as_json=False)
    shown = capsys.readouterr().out
    for said in ("0–2h", "2h", "3–5h", "48.00 $", "9.0 GPU-hours", "97.0% of requests", "gap 0.00%", "arrivals"):
        assert said in shown
    assert "proportion to load" not in shown


def test_a_total_that_is_not_the_solvers_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    plan = fleet((1, 1))
    assert plan.totals is not None
    print_fleet_plan(replace(plan, totals=replace(plan.totals, cost=plan.totals.cost + 0.3)), as_json=False)
    assert "the proof in proportion to load" in capsys.readouterr().out


def test_many_different_hours_are_shown_by_their_range(capsys: pytest.CaptureFixture[str]) -> None:
    print_fleet_plan(fleet(tuple(1 + hour % 3 for hour in range(30))), as_json=False)
    shown = capsys.readouterr().out
    assert "least" in shown
    assert "2.0" in shown


def test_no_fleet_says_why_and_what_would_do(capsys: pytest.CaptureFixture[str], refused: FleetPlan) -> None:
    print_fleet_plan(refused, as_json=False)
    shown = capsys.readouterr().out
    assert "No feasible plan (inventory): too few GPUs" in shown
    assert "nearest change: h100: count 9 (+1)" in shown


def test_an_explanation_is_told_beside_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    why = FleetExplanation(
        unit="$",
        binding=("GPUs of h100: always",),
        worth_of_gpu={"h100": 12.5},
        worth_of_kw=0.0,
        worth_of_quality={"chat": 3.0},
        worth_of_slo={"chat: TTFT p90, 1 s": 0.02},
        runner_ups=(OtherFleet("h100", 0.031, {"another": 7}),),
        measure_next=(Doubt("deployment 22% slower than predicted", 0.4, -0.1),),
        rejected={"chat: too slow": 5},
    )
    print_fleet_plan(fleet((1,)), why, as_json=False)
    shown = capsys.readouterr().out
    for said in ("12.5 $", "0.02 $", "+3.1% without h100: 7 x another", "takes 10.0% more", "5 deployments"):
        assert said in shown


def test_sweeps_fronts_and_what_ifs_are_tables(capsys: pytest.CaptureFixture[str], refused: FleetPlan) -> None:
    base, dearer = fleet((1, 2)), fleet((2, 2), cost=60.0)
    print_sweep([(10.0, base), (20.0, dearer), (99.0, refused)], as_json=False)
    assert "none: inventory" in capsys.readouterr().out
    print_front(["cost", "quality"], [base, dearer], as_json=False)
    assert "99.00%" in capsys.readouterr().out
    print_what_if(base, [("+1h100", dearer), ("slo.ttft=1ms", refused)], as_json=False)
    shown = capsys.readouterr().out
    assert "+12" in shown
    assert "+0.00%" in shown
    assert "slo.ttft=1ms: no feasible plan (inventory): too few GPUs; nearest change: h100: count 9 (+1)" in shown


def test_figures_and_differences_keep_unknown_unknown(refused: FleetPlan) -> None:
    base = fleet((1, 2))
    assert figures(base)["carbon"] is None
    assert figures(base)["quality"] == pytest.approx(0.99)
    assert differences(base, fleet((2, 2), cost=60.0))["cost"] == 12.0
    assert set(differences(base, refused).values()) == {None}


def test_figures_are_written_by_suffix(tmp_path: Path) -> None:
    plan = fleet((1, 2, 2))
    write_figure(tmp_path / "fleet.png", draw_fleet(plan))
    assert (tmp_path / "fleet.png").read_bytes().startswith(b"\x89PNG")
    write_figure(tmp_path / "sweep.html", draw_sweep([(10.0, plan), (20.0, fleet((3,)))]))
    assert "data:image/png;base64," in (tmp_path / "sweep.html").read_text()
    assert draw_front(["cost", "gpus", "quality"], [plan, fleet((3,), cost=9.0)]).png
    with pytest.raises(InputError, match=r"ends in .png or .html"):
        check_plot(tmp_path / "fleet.pdf")
    with pytest.raises(InputError, match="cannot write"):
        write_figure(tmp_path / "none" / "fleet.png", draw_fleet(plan))
