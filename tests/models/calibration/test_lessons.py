from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration import ClosedLoopPrior, Lesson, Parts, learn, shipped_lessons
from qplan.models.calibration.lessons import from_data, to_data
from qplan.models.steptimes import Floats

NAMES = ("own", "others")


def family(coefficients: tuple[float, float], seed: int, rows: int = 12) -> tuple[Parts, Floats]:
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(0.1, 1.0, (rows, 2))
    measured = seconds @ np.array(coefficients) * np.exp(rng.normal(0, 0.01, rows))
    return Parts(NAMES, seconds, np.ones(2), np.ones(2)), measured


def test_the_lesson_is_the_median_of_the_families() -> None:
    """One engine's oddity, a large second part, is not everyone's."""
    lesson = learn([family((0.8, b), seed) for seed, b in enumerate((0.5, 0.5, 0.5, 0.5, 5.0))])
    assert lesson.mean == pytest.approx((0.8, 0.5), abs=0.05)
    assert lesson.deviation[1] > 1 > lesson.deviation[0]
    assert lesson.families == 5


def test_families_that_agree_make_certain_but_not_too_certain() -> None:
    lesson = learn([family((0.8, 0.5), seed) for seed in range(6)])
    assert 0.1 <= min(lesson.deviation) <= max(lesson.deviation) < 0.3
    assert lesson.noise == 0.03  # the least


def test_what_a_family_cannot_tell_stays_doubtful() -> None:
    seconds = np.column_stack([np.linspace(1, 2, 10), np.zeros(10)])
    lesson = learn([(Parts(NAMES, seconds, np.ones(2), np.ones(2)), seconds[:, 0] * 0.9)] * 3)
    assert lesson.mean[1] == pytest.approx(1.0)
    assert lesson.deviation[1] == pytest.approx(1.0, rel=0.05)


def test_the_factor_between_systems_is_learnt() -> None:
    alike = learn([family((1.0, 1.0), seed) for seed in range(4)])
    apart = learn([family((scale, scale), seed) for seed, scale in enumerate((0.5, 1.0, 1.0, 2.0))])
    assert alike.factor_deviation < 0.15 < apart.factor_deviation == pytest.approx(np.log(2) / np.sqrt(2), rel=0.2)


def test_parts_are_found_by_name_and_others_keep_the_priors_own() -> None:
    lesson = learn([family((0.8, 0.5), seed) for seed in range(3)])
    parts = Parts(("new", "others"), np.ones((1, 2)), np.array([0.3, 1.0]), np.array([0.7, 1.0]))
    mean, deviation = lesson.of(parts)
    assert mean == pytest.approx([0.3, 0.5], abs=0.05)
    assert deviation[0] == 0.7


def test_nobody_teaches_nothing_and_strangers_do_not_mix() -> None:
    with pytest.raises(InputError, match="no family"):
        learn([])
    with pytest.raises(InputError, match="own, others"):
        learn([family((1, 1), 0), (Parts.whole(np.ones(2)), np.ones(2))])


def test_lessons_are_plain_data() -> None:
    lessons = {"ttft": learn([family((0.8, 0.5), seed) for seed in range(3)])}
    assert from_data(json.loads(json.dumps(to_data(lessons)))) == lessons


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [1.0]}, "for each name"),
        ({"mean": [1.0, -1.0]}, "0 or more"),
        ({"mean": [1.0, float("nan")]}, "finite"),
        ({"deviation": [1.0, 0.0]}, "positive"),
        ({"noise": "loud"}, "not a lesson"),
        ({"names": None}, "not a lesson"),
    ],
)
def test_foreign_lessons_are_refused(change: dict[str, Any], message: str) -> None:
    data = {**asdict(Lesson.none(family((1, 1), 0)[0])), **change}
    with pytest.raises(InputError, match=message):
        from_data({"ttft": data})


@pytest.mark.parametrize("data", [[], {"ttft": 3}, "lessons"])
def test_what_is_no_lesson_at_all_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="a lesson by metric"):
        from_data(data)


def test_the_shipped_lessons_are_of_the_parts_of_the_closed_loop(prior: ClosedLoopPrior) -> None:
    lessons = shipped_lessons()
    assert {metric: lesson.names for metric, lesson in lessons.items()} == {
        metric: parts.names for metric, parts in prior([]).items()
    }
    assert min(lesson.families for lesson in lessons.values()) >= 15
