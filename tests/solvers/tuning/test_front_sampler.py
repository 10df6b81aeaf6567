"""The sampler in studies: few measurements, none twice, other workers, failures, predictions right and wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.trial import TrialState

from qplan.core.errors import InputError
from qplan.solvers.tuning.axes import Axis, losses
from qplan.solvers.tuning.candidates import Candidates
from qplan.solvers.tuning.hypervolume import hypervolume
from qplan.solvers.tuning.pruner import FrontPruner
from qplan.solvers.tuning.sampler import Exhausted, FrontSampler
from qplan.solvers.tuning.stopping import StopWhenLittleIsLeft

Floats = NDArray[np.float64]

AXES = (Axis("latency"), Axis("quality_loss", log=False))
GRID = [
    (gpu, bits, tp, batch) for gpu in ("small", "big") for bits in (4, 8, 16) for tp in (1, 2, 4) for batch in (8, 32)
]
_SPEED = {"small": 1.0, "big": 2.2}


def truth() -> Floats:
    """Latency and quality loss of the grid, (36, 2)."""
    latency = [bits / tp**0.8 / _SPEED[gpu] * (1 + batch / 64) for gpu, bits, tp, batch in GRID]
    loss = [{4: 0.3, 8: 0.1, 16: 0.0}[bits] + 0.01 * tp + 0.001 * batch for _, bits, tp, batch in GRID]
    return np.column_stack([latency, loss])


def grid(**more: Any) -> Candidates:
    names = ("gpu", "bits", "tp", "max_batch")
    return Candidates(
        tuple(" ".join(map(str, one)) for one in GRID),
        tuple(dict(zip(names, one, strict=True)) for one in GRID),
        **more,
    )


def study_of(sampler: FrontSampler) -> optuna.Study:
    return optuna.create_study(directions=[axis.direction for axis in sampler.axes], sampler=sampler)


def measure(study: optuna.Study, candidates: Candidates, values: Floats, times: int) -> list[int]:
    """Measure what the study's sampler proposes; return which candidates."""
    found = []
    for _ in range(times):
        trial = study.ask()
        index = candidates.suggest(trial)
        study.tell(trial, list(values[index]))
        found.append(index)
    return found


def add_measured(study: optuna.Study, candidates: Candidates, values: Floats, index: int) -> None:
    """Add a candidate's measurement to a study."""
    study.add_trial(
        optuna.trial.create_trial(
            params=dict(candidates.parameters[index]),
            distributions=candidates.distributions,
            values=list(values[index]),
        )
    )


def share(values: Floats, found: list[int]) -> float:
    """Return the hypervolume of what was found over that of all."""
    points = losses(AXES, values)
    reference = points.max(axis=0) + 0.1
    return hypervolume(points[found], reference) / hypervolume(points, reference)


def test_it_finds_the_front_with_a_third_of_the_measurements() -> None:
    candidates, values = grid(), truth()
    shares = [
        share(values, measure(study_of(FrontSampler(candidates, AXES, seed=seed)), candidates, values, 12))
        for seed in range(2)
    ]
    assert min(shares) > 0.97


def test_a_study_ends_when_all_is_measured_and_nothing_was_measured_twice() -> None:
    candidates = grid()
    sampler = FrontSampler(candidates, AXES, seed=0, threshold=0.0)
    study = study_of(sampler)
    found = measure(study, candidates, truth(), len(candidates))
    assert sorted(found) == list(range(len(candidates)))
    with pytest.raises(Exhausted, match="36 candidates 36 are taken"):
        candidates.suggest(study.ask())


def test_good_predictions_lead_to_the_front_and_shuffled_ones_are_dropped() -> None:
    values = truth()
    rng = np.random.default_rng(3)
    off = values * rng.uniform(0.9, 1.1, values.shape) * 1.3
    told = grid(prior_mean=off)
    found = measure(study_of(FrontSampler(told, AXES, seed=0)), told, values, 6)
    assert share(values, found) > 0.95
    wrong = grid(prior_mean=rng.permutation(off))
    sampler = FrontSampler(wrong, AXES, seed=0)
    study = study_of(sampler)
    found = measure(study, wrong, values, 14)
    assert share(values, found) > 0.95
    assert sampler.beliefs(study).surrogates[0].weights[-1] < 0.1  # the hypothesis that trusts predictions


def test_running_trials_are_not_proposed_again_and_their_findings_are_fantasised() -> None:
    candidates = grid()
    study = study_of(FrontSampler(candidates, AXES, seed=0))
    measure(study, candidates, truth(), 6)
    running = [study.ask() for _ in range(5)]
    assert len({candidates.suggest(trial) for trial in running}) == 5


def test_workers_that_choose_at_the_same_moment_hold_different_candidates() -> None:
    candidates = grid()
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="shared", directions=["minimize", "minimize"])
    chosen: list[int] = []
    at_once = threading.Barrier(4)

    def work() -> None:
        study = optuna.load_study(study_name="shared", storage=storage, sampler=FrontSampler(candidates, AXES, seed=0))
        for _ in range(4):
            at_once.wait()
            chosen.append(candidates.suggest(study.ask()))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(chosen) == 16
    assert len(set(chosen)) == 16


def test_the_study_alone_carries_what_was_found() -> None:
    candidates, values = grid(), truth()
    first = study_of(FrontSampler(candidates, AXES, seed=0))
    found = measure(first, candidates, values, 8)
    again = study_of(FrontSampler(candidates, AXES, seed=0))
    again.add_trials(first.get_trials())
    assert set(measure(again, candidates, values, 4)).isdisjoint(found)


def test_what_the_engine_refuses_is_avoided_and_a_dead_worker_frees_its_candidate() -> None:
    candidates = grid()
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    refused = study.ask()
    index = candidates.suggest(refused)
    refused.set_user_attr("infeasible", "no kernel")
    study.tell(refused, state=TrialState.FAIL)
    died = study.ask()
    free = candidates.suggest(died)
    study.tell(died, state=TrialState.FAIL)
    beliefs = sampler.beliefs(study)
    assert list(np.flatnonzero(beliefs.evidence.taken)) == [index]
    assert free != index
    runs = beliefs.runs
    assert runs[index] == runs.min() < runs.max()


def test_a_constraint_keeps_the_search_where_it_is_met() -> None:
    candidates, values = grid(), truth()
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    found = []
    for _ in range(11):
        trial = study.ask()
        found.append(GRID[candidates.suggest(trial)][2])
        trial.set_constraint("gpus", found[-1] - 2.5)  # at most two GPUs
        study.tell(trial, list(values[sampler.beliefs(study).evidence.running.argmax()]))
    assert 4 in found[:5]  # nothing is known of the constraint yet
    assert 4 not in found[6:]
    assert all(trial.params["tp"] <= 2 for trial in study.best_trials)
    few, many = ([tp == wanted for _, _, tp, _ in GRID] for wanted in (1, 4))
    feasible = sampler.beliefs(study).feasible
    assert feasible[few].min() > 0.9 > 0.1 > feasible[many].max()


def test_a_dear_candidate_is_put_off() -> None:
    candidates, values = grid(), truth()
    costs = np.array([50.0 if gpu == "big" else 1.0 for gpu, *_ in GRID])

    def dear(cost: Floats | None) -> int:
        given = grid(cost=cost)
        found = measure(study_of(FrontSampler(given, AXES, seed=0)), given, values, 10)
        return sum(GRID[index][0] == "big" for index in found[5:])

    assert dear(costs) < dear(None)
    assert len(candidates) == len(costs)


def test_a_group_measures_its_shared_objective_once() -> None:
    values = truth()
    values[:, 1] = [{4: 0.3, 8: 0.1, 16: 0.02}[bits] for _, bits, _, _ in GRID]
    candidates = grid(groups=(None, [f"{bits} bits" for _, bits, _, _ in GRID]), group_cost=np.array([0.0, 5.0]))
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    seen = {GRID[index][1] for index in measure(study, candidates, values, 6)}
    belief = sampler.beliefs(study).axes[1]
    for index, (_, bits, _, _) in enumerate(GRID):
        assert (belief.stds[:, index] == 0).all() == (bits in seen)
        if bits in seen:
            assert belief.mean[index] == pytest.approx(values[index, 1])


def test_known_objectives_need_no_surrogate() -> None:
    values = truth()
    known = np.column_stack([np.full(len(GRID), np.nan), values[:, 1]])
    candidates = grid(known=known)
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    measure(study, candidates, values, 6)
    assert sampler.beliefs(study).surrogates[1].processes == ()
    assert sampler.beliefs(study).axes[1].mean == pytest.approx(values[:, 1])


def test_optimize_stops_when_little_is_left_and_the_outlook_holds_the_rest() -> None:
    candidates, values = grid(), truth()
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)

    def objective(trial: optuna.Trial) -> list[float]:
        return list(values[candidates.suggest(trial)])

    study.optimize(objective, n_trials=36, callbacks=[StopWhenLittleIsLeft(sampler, share=0.01)])
    found = [candidates.index(trial.params) for trial in study.trials]
    outlook = sampler.outlook(study)
    assert len(found) < 30
    assert outlook.done(0.01)
    assert outlook.remaining + len(outlook.skipped) + len(found) == len(candidates)
    assert all(one.probability < 0.01 for one in outlook.skipped)
    assert outlook.left <= outlook.left_upper
    points = losses(AXES, values)
    reference = losses(AXES, outlook.reference)
    measured = hypervolume(points[[index for index in found if index is not None]], reference)
    assert outlook.hypervolume == pytest.approx(measured)
    assert (hypervolume(points, reference) - measured) / measured < 0.05


def test_draws_hold_what_is_measured_and_deviate_by_more_than_the_surrogates_say() -> None:
    candidates, values = grid(), truth()
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    measured = measure(study, candidates, values, 8)
    beliefs, every = sampler.beliefs(study), np.arange(len(GRID))
    drawn = beliefs.draws(every, 600, np.random.default_rng(0))
    assert drawn.shape == (600, len(GRID), 2)
    assert drawn[:, measured] == pytest.approx(np.broadcast_to(losses(AXES, values[measured]), (600, 8, 2)))
    rest = np.setdiff1d(every, measured)
    plain = np.stack([one.draw(rest, 600, np.random.default_rng(0)) for one in beliefs.surrogates], axis=-1)
    wider = drawn[:, rest].std(axis=0) / plain.std(axis=0)
    assert np.median(wider) == pytest.approx(np.exp(0.4**2), rel=0.1)


def test_the_pruner_abandons_what_its_load_points_rule_out() -> None:
    candidates, values = grid(), truth()
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    measure(study, candidates, values, 8)
    trial = study.ask()
    index = candidates.suggest(trial)
    pruner = FrontPruner(sampler, study)
    assert pruner.rules_out(index, {}) is None
    assert pruner.rules_out(index, {"latency": 0.5 * values[:, 0].min()}) is None
    reason = pruner.rules_out(index, {"latency": 2 * values[:, 0].max()})
    assert reason is not None
    assert "on the front with a probability of 0.0%" in reason
    with pytest.raises(InputError, match=r"unknown objective 'latencies'; expected one of .* did you mean 'latency'"):
        pruner.probability(index, {"latencies": 1.0})
    trial.set_user_attr("measured", {"latency": 99.0})
    study.tell(trial, state=TrialState.PRUNED)
    evidence = sampler.beliefs(study).evidence
    assert evidence.taken[index]
    assert not evidence.complete[index]
    assert evidence.losses[index, 0] == pytest.approx(np.log(99.0))


def test_the_front_that_rules_out_is_the_measured_one_however_good_predictions_look() -> None:
    """Were the front that of what is believed, predictions that flatter would rule out everything."""
    values = truth()
    flattering = grid(prior_mean=values * [1e-3, 1.0], prior_std=np.full(values.shape, 1e-3))
    sampler = FrontSampler(flattering, AXES, seed=0)
    study = study_of(sampler)
    worst = int(values[:, 0].argmax())
    add_measured(study, flattering, values, worst)
    fastest = int(values[:, 0].argmin())
    pruner = FrontPruner(sampler, study)
    assert pruner.rules_out(fastest, {"latency": values[fastest, 0], "quality_loss": values[fastest, 1]}) is None
    # Beyond every reference of a hypervolume on one axis, and still better than all that is measured on the other.
    assert pruner.rules_out(fastest, {"quality_loss": 10 * values[:, 1].max()}) is None
    assert sampler.beliefs(study).chances()[fastest] > 0.9


def test_the_pruner_drops_what_is_at_best_a_little_worse_than_something_measured() -> None:
    candidates, values = grid(), truth()
    sampler = FrontSampler(candidates, AXES, seed=0)
    study = study_of(sampler)
    measured = measure(study, candidates, values, 6)
    pruner = FrontPruner(sampler, study)
    other = next(index for index in range(len(candidates)) if index not in measured)
    for latency, loss in values[measured]:
        assert pruner.rules_out(other, {"latency": 1.01 * latency, "quality_loss": loss + 0.001}) is not None


def test_what_lies_beyond_the_reference_of_the_volume_can_be_on_the_front_unless_the_axis_says() -> None:
    values = truth()

    def chance(axes: tuple[Axis, ...]) -> float:
        known = np.column_stack([values[:, 0], np.full(len(values), np.nan)])
        known[0, 0] = 1e-3  # the best latency by far, at a loss of which little is known
        candidates = grid(known=known, prior_mean=values, prior_std=np.full(values.shape, 2.0))
        sampler = FrontSampler(candidates, axes, seed=0)
        study = study_of(sampler)
        add_measured(study, candidates, values, len(values) - 1)
        return float(sampler.beliefs(study).chances()[0])

    assert chance(AXES) > 0.999
    assert chance((AXES[0], Axis("quality_loss", log=False, reference=0.1))) < 0.9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prior_mean": np.ones((36, 3))}, r"prior_mean has shape \(36, 3\); expected \(36, 2\)"),
        ({"prior_mean": np.zeros((36, 2))}, "objective latency: 0 is not above 0"),
        ({"known": np.ones((3, 2))}, "known has 3 rows; expected 36"),
        ({"cost": np.zeros(36)}, "a measuring cost is not above 0"),
        ({"groups": (None,)}, "groups has 1 entries; expected 2"),
    ],
)
def test_wrong_arrays_are_one_clear_line(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrontSampler(grid(**more), AXES)


def test_a_study_with_other_directions_is_refused() -> None:
    sampler = FrontSampler(grid(), AXES)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    with pytest.raises(InputError, match="directions are minimize, maximize; expected latency: minimize"):
        grid().suggest(study.ask())


def _without_parameters() -> Candidates:
    return Candidates((), ())


def _twice() -> Candidates:
    return Candidates(("a", "b"), ({"tp": 1}, {"tp": 1}))


def _same_name() -> Candidates:
    return Candidates(("a", "a"), ({"tp": 1}, {"tp": 2}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_without_parameters, "no candidate to choose from"),
        (_twice, r"two have the same parameters \{'tp': 1\}"),
        (_same_name, "two are named a"),
    ],
)
def test_candidates_are_some_and_distinct(make: Callable[[], Candidates], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_conditional_parameters_are_suggested_where_they_exist() -> None:
    candidates = Candidates(
        ("plain", "chunked 512", "chunked 2048"),
        ({"chunked": False}, {"chunked": True, "tokens": 512}, {"chunked": True, "tokens": 2048}),
    )
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=FrontSampler(candidates, AXES, seed=0))
    found = []
    for _ in range(3):
        trial = study.ask()
        found.append(candidates.suggest(trial))
        assert trial.params == candidates.parameters[found[-1]]
        study.tell(trial, [1.0 + found[-1], 1.0 - 0.1 * found[-1]])
    assert sorted(found) == [0, 1, 2]


def test_an_enqueued_configuration_is_measured_first_and_a_partly_fixed_one_completed() -> None:
    candidates = grid()
    study = study_of(FrontSampler(candidates, AXES, seed=0))
    study.enqueue_trial(dict(candidates.parameters[7]))
    assert candidates.suggest(study.ask()) == 7
    study.enqueue_trial({"gpu": "small"})
    assert GRID[candidates.suggest(study.ask())][0] == "small"
