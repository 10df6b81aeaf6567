"""A verification in words."""

from __future__ import annotations

from typing import Any

from qplan.report.verification import verification_rows


def told(rounds: int = 1, **changes: Any) -> dict[str, Any]:
    first = {
        "class": "chat",
        "slo": "p90:ttft=1s",
        "period": 0,
        "target": 0.9,
        "share": 0.95,
        "lower": 0.94,
        "upper": 0.96,
        "requests": 20_000,
    }
    second = {**first, "period": 1, "share": 0.91, "lower": 0.895, "upper": 0.925, **changes}
    data = {"holds": not changes, "requests": 40_000, "attainments": [first, second], "recorded": []}
    before = {**second, "share": 0.5, "lower": 0.4}
    return {**data, "rounds": rounds, "least_factor": 0.875, "first": {**data, "attainments": [before]}}


def test_each_objective_is_told_at_its_worst_period() -> None:
    name, text = verification_rows(told(share=0.91, lower=0.895))[0]
    assert name == "chat p90:ttft=1s"
    assert text == ("in doubt: 91.00% of requests in its worst period (1), between 89.50% and 92.50%; asked for 90%")


def test_reached_and_missed_are_told_apart() -> None:
    assert verification_rows(told(lower=0.901))[0][1].startswith("reached")
    assert verification_rows(told(share=0.8, lower=0.79))[0][1].startswith("missed")


def test_a_plan_that_does_not_hold_is_warned_of() -> None:
    warned = [text for name, text in verification_rows(told(share=0.8, lower=0.79)) if "warning" in name]
    assert warned == ["the plan is not shown to reach its SLOs"]
    assert not [name for name, _ in verification_rows({**told(), "holds": True}) if "warning" in name]


def test_plans_made_again_say_what_the_first_had() -> None:
    rows = dict(verification_rows(told(rounds=3)))
    assert rows["planned again"] == (
        "2 times, with capacities down to 88% of those predicted: the first plan had 50.00% of chat within p90:ttft=1s"
    )
    assert "planned again" not in dict(verification_rows(told()))


def test_arrivals_are_told_as_they_were() -> None:
    def simulated(recorded: list[str], *classes: str) -> str:
        one = told()["attainments"][0]
        every = [{**one, "class": name} for name in classes]
        return dict(verification_rows({**told(), "attainments": every, "recorded": recorded}))["simulated"]

    assert simulated([], "chat") == "40,000 requests, Poisson arrivals, random routing"
    assert simulated(["chat"], "chat") == "40,000 requests, chat as in the trace, random routing"
    assert "chat as in the trace, else Poisson arrivals" in simulated(["chat"], "chat", "code")


def test_what_it_is_not_is_always_said() -> None:
    rows = dict(verification_rows({**told(), "attainments": [], "holds": True}))
    assert "step times" in rows["not verified"]
    assert rows["SLOs"] == "none: nothing to reach"
