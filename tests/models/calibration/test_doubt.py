from __future__ import annotations

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration.doubt import DEPLOYMENT, LESSONS, SYSTEM, Doubt, hull, own_range, shipped_doubt
from qplan.models.power.curves import Ratio


def test_a_factor_holds_nine_of_ten_further_families() -> None:
    draw = np.random.default_rng(0)
    wide = draw.uniform(0.02, 0.4, 400)
    families = {f"family {n}": draw.normal(0, one, 20) for n, one in enumerate(wide[:20])}
    factor = Doubt.of({"tpot": {DEPLOYMENT: {3: families}}}).factors["tpot"][DEPLOYMENT][3]
    inside = np.mean([(np.abs(draw.normal(0, one, 50)) <= np.log(factor)).mean() for one in wide[20:]])
    assert 0.86 < inside < 0.99


def test_the_range_is_that_of_the_most_points_not_above() -> None:
    doubt = Doubt({"tpot": {LESSONS: {0: 3.0}, DEPLOYMENT: {1: 2.0, 5: 1.25}, SYSTEM: {1: 2.5}}})
    assert doubt.range("tpot", DEPLOYMENT, 4) == Ratio(0.5, 2.0)
    assert doubt.range("tpot", DEPLOYMENT, 50) == Ratio(0.8, 1.25)
    assert doubt.range("tpot", SYSTEM, 0) == Ratio(1 / 3.0, 3.0)
    assert Doubt.from_data(doubt.to_data()) == doubt


def test_what_ships_knows_that_points_help() -> None:
    doubt = shipped_doubt()
    for metric in ("ttft", "tpot"):
        assert doubt.range(metric, DEPLOYMENT, 10).upper < doubt.range(metric, DEPLOYMENT, 1).upper
        assert doubt.range(metric, DEPLOYMENT, 10).upper < doubt.range(metric, LESSONS, 0).upper


@pytest.mark.parametrize("points", [40, 200])
def test_enough_own_points_tell_their_own_range(points: int) -> None:
    draw = np.random.default_rng(points)
    held = [
        np.mean((found.lower <= fresh) & (fresh <= found.upper))
        for found, fresh in (
            (own_range(np.exp(draw.normal(0, 0.1, points))), np.exp(draw.normal(0, 0.1, 400))) for _ in range(40)
        )
    ]
    assert 0.89 < np.mean(held) < 0.97


def test_few_own_points_tell_their_ends_and_none_tells_nothing() -> None:
    assert own_range(np.array([1.2, 0.9, 1.0])) == Ratio(0.9, 1.2)
    assert own_range(np.empty(0)) == Ratio(1.0, 1.0)
    assert hull(Ratio(0.5, 1.1), Ratio(0.8, 1.4)) == Ratio(0.5, 1.4)


def test_anything_else_is_refused() -> None:
    with pytest.raises(InputError, match="not what was written"):
        Doubt.from_data({"tpot": [1]})
