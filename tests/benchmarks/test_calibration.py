"""What a handful of measurements does for a composed prior: run with ``pytest -s`` and this file's path.

Real closed-loop runs of three engines (``silicon_sample.csv`` of PyPI ``aiconfigurator-core``) against the pack
``trtllm-composed``. A system is calibrated with lessons from other systems alone and judged on rows that it was not
calibrated on. What this cannot show: the *form* of the parts (that a burst or a late slot exists) was found by looking
at the residuals of these very runs, and so was the number of points from which parts are told apart; no choice was made
by the runs of SGLang.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration import (
    ClosedLoad,
    ClosedLoopPrior,
    Curve,
    Family,
    Lesson,
    Parts,
    choose,
    error_curve,
    learn,
)
from qplan.models.calibration.calibrated import correction
from qplan.models.calibration.curve import COUNTS
from qplan.models.calibration.teach import composed_prior, families
from qplan.models.steptimes import Floats
from qplan.models.validation import compare, fetch, ratios, read_runs

pytestmark = pytest.mark.model_figures

DRAWS = 5


@pytest.fixture(scope="module")
def sample() -> str:
    try:
        return fetch()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def prior() -> ClosedLoopPrior:
    return composed_prior()


@pytest.fixture(scope="module")
def known(sample: str, prior: ClosedLoopPrior) -> list[Family[ClosedLoad]]:
    return families(read_runs(sample), prior)


@pytest.fixture(scope="module")
def curve(prior: ClosedLoopPrior, known: list[Family[ClosedLoad]]) -> Curve:
    return error_curve(prior, known, draws=DRAWS)


def test_the_prior_errs_as_the_packs_card_says(
    sample: str, prior: ClosedLoopPrior, known: list[Family[ClosedLoad]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The prior is what ``python -m qplan.models.validation`` judges, but for requests that wait for KV-cache room."""
    comparisons = compare(read_runs(sample))
    lines = ["| metric | median | mean | of the prior of calibration |", "| --- | --: | --: | --: |"]
    waiting = np.concatenate([prior(f.rows)["ttft"].seconds[:, -1] > 0 for f in known])
    for metric in ("tpot", "ttft"):
        card = np.abs(1 / ratios(comparisons, metric) - 1)
        ours = [np.abs(prior(family.rows)[metric].total / family.measured[metric] - 1) for family in known]
        errors = np.concatenate(ours)
        lines.append(f"| {metric} | {np.median(card):.1%} | {card.mean():.1%} | {np.median(errors):.1%} |")
        assert np.isin(errors[~waiting].round(9), card.round(9)).all()
    show(capsys, f"The pack as it ships ({waiting.sum()} of {len(waiting)} runs wait for KV-cache room)", lines)


def test_a_system_at_one_tensor_parallelism(curve: Curve, capsys: pytest.CaptureFixture[str]) -> None:
    show(capsys, "A family is one GPU, model, quantization, engine and TP", table(curve))
    assert curve.errors("tpot", 5).median < 0.08
    assert curve.errors("ttft", 5).median < 0.15


def test_a_system_at_all_tensor_parallelisms_together(
    sample: str, prior: ClosedLoopPrior, known: list[Family[ClosedLoad]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = families(read_runs(sample), prior, by_tp=False)
    curve = error_curve(prior, whole, draws=DRAWS, teachers=known)
    show(capsys, "A family is one GPU, model, quantization and engine, TP 1 to 8 together", table(curve))
    assert curve.errors("tpot", 5).median < 0.08
    assert curve.errors("ttft", 5).median < 0.15


def test_where_five_points_do_and_do_not_suffice(
    known: list[Family[ClosedLoad]], curve: Curve, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["| system | rows | TPOT 0 -> 5 points | TTFT 0 -> 5 points |", "| --- | --: | --: | --: |"]
    for system in sorted({family.system for family in known}):
        names = [
            family.name for family in known if family.system == system and family.name in curve.calibrated["tpot"][5]
        ]
        cells = [
            " -> ".join(f"{np.median(np.concatenate([curve.calibrated[m][n][f] for f in names])):.1%}" for n in (0, 5))
            for m in ("tpot", "ttft")
        ]
        rows = sum(len(curve.uncorrected["tpot"][name]) for name in names)
        lines.append(f"| {system} | {rows} | {' | '.join(cells)} |")
    show(capsys, "Median error by system, families of one TP with more than 5 rows", lines)
    improved = [np.median(errors) < 0.1 for errors in curve.calibrated["tpot"][5].values()]
    assert np.mean(improved) > 0.8


def test_parts_against_a_factor_and_a_gaussian_process(
    prior: ClosedLoopPrior, known: list[Family[ClosedLoad]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["| metric | points | one factor | Gaussian process | parts | parts + process | chosen by other systems |"]
    lines.append("| --- | --: | --: | --: | --: | --: | --: |")
    parts = [prior(family.rows) for family in known]
    medians: dict[tuple[str, int], Mapping[str, float]] = {}
    for metric in ("tpot", "ttft"):
        its_parts = [each[metric] for each in parts]
        for count in COUNTS[1:]:
            errors = rivals(known, its_parts, metric, count)
            medians[metric, count] = {name: median(by_family) for name, by_family in errors.items()}
            medians[metric, count] = {**medians[metric, count], "chosen": median(nested(known, errors))}
            cells = [f"{value:.1%}" for value in medians[metric, count].values()]
            lines.append(f"| {metric} | {count} | {' | '.join(cells)} |")
    show(capsys, "Median error of ways to correct on the same points, families of one TP", lines)
    assert medians["ttft", 5]["parts"] < min(medians["ttft", 5][name] for name in ("factor", "process"))


def test_another_engines_measurements_as_the_prior(
    known: list[Family[ClosedLoad]], capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM's runs of Llama-3.1-70B on the H200 correct to TensorRT-LLM's: the same loads, nothing composed."""
    by_name = {family.name: family for family in known}
    rival = {one.name: one.name.replace("trtllm", "vllm") for one in known if "trtllm" in one.name}
    pairs = [(by_name[name], by_name[other]) for name, other in rival.items() if other in by_name]
    lines = ["| metric | as it is | 1 point | 3 points | 5 points |", "| --- | --: | --: | --: | --: |"]
    for metric in ("tpot", "ttft"):
        errors: dict[int, list[Floats]] = {count: [] for count in (0, 1, 3, 5)}
        for real, other in pairs:
            at = {row.coordinates: seconds for row, seconds in zip(other.rows, other.measured[metric], strict=True)}
            index = np.array([n for n, row in enumerate(real.rows) if row.coordinates in at])
            parts = Parts.whole(np.array([at[real.rows[n].coordinates] for n in index]))
            for count in errors:
                for seed in range(DRAWS if count else 1):
                    chosen = choose(real.coordinates[index], count, seed)
                    corrected = correction(parts.take(chosen), real.measured[metric][index][chosen])
                    unseen = np.setdiff1d(np.arange(len(index)), chosen)
                    predicted = corrected.apply(parts.take(unseen)).total
                    errors[count].append(np.abs(predicted / real.measured[metric][index][unseen] - 1))
        cells = [f"{np.median(np.concatenate(each)):.1%}" for each in errors.values()]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
        # One factor cannot mend TTFT, of which the engines differ in parts: its figures are printed, not claimed.
        assert metric == "ttft" or np.median(np.concatenate(errors[3])) < np.median(np.concatenate(errors[0]))
    show(capsys, "vLLM's measurements as the prior of TensorRT-LLM (one factor: no parts are known)", lines)


def test_an_engine_and_a_format_that_nobody_looked_at(
    sample: str, prior: ClosedLoopPrior, known: list[Family[ClosedLoad]], capsys: pytest.CaptureFixture[str]
) -> None:
    """SGLang with block-scaled FP8, for which the tables of per-tensor FP8 stand."""
    runs = [run for run in read_runs(sample, {"fp8_block": "W8A8-FP"}) if run.engine == "sglang"]
    curve = error_curve(prior, families(runs, prior), draws=DRAWS, teachers=known)
    show(capsys, "SGLang, Llama-3.1-8B block FP8 on the H200: no run of it shaped the parts", table(curve))
    assert curve.errors("tpot", 5).median < 0.08
    assert curve.errors("ttft", 5).median < curve.errors("ttft", 0).median < curve.errors("ttft", None).median


def table(curve: Curve) -> list[str]:
    lines = [
        "| metric | points | median | p90 | mean | leave-one-out said | rows | families |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for metric in ("tpot", "ttft"):
        for count in (None, *COUNTS):
            one = curve.errors(metric, count)
            said = f"{np.median(np.concatenate(list(curve.left_out[metric][count].values()))):.1%}" if count else ""
            lines.append(
                f"| {metric} | {'prior' if count is None else count} | {one.median:.1%} | {one.p90:.1%} "
                f"| {one.mean:.1%} | {said} | {one.rows} | {one.families} |"
            )
    return lines


def rivals(
    known: Sequence[Family[ClosedLoad]], parts: Sequence[Parts], metric: str, count: int
) -> dict[str, dict[str, Floats]]:
    """Return the errors of each way to correct, by family."""
    errors: dict[str, dict[str, Floats]] = {name: {} for name in ("factor", "process", "parts", "both")}
    lessons: dict[str, Lesson] = {}
    for family, its_parts in zip(known, parts, strict=True):
        measured = family.measured[metric]
        if count >= len(measured):
            continue
        if family.system not in lessons:
            others = [(p, f.measured[metric]) for f, p in zip(known, parts, strict=True) if f.system != family.system]
            lessons[family.system] = learn(others)
        lesson = lessons[family.system]
        trials: dict[str, list[Floats]] = {name: [] for name in errors}
        for seed in range(DRAWS):
            chosen = choose(family.coordinates, count, seed)
            taught = Parts.whole(its_parts.seconds @ lesson.of(its_parts)[0])
            by_parts = correction(its_parts.take(chosen), measured[chosen], lesson).apply(its_parts).total
            factor = correction(taught.take(chosen), measured[chosen]).apply(taught).total
            near, far = family.coordinates[chosen], family.coordinates
            predictions = {
                "factor": factor,
                "process": taught.total * process(near, measured[chosen] / taught.total[chosen], far, 0.5, 0.3),
                "parts": by_parts,
                "both": by_parts * process(near, measured[chosen] / by_parts[chosen], far, 0.05, 0.15),
            }
            unseen = np.setdiff1d(np.arange(len(measured)), chosen)
            for name, predicted in predictions.items():
                trials[name].append(np.abs(predicted[unseen] / measured[unseen] - 1))
        for name, each in trials.items():
            errors[name][family.name] = np.concatenate(each)
    return errors


def process(near: Floats, ratios: Floats, far: Floats, offset: float, bend: float) -> Floats:
    """Correct by a Gaussian process on log ratios over octaves: an offset, slopes and bends of 1.6 octaves' length."""

    def kernel(a: Floats, b: Floats) -> Floats:
        a, b = (a - near.mean(axis=0)) / 2, (b - near.mean(axis=0)) / 2
        squares = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        smooth: Floats = offset**2 + (offset * 0.4) ** 2 * (a @ b.T) + bend**2 * np.exp(-squares / 2 / 0.8**2)
        return smooth

    noisy = kernel(near, near) + 0.05**2 * np.eye(len(near))
    corrected: Floats = np.exp(kernel(far, near) @ np.linalg.solve(noisy, np.log(ratios)))
    return corrected


def nested(known: Sequence[Family[ClosedLoad]], errors: Mapping[str, Mapping[str, Floats]]) -> dict[str, Floats]:
    """Take for each system the way that has the lowest median on the other systems."""
    system = {family.name: family.system for family in known}
    taken = {}
    for name in errors["parts"]:
        others = [other for other in errors["parts"] if system[other] != system[name]]
        best = min(errors, key=lambda way: median({other: errors[way][other] for other in others}))
        taken[name] = errors[best][name]
    return taken


def median(by_family: Mapping[str, Floats]) -> float:
    return float(np.median(np.concatenate(list(by_family.values()))))


def show(capsys: pytest.CaptureFixture[str], title: str, lines: Sequence[str]) -> None:
    with capsys.disabled():
        print(f"\n{title}\n\n" + "\n".join(lines))  # noqa: T201
