"""The loop of one worker, measuring what is made up, and how it takes turns with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from qplan.core.errors import InputError
from qplan.report.tuning import print_study, value_of
from qplan.solvers.tuning.events import Began, Ended, Event, Stopped
from qplan.solvers.tuning.measuring import Abandoned, CannotRun, Halted, Hooks, Measured
from qplan.solvers.tuning.setup import open_job, sampler_of
from qplan.solvers.tuning.space import Configuration, enumerate_space, memory_groups_of
from qplan.solvers.tuning.study import CONFIGURATION, INFEASIBLE
from qplan.solvers.tuning.summary import summarize_study
from qplan.solvers.tuning.tunefile import parse_tuning
from qplan.solvers.tuning.turns import BEAT, RETRY_OF, WORKER, Vigil, await_turn, holder_of
from qplan.solvers.tuning.worker import Job, work

PLAN = """\
name: made
space:
  model: llama-2-13b
  quantization: [BF16, W8A16, W4A16]
  gpu: h100
  tp: [1, 2]
  engine: vllm
objectives: [throughput, p90:ttft]
workload: chat
load: 1qps
stop_below: never
budget: 6 measurements
"""

ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": 0.0}

Make = Callable[..., Job]


def rows_of(one: Configuration) -> Measured:
    bits = {"BF16": 16, "W8A16": 8, "W4A16": 4}[one.target.quantization]
    serving = {
        "phase": "serving",
        "status": "ok",
        "output_tokens_per_s": one.gpus / bits,
        "ttft_p90_s": bits + one.gpus,
    }
    return Measured((serving,), seconds=36.0)


@pytest.fixture
def storage() -> optuna.storages.BaseStorage:
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def make(storage: optuna.storages.BaseStorage) -> Make:
    def made(plan: str = PLAN, measure: Any = None, source: str = "made up") -> Job:
        tuning = parse_tuning(plan, "t.yaml")
        enumerated = enumerate_space(tuning.space, lambda _: None)
        sampler = sampler_of(tuning, enumerated, threshold=0.0)  # every configuration is to be measured
        how = measure or (lambda one, known, hooks: rows_of(one))
        return open_job(tuning, storage, enumerated, how, source, sampler)

    return made


def run(job: Job, stop_after: int | None = None) -> tuple[Stopped, list[Event]]:
    events: list[Event] = []

    def stopping() -> bool:
        return stop_after is not None and sum(isinstance(event, Ended) for event in events) >= stop_after

    return work(job, emit=events.append, stopping=stopping), events


def held(job: Job, state: TrialState) -> list[str]:
    return [t.user_attrs[CONFIGURATION] for t in job.study.get_trials(deepcopy=False) if t.state == state]


def test_every_configuration_is_measured_once_and_the_study_is_an_ordinary_one(make: Make) -> None:
    job = make()
    stopped, _ = run(job)
    assert "every configuration" in stopped.reason or "budget" in stopped.reason
    assert sorted(held(job, TrialState.COMPLETE)) == sorted(str(one) for one in job.enumerated.configurations)
    best = {trial.user_attrs[CONFIGURATION] for trial in job.study.best_trials}
    assert best == {"W4A16 TP1", "W4A16 TP2"}
    assert best == {one.configuration for one in summarize_study(job.study, job.tuning).front}
    assert job.study.metric_names == ["throughput", "p90:ttft"]


BOUNDED = """\
name: bounded
models: [{name: smollm2-135m, context: 64, max_sequences: 2}]
space: {quantization: [Q8_0, Q4_0], gpu: cpu, engine: llamacpp}
objectives: [saturation]
workload: isl=8,osl=2
slo: [p90:ttft=1s]
stop_below: never
budget: 2
"""


def test_a_rate_that_no_search_broke_is_a_bound_and_said_to_be_one(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        found = {"phase": "saturation", "status": "ok", "saturation_qps": 7.0, "saturation_low_qps": 6.0}
        if one.target.quantization == "Q4_0":
            found |= {"saturation_qps": None, "reason": "the SLOs hold even at 6 req/s"}
        return Measured((found,), 1.0)

    job = make(BOUNDED, measure)
    _, events = run(job)
    ended = {event.configuration: event for event in events if isinstance(event, Ended)}
    assert {name: (event.how, event.values["saturation"]) for name, event in ended.items()} == {
        "Q8_0": ("measured", 7.0),
        "Q4_0": ("measured", 6.0),
    }
    assert ended["Q4_0"].reason == "saturation is at least 6 req/s: the SLOs hold even at 6 req/s"
    summary = summarize_study(job.study, job.tuning, importance=False)
    assert {one.configuration: one.bounds for one in summary.found} == {"Q8_0": (), "Q4_0": ("saturation",)}
    print_study(summary, as_json=False)
    said = capsys.readouterr().out
    assert "a bound, which counts as the value: Q4_0: saturation is at least 6 req/s" in said
    bounded = next(one for one in summary.found if one.bounds)
    assert value_of(bounded, "saturation", summary) == "at least 6 req/s"


def test_memory_on_a_cpu_is_shared_by_configurations_of_the_same_weights_and_cache() -> None:
    plan = BOUNDED.replace("engine: llamacpp", "engine: llamacpp, settings: {threads: [1, 2]}, max_sequences: [2, 4]")
    found = enumerate_space(parse_tuning(plan, "t").space, lambda _: None).configurations
    assert len(found) == 8
    assert len(set(memory_groups_of(found))) == 4  # two formats, two numbers of sequences
    on_gpus = enumerate_space(parse_tuning(PLAN, "t").space, lambda _: None).configurations
    assert len(set(memory_groups_of(on_gpus))) == len(on_gpus)


def test_the_budget_is_kept_over_several_runs(make: Make) -> None:
    job = make(PLAN.replace("6 measurements", "4 measurements"))
    assert run(job, stop_after=1)[0].interrupted
    stopped, _ = run(make(PLAN.replace("6 measurements", "4 measurements")))
    assert stopped.reason == "the budget of 4 measurements is spent"
    assert len(set(held(job, TrialState.COMPLETE))) == 4
    assert len(job.study.trials) == 4


def test_a_budget_of_gpu_hours_counts_the_gpus(make: Make) -> None:
    job = make(PLAN.replace("6 measurements", "0.025 GPU-hours").replace("tp: [1, 2]", "tp: [2]"))
    stopped, _ = run(job)
    assert "0.025 GPU-hours is spent" in stopped.reason
    assert len(held(job, TrialState.COMPLETE)) == 2  # each takes 2 GPUs for 36 s: 0.02 GPU-hours


def test_what_cannot_run_is_said_and_not_tried_again(make: Make) -> None:
    def measure(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        if one.gpus == 2:
            raise CannotRun("no such GPUs")
        return rows_of(one)

    job = make(measure=measure)
    run(job)
    failed = [t for t in job.study.get_trials(deepcopy=False) if t.state == TrialState.FAIL]
    assert sorted(t.user_attrs[CONFIGURATION] for t in failed) == ["BF16 TP2", "W4A16 TP2", "W8A16 TP2"]
    assert {t.user_attrs[INFEASIBLE] for t in failed} == {"no such GPUs"}
    assert len(held(job, TrialState.COMPLETE)) == 3


def test_what_lacks_an_objective_cannot_run(make: Make) -> None:
    def measure(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        return Measured(tuple({**row, "ttft_p90_s": None} for row in rows_of(one).rows), 1.0)

    _, events = run(make(PLAN.replace("6 measurements", "1 measurement"), measure))
    assert [(e.how, e.reason) for e in events if isinstance(e, Ended)] == [("cannot run", "no value of p90:ttft")]


def test_what_is_abandoned_keeps_what_it_measured(make: Make) -> None:
    def measure(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        if one.gpus == 1:
            raise Abandoned("too slow", {"p90:ttft": 9.0}, {"throughput": 0.5})
        return rows_of(one)

    job = make(measure=measure)
    run(job)
    found = {one.configuration: one for one in summarize_study(job.study, job.tuning, importance=False).found}
    assert found["BF16 TP1"].how == "abandoned"
    assert found["BF16 TP1"].values == {"p90:ttft": 9.0}
    assert found["BF16 TP1"].at_best == {"throughput": 0.5}
    assert found["BF16 TP1"].reason == "too slow"


def test_a_measurement_that_is_stopped_is_made_another_time(make: Make) -> None:
    begun: list[str] = []

    def halts_first(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        begun.append(str(one))
        if len(begun) == 1:
            raise Halted
        return rows_of(one)

    job = make(measure=halts_first)
    run(job)
    assert len(held(job, TrialState.COMPLETE)) == 6
    assert held(job, TrialState.FAIL) == begun[:1]


def test_limits_are_constraints_of_the_study(make: Make) -> None:
    job = make(PLAN + "limits: {throughput: 0.3}\n")
    run(job)
    front = summarize_study(job.study, job.tuning, importance=False).front
    assert [one.configuration for one in front] == ["W4A16 TP2"]


def test_quality_is_measured_once_for_all_that_share_it(make: Make) -> None:
    asked: dict[str, list[Mapping[str, float]]] = {}

    def measure(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        asked.setdefault(one.target.quantization, []).append(known)
        quality = {"phase": "quality", "status": "ok", "task": "choice:sample", "metric": "accuracy", "score": 0.5}
        return Measured((*rows_of(one).rows, *(() if known else (quality,))), 1.0)

    job = make(PLAN.replace("p90:ttft]", "choice:sample]"), measure)
    run(job)
    assert asked == {q: [{}, {"choice:sample": 0.5}] for q in ("BF16", "W8A16", "W4A16")}
    assert len(held(job, TrialState.COMPLETE)) == 6


def test_another_question_under_the_same_name_is_refused(make: Make) -> None:
    make()
    with pytest.raises(InputError, match="study 'made' in the storage asks for other parameters"):
        make(PLAN.replace("[1, 2]", "[1, 2, 4]"))
    with pytest.raises(InputError, match="asks for other objectives"):
        make(PLAN.replace("p90:ttft", "p50:ttft"))
    with pytest.raises(InputError, match="reads made up, not another"):
        make(source="another")
    make(PLAN.replace("6 measurements", "9 measurements"))  # a greater budget is the same question


class TestTurns:
    """Trials of others, put into the study by hand; a worker on another host is known by its silence alone."""

    def other(self, job: Job, configuration: str | None = None, **attributes: Any) -> optuna.Trial:
        trial = job.study.ask()
        trial.set_user_attr(WORKER, ELSEWHERE)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        if configuration is not None:
            one = next(c for c in job.enumerated.configurations if str(c) == configuration)
            distributions = job.sampler.candidates.distributions
            trial.storage.set_trial_system_attr(trial._trial_id, "fixed_params", dict(one.parameters))
            for name, value in one.parameters.items():
                kind = distributions[name]
                trial.storage.set_trial_param(trial._trial_id, name, kind.to_internal_repr(value), kind)
            trial.set_user_attr(CONFIGURATION, configuration)
        return trial

    def test_the_silent_are_retired_and_their_configuration_is_queued_once(self, make: Make) -> None:
        job, now = make(), [0.0]
        lost = self.other(job, "BF16 TP2")
        alive = self.other(job, "BF16 TP1")
        watchers = [Vigil(job.study, grace_s=60, clock=lambda: now[0]) for _ in range(2)]
        for beat in range(8):
            now[0] = beat * 10.0
            alive.set_user_attr(BEAT, beat)
            for watcher in watchers:
                watcher.look()
        trials = job.study.get_trials(deepcopy=False)
        assert [t.state for t in trials] == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
        assert trials[2].user_attrs[RETRY_OF] == lost.number
        assert trials[2].params == trials[0].params
        job.study.tell(alive, state=TrialState.FAIL)
        run(job)
        assert held(job, TrialState.COMPLETE).count("BF16 TP2") == 1

    def test_a_configuration_whose_workers_die_thrice_is_left_alone(self, make: Make) -> None:
        job, now = make(), [0.0]
        watcher = Vigil(job.study, grace_s=60, clock=lambda: now[0])
        self.other(job, "BF16 TP2")
        for _ in range(3):
            watcher.look()
            now[0] += 61
            watcher.look()
            if any(t.state == TrialState.WAITING for t in job.study.trials):
                job.study.ask().set_user_attr(WORKER, ELSEWHERE)
        trials = job.study.get_trials(deepcopy=False)
        assert [t.state for t in trials] == [TrialState.FAIL] * 3
        assert "died 3 times" in trials[-1].user_attrs[INFEASIBLE]

    def test_whoever_uses_optuna_alone_is_never_retired(self, make: Make) -> None:
        job, now = make(), [0.0]
        job.study.ask()
        watcher = Vigil(job.study, grace_s=60, clock=lambda: now[0])
        watcher.look()
        now[0] = 1000.0
        watcher.look()
        assert [t.state for t in job.study.trials] == [TrialState.RUNNING]

    def test_a_trial_waits_until_every_earlier_one_has_chosen(self, make: Make) -> None:
        job = make()
        first, second = self.other(job), self.other(job)
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                first.set_user_attr(CONFIGURATION, "BF16 TP1")

        vigil = Vigil(job.study)
        await_turn(vigil, first, stopping=lambda: False, sleep=sleep)
        assert waited == []
        await_turn(vigil, second, stopping=lambda: False, sleep=sleep)
        assert len(waited) == 3

    def test_what_another_holds_is_not_measured_again(self, make: Make) -> None:
        job = make()
        queued = self.other(job, "BF16 TP1")
        job.study.tell(queued, state=TrialState.FAIL)
        frozen = job.study.trials[0]
        again = {CONFIGURATION: "BF16 TP1", RETRY_OF: 0}
        for _ in range(2):  # queued twice, as nobody should
            job.study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=frozen.params,
                    distributions=frozen.distributions,
                    user_attrs=again,
                    system_attrs={"fixed_params": frozen.params},
                )
            )
        _, events = run(job)
        assert held(job, TrialState.COMPLETE).count("BF16 TP1") == 1
        assert [e.how for e in events if isinstance(e, Ended) and e.configuration == "BF16 TP1"] == [
            "measured",
            "yielded",
        ]
        assert [e.again for e in events if isinstance(e, Began) and e.configuration == "BF16 TP1"] == [True]
        assert holder_of(job.study, "BF16 TP1", but=-1) is not None
