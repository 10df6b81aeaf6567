from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration import ClosedLoad, ClosedLoopPrior, Family, error_curve

Loads = Callable[[int], list[ClosedLoad]]


@pytest.fixture(scope="module")
def families(prior: ClosedLoopPrior, loads: Loads) -> list[Family[ClosedLoad]]:
    """Three engines that differ in what steps and prefills cost; the last has few rows."""
    made = []
    for index, (name, weights, rows) in enumerate((("a", 1.2, 16), ("b", 1.4, 16), ("c", 1.7, 4))):
        its_rows = tuple(loads(index)[:rows])
        parts = prior(its_rows)
        noise = np.exp(np.random.default_rng(index).normal(0, 0.02, rows))
        measured = {
            "tpot": noise * (parts["tpot"].seconds @ np.array([weights, 1.0, 0.8, 0.2])),
            "ttft": noise * (parts["ttft"].total * 1.5),
        }
        coordinates = np.array([row.coordinates for row in its_rows])
        made.append(Family(f"engine {name}", name, its_rows, measured, coordinates))
    return made


def test_error_falls_with_points_and_small_families_drop_out(
    prior: ClosedLoopPrior, families: Sequence[Family[ClosedLoad]]
) -> None:
    curve = error_curve(prior, families, counts=(0, 1, 5), draws=2)
    tpot = [curve.errors("tpot", count) for count in (None, 0, 1, 5)]
    assert tpot[0].median > tpot[1].median > tpot[3].median
    assert [one.families for one in tpot] == [3, 3, 3, 2]
    assert [one.rows for one in tpot] == [36, 36, 36, 32]
    assert tpot[3].median <= tpot[3].mean <= tpot[3].p90


def test_rows_that_were_calibrated_on_are_not_judged(
    prior: ClosedLoopPrior, families: Sequence[Family[ClosedLoad]]
) -> None:
    curve = error_curve(prior, families, counts=(0, 3), draws=2)
    assert {name: len(errors) for name, errors in curve.calibrated["ttft"][3].items()} == {
        "engine a": 2 * 13,
        "engine b": 2 * 13,
        "engine c": 2 * 1,
    }
    assert {name: len(estimates) for name, estimates in curve.left_out["ttft"][3].items()} == {
        "engine a": 2,
        "engine b": 2,
        "engine c": 2,
    }


def test_a_family_is_not_taught_by_its_own_system(
    prior: ClosedLoopPrior, families: Sequence[Family[ClosedLoad]]
) -> None:
    first = families[0]
    mad = {metric: 50 * seconds for metric, seconds in first.measured.items()}
    sibling = Family("a sibling", first.system, first.rows, mad, first.coordinates)
    alone, beside = (error_curve(prior, each, counts=(0,)) for each in (families, [*families, sibling]))
    assert beside.calibrated["tpot"][0][first.name].tolist() == alone.calibrated["tpot"][0][first.name].tolist()
    assert beside.calibrated["tpot"][0]["engine b"].tolist() != alone.calibrated["tpot"][0]["engine b"].tolist()


def test_lessons_need_another_system(prior: ClosedLoopPrior, families: Sequence[Family[ClosedLoad]]) -> None:
    with pytest.raises(InputError, match="two systems or more"):
        error_curve(prior, families[:1])
    with pytest.raises(InputError, match="two systems or more"):
        error_curve(prior, families, teachers=families[:1])
    assert error_curve(prior, families[:1], counts=(0,), teachers=families[1:]).errors("tpot", 0).families == 1
