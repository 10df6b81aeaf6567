"""Measuring configurations on engines: what is measured in which order, what is kept, and when it ends early."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.measure.campaign.block import Job
from qplan.measure.campaign.events import Emit, PointFinished, Result
from qplan.profiles.store import ProfileStore
from qplan.solvers.tuning import engines
from qplan.solvers.tuning.engines import EngineMeasure, Keep, measurable
from qplan.solvers.tuning.measuring import Abandoned, CannotRun, Halted, Hooks
from qplan.solvers.tuning.setup import keep_rows
from qplan.solvers.tuning.space import enumerate_space
from qplan.solvers.tuning.tunefile import Tuning, parse_tuning

PLAN = """\
name: real
models: [{name: smollm2-135m, weights: smollm2, context: 128, max_sequences: 2}]
space: {quantization: [Q8_0, Q4_0], gpu: cpu, engine: llamacpp, settings: {threads: [1, 2]}}
objectives: [saturation, choice:sample, p90:ttft, memory]
workload: isl=8,osl=4
slo: [p90:ttft=2s]
load: 50%
budget: 2
"""
VALUES: dict[str, dict[str, Any]] = {
    "quality": {"phase": "quality", "task": "choice:sample", "metric": "accuracy", "score": 0.5},
    "saturation": {"phase": "saturation", "saturation_qps": 4.0, "workload": "isl=8,osl=4", "slo": "p90:ttft=2s"},
    "load": {"phase": "serving", "ttft_p90_s": 0.3, "bits_per_weight": 8.0, "workload": "isl=8,osl=4"},
}

needs_llamacpp = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
Block = Callable[[Job, Emit, Callable[[], bool]], None]


def hooks(rules_out: Callable[[Mapping[str, float]], str | None] = lambda _: None, stop: bool = False) -> Hooks:
    return Hooks(lambda: stop, lambda _: None, rules_out)


def block(states: Mapping[str, str] | None = None) -> Block:
    """Return what measures a job without an engine, each kind of point ending in a state of its own."""

    def measure_block(job: Job, emit: Emit, stopping: Callable[[], bool]) -> None:
        for point in job.points:
            if stopping():
                return
            state = (states or {}).get(point.kind, "done")
            row = {
                **point.target.columns(),
                "engine_version": "1",
                "repeat": 0,
                "status": "ok" if state == "done" else "failed",
                "provenance": "measured",
                "source": job.source,
                **VALUES[point.kind],
            }
            reason = None if state == "done" else "the engine died"
            emit(PointFinished(point.key, str(point), Result(state, (row,), reason=reason, seconds=5.0)))

    return measure_block


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ProfileStore]:
    with ProfileStore(str(tmp_path / "store.db")) as opened:
        yield opened


def keeping(tuning: Tuning, store: ProfileStore) -> Keep:
    return lambda rows: keep_rows(tuning, store, rows)


def first(tuning: Tuning) -> Any:
    return enumerate_space(tuning.space, lambda _: None).configurations[0]


@needs_llamacpp
def test_cheap_is_measured_before_dear_and_kept(monkeypatch: pytest.MonkeyPatch, store: ProfileStore) -> None:
    jobs: list[Job] = []

    def measure_block(job: Job, emit: Emit, stopping: Callable[[], bool]) -> None:
        jobs.append(job)
        block()(job, emit, stopping)

    monkeypatch.setattr(engines, "measure_block", measure_block)
    tuning = parse_tuning(PLAN, "t")
    one = first(tuning)
    measured = EngineMeasure(tuning, keeping(tuning, store))(one, {}, hooks())
    assert [point.kind for point in jobs[0].points] == ["quality", "saturation", "load"]
    assert jobs[0].points[2].share == 0.5
    assert measured.seconds == 15.0
    values = {each.name: each.value(one, measured.rows) for each in tuning.objectives}
    assert (values["saturation"], values["choice:sample"], values["p90:ttft"]) == (4.0, 0.5, 0.3)
    kept = store.read(("phase", "settings", "source"))
    assert sorted(map(str, kept["phase"].to_pylist())) == ["quality", "saturation", "serving"]
    assert set(kept["settings"].to_pylist()) == {'{"threads": 1}'}
    EngineMeasure(tuning, keeping(tuning, store))(one, {"choice:sample": 0.5}, hooks())
    assert [point.kind for point in jobs[1].points] == ["saturation", "load"]  # quality was shared


@needs_llamacpp
def test_what_is_ruled_out_ends_early(monkeypatch: pytest.MonkeyPatch, store: ProfileStore) -> None:
    monkeypatch.setattr(engines, "measure_block", block())
    tuning = parse_tuning(PLAN, "t")
    with pytest.raises(Abandoned, match="too slow") as caught:
        EngineMeasure(tuning, keeping(tuning, store))(
            first(tuning), {}, hooks(lambda best: "too slow" if "saturation" in best else None)
        )
    assert caught.value.measured == {"saturation": 4.0, "choice:sample": 0.5}
    assert sorted(map(str, store.read(("phase",))["phase"].to_pylist())) == ["quality", "saturation"]


@needs_llamacpp
def test_failures_and_the_users_end_are_told_apart(monkeypatch: pytest.MonkeyPatch, store: ProfileStore) -> None:
    tuning = parse_tuning(PLAN, "t")
    monkeypatch.setattr(engines, "measure_block", block({"load": "failed"}))
    with pytest.raises(CannotRun, match="the engine died") as caught:
        EngineMeasure(tuning, keeping(tuning, store))(first(tuning), {}, hooks())
    assert caught.value.measured["saturation"] == 4.0
    with pytest.raises(Halted):
        EngineMeasure(tuning, keeping(tuning, store))(first(tuning), {}, hooks(stop=True))


@needs_llamacpp
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("weights: smollm2, ", "", "t:3: .*has no weights to load"),
        ("choice:sample", "perplexity:english/kl_divergence", "t:4: .*measured beside the unquantized model"),
        ("gpu: cpu", "gpu: [a100, h100]", "t:3: .*one kind of GPU"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_starts(old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        measurable(parse_tuning(PLAN.replace(old, new), "t"))


@needs_llamacpp
def test_a_rate_that_was_only_bounded_counts_as_what_is_surely_reached(
    monkeypatch: pytest.MonkeyPatch, store: ProfileStore
) -> None:
    search = {**VALUES["saturation"], "saturation_qps": None, "saturation_low_qps": 30.0, "status": "ok"}
    monkeypatch.setitem(VALUES, "saturation", {**search, "reason": "the SLOs hold even at 30 req/s"})
    monkeypatch.setattr(engines, "measure_block", block({"saturation": "failed"}))
    tuning = parse_tuning(PLAN.replace(", p90:ttft, memory]", "]"), "t")
    measured = EngineMeasure(tuning, keeping(tuning, store))(first(tuning), {}, hooks())
    saturation = tuning.objectives[0]
    assert saturation.value(first(tuning), measured.rows) == 30.0
    assert saturation.bound(first(tuning), measured.rows) == (
        "saturation is at least 30 req/s: the SLOs hold even at 30 req/s"
    )
    monkeypatch.setitem(VALUES, "saturation", {**search, "saturation_low_qps": None, "saturation_high_qps": 1.0})
    with pytest.raises(CannotRun, match="saturation is at most 1 req/s"):  # nothing says that it serves at all
        EngineMeasure(tuning, keeping(tuning, store))(first(tuning), {}, hooks())


PAIRED = """\
name: paired
models: [{name: smollm2-135m, weights: smollm2, context: 128, max_sequences: 2}]
space: {quantization: [Q8_0, F16], gpu: cpu, engine: llamacpp, settings: {threads: [1, 2]}}
objectives: ["perplexity:english/kl_divergence", "perplexity:english"]
workload: isl=8,osl=4
budget: 4
"""


@needs_llamacpp
def test_the_unquantized_model_is_judged_once_for_all_that_are_compared_with_it(
    monkeypatch: pytest.MonkeyPatch, store: ProfileStore, tmp_path: Path
) -> None:
    judged: list[tuple[str, bool]] = []

    def measure_block(job: Job, emit: Emit, stopping: Callable[[], bool]) -> None:
        (point,) = job.points
        judged.append((str(job.target), point.task in job.baselines))
        score = {"perplexity": 38.0} | ({"kl_divergence": 0.01} if job.baselines else {})
        columns = {"engine_version": "1", "repeat": 0, "status": "ok", "provenance": "measured", "source": str(point)}
        rows = tuple(
            {**point.target.columns(), **columns, "phase": "quality", "task": point.task, "metric": m, "score": value}
            for m, value in score.items()
        )
        emit(PointFinished(point.key, str(point), Result("done", rows, metrics={"results": "[]"}, seconds=1.0)))

    monkeypatch.setattr(engines, "measure_block", measure_block)
    tuning = parse_tuning(PAIRED, "t")
    by_name = {str(one): one for one in measurable(tuning).configurations}
    measure = EngineMeasure(tuning, keeping(tuning, store), tmp_path)

    def measured(name: str) -> list[float | None]:
        one = by_name[name]
        rows = measure(one, {}, hooks(lambda _: "ruled out" if name == "nothing" else None)).rows
        return [each.value(one, rows) for each in tuning.objectives]

    assert measured("Q8_0 threads=2") == [0.01, 38.0]
    assert measured("Q8_0 threads=1") == [0.01, 38.0]
    assert measured("FP16 threads=1") == [0.0, 38.0]  # nothing strays from itself
    beside = "smollm2-135m FP16 llamacpp threads=2"
    assert judged == [
        (beside, False),
        ("smollm2-135m Q8_0 llamacpp threads=2", True),
        ("smollm2-135m Q8_0 llamacpp threads=1", True),
        ("smollm2-135m FP16 llamacpp threads=1", False),
    ]
    assert len(store.read(("source",))) == 6


@needs_llamacpp
def test_this_machine_says_what_it_cannot_run() -> None:
    tuning = parse_tuning(PLAN.replace("Q4_0]", "W4A16]").replace("threads: [1, 2]", "threads: [1]"), "t")
    found = measurable(tuning)
    assert [str(one) for one in found.configurations] == ["Q8_0"]
    assert "llamacpp serves GGUF types" in found.refused[0].reason or "CPU" in found.refused[0].reason
