"""Volumes and boxes against counting, and what is expected of a measurement against drawing."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.solvers.tuning.acquisition import Belief, escape_probability, expected_gain
from qplan.solvers.tuning.hypervolume import free_boxes, front, hypervolume, nondominated

RNG = np.random.default_rng(1)


def test_by_hand() -> None:
    points = np.array([[1.0, 3.0], [2.0, 1.0], [2.0, 3.0], [5.0, 0.5]])
    reference = np.array([4.0, 4.0])
    assert list(nondominated(points)) == [True, True, False, True]
    assert front(points, reference).tolist() == [[1.0, 3.0], [2.0, 1.0]]
    assert hypervolume(points, reference) == pytest.approx(3 * 1 + 2 * 3 - 2 * 1)
    assert hypervolume(np.empty((0, 2)), reference) == 0


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_boxes_fill_exactly_what_no_point_dominates(axes: int) -> None:
    points = RNG.choice(np.linspace(0, 1, 9), (25, axes))  # ties on every axis
    reference = np.full(axes, 0.9)
    lower, upper = free_boxes(points, reference)
    places = RNG.uniform(-0.2, 1, (4000, axes))
    boxes = ((places[:, None] >= lower) & (places[:, None] < upper)).all(axis=2).sum(axis=1)
    dominated = np.any(np.all(points[None] <= places[:, None], axis=2), axis=1)
    assert (boxes == ((places < reference).all(axis=1) & ~dominated)).all()
    inside = np.prod(upper - np.maximum(lower, 0), axis=1).sum()
    assert hypervolume(points, reference) == pytest.approx(0.9**axes - inside)


@pytest.mark.parametrize("axes", [2, 3])
def test_expected_gain_and_chance_are_those_of_draws(axes: int) -> None:
    points = RNG.random((6, axes))
    reference = np.full(axes, 1.1)
    beliefs = [
        Belief(np.array([0.3, 0.7]), RNG.uniform(0, 0.6, (2, 3)), np.array([[0.1] * 3, [0.3] * 3])) for _ in range(axes)
    ]
    boxes = free_boxes(points, reference)
    gain, chance = expected_gain(beliefs, boxes), escape_probability(beliefs, boxes)
    now = hypervolume(points, reference)
    for candidate in range(3):
        drawn = np.empty((500, axes))
        for m, belief in enumerate(beliefs):
            which = RNG.choice(2, len(drawn), p=belief.weights)
            drawn[:, m] = RNG.normal(belief.means[which, candidate], belief.stds[which, candidate])
        gains = [hypervolume(np.vstack([points, one]), reference) - now for one in drawn]
        assert gain[candidate] == pytest.approx(np.mean(gains), rel=0.25)
        assert chance[candidate] == pytest.approx(np.mean(np.array(gains) > 0), abs=0.08)


def test_a_bound_on_a_loss_lowers_the_chance() -> None:
    boxes = free_boxes(np.array([[0.5, 0.5]]), np.ones(2))
    belief = Belief(np.ones(1), np.full((1, 3), 0.4), np.full((1, 3), 0.1))
    bound = np.array([[-np.inf, -np.inf], [0.6, -np.inf], [5.0, -np.inf]])
    open_ended, bounded, out = escape_probability([belief, belief], boxes, bound)
    assert open_ended > bounded > out == 0
    known = Belief(np.ones(1), np.array([[0.2]]), np.zeros((1, 1)))
    assert expected_gain([known, known], boxes)[0] == pytest.approx(0.3 * 0.3 + 2 * 0.3 * 0.5)


def test_a_doubted_belief_expects_the_same_and_rules_out_less() -> None:
    belief = Belief(np.array([0.3, 0.7]), np.array([[0.0, 0.5], [1.0, 0.5]]), np.array([[0.1, 0.0], [0.2, 0.0]]))
    doubted = belief.doubted(0.4)
    assert doubted.weights.sum() == pytest.approx(1)
    assert doubted.mean == pytest.approx(belief.mean)
    deviation = np.sqrt(belief.weights @ belief.stds**2)[0]
    # The rule of three points is exact for polynomials of degree 5: nearly so for the square of a log-normal factor.
    assert np.sqrt(doubted.weights @ doubted.stds**2)[0] == pytest.approx(deviation * np.exp(0.4**2), rel=0.02)
    far = np.array([-0.6])
    assert doubted.below(far)[0] > 10 * belief.below(far)[0]
    edges = np.array([0.499, 0.501])
    assert doubted.below(edges)[1].tolist() == [0, 1]  # what is known is not doubted
