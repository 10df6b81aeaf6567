"""The simulator against a real engine: run with ``pytest tests/benchmarks/test_simulated_measured.py -s``.

The shipped pack ``llamacpp-cpu``: llama.cpp, one model, sixteen quantizations, two lengths, open-loop runs of nine
seconds at 25 to 100 % of saturation. Iteration times of each quantization are fitted to its runs below 30 % of
saturation, and all runs from 30 to 80 % are judged, none of which the fit saw. The campaign's arrivals follow from its
seeds, so a run is replayed with its own arrivals; with arrivals of other seeds it shows how much nine seconds say.

Two forms of iteration times are fitted: every token in an iteration costs the same beside a fixed part (what one
expects of a batch), and nothing is gained from batching. The second was chosen after looking at the gaps between the
tokens of four quantizations with a 16-bit KV cache (FP16, Q8_0, Q4_0, Q2_K); the last line is of all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from qplan.measure.load.arrivals import Arrivals
from qplan.models.iterations import IterationGrid
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.simulation import simulate
from qplan.models.simulator.traffic import Traffic
from qplan.models.steps.additive import fit_additive
from qplan.models.steptimes import Floats
from qplan.profiles.packs import read_pack

SEQUENCES, CONTEXT, DURATION_S, WARM_UP_S = 8, 512, 9.0, 2.0  # of the campaign, llamacpp-cpu.yaml
FITTED, JUDGED = 0.3, 0.8  # shares of saturation: fitted up to the first, judged from there up to the second
LOOKED_AT = ("FP16", "Q8_0", "Q4_0", "Q2_K")
OTHER_SEEDS = range(100, 130)
FIGURES = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s")


@dataclass(frozen=True)
class Run:
    quantization: str
    load: float
    seed: int
    rate_qps: float
    input_tokens: int
    output_tokens: int
    measured: dict[str, float]


@cache
def runs() -> tuple[Run, ...]:
    rows = read_pack("llamacpp-cpu").table.to_pylist()
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row["phase"] == "saturation" and row["status"] == "ok":
            found.setdefault((row["quantization"], row["input_tokens"]), []).append(row["saturation_qps"])
    return tuple(
        Run(
            row["quantization"],
            row["offered_qps"] / float(np.mean(found[row["quantization"], row["input_tokens"]])),
            row["repeat"],
            row["offered_qps"],
            int(row["input_tokens"]),
            int(row["output_tokens"]),
            {name: value for name, value in row.items() if isinstance(value, float)},
        )
        for row in rows
        if row["phase"] == "serving" and row["status"] == "ok" and row["tpot_mean_s"] is not None
    )


def replay(run: Run, times: IterationGrid, seed: int) -> tuple[Floats, Floats]:
    """Return TTFT and TPOT of the requests that the measurement counts: due after the warm-up."""
    arrivals_s = Arrivals.parse("poisson").schedule(run.rate_qps, duration_s=DURATION_S, seed=seed)
    whole = np.ones(len(arrivals_s), np.int64)
    replica = Replica("llama.cpp", times, SEQUENCES * CONTEXT, CONTEXT, Batching(2048, SEQUENCES, 1))
    traffic = Traffic(arrivals_s, whole * run.input_tokens, whole * run.output_tokens)
    served = simulate(traffic, [replica])
    counted = arrivals_s >= arrivals_s[0] + WARM_UP_S if len(arrivals_s) else np.zeros(0, bool)
    return served.ttft_s[counted], served.tpot_s[counted]


def figures(run: Run, times: IterationGrid, seed: int) -> Floats:
    ttft_s, tpot_s = replay(run, times, seed)
    if not len(ttft_s):
        return np.full(len(FIGURES), np.nan)
    return np.array([np.percentile(ttft_s, 50), np.percentile(ttft_s, 90), np.percentile(tpot_s, 50)])


def means(run: Run, times: IterationGrid) -> tuple[float, float]:
    ttft_s, tpot_s = replay(run, times, run.seed)
    return (float(ttft_s.mean()), float(tpot_s.mean())) if len(ttft_s) else (np.nan, np.nan)


def gains_nothing(fitted: list[Run]) -> IterationGrid:
    def predict(times: IterationGrid) -> tuple[Floats, Floats]:
        ttft_s, tpot_s = np.array([means(run, times) for run in fitted]).T
        return ttft_s, tpot_s

    return fit_additive(*_columns(fitted), predict, SEQUENCES).grid(SEQUENCES)


def every_token_alike(fitted: list[Run]) -> IterationGrid:
    from scipy.optimize import least_squares

    input_tokens, ttft_s, tpot_s = _columns(fitted)

    def grid(logs: Floats) -> IterationGrid:
        fixed_s, token_s = np.exp(logs)
        tokens, batches = np.array([0.0, 1.0, 2048.0]), np.array([0.0, 1.0, SEQUENCES])
        together = tokens[:, None] + batches
        time = np.where(together > 0, fixed_s + token_s * together, 0.0)
        return IterationGrid(tokens, batches, np.array([1.0, 2.0]), np.repeat(time[:, :, None], 2, axis=2))

    def errors(logs: Floats) -> Floats:
        predicted = np.array([means(run, grid(logs)) for run in fitted])
        return np.nan_to_num(np.log(predicted / np.stack([ttft_s, tpot_s], axis=1))).ravel()

    start = np.log([0.6 * tpot_s.min(), 0.9 * (ttft_s / input_tokens).min()])
    return grid(least_squares(errors, start, loss="soft_l1", f_scale=0.1, diff_step=[1e-3] * 2).x)


def _columns(fitted: list[Run]) -> tuple[Floats, Floats, Floats]:
    names = ("input_tokens", "ttft_mean_s", "tpot_mean_s")
    input_tokens, ttft_s, tpot_s = (np.array([run.measured[name] for run in fitted]) for name in names)
    return input_tokens, ttft_s, tpot_s


def judged(form: Callable[[list[Run]], IterationGrid]) -> tuple[list[Run], list[IterationGrid], Floats]:
    """Return the judged runs, their iteration times, and simulated over measured, (N, 3), with the runs' arrivals."""
    chosen, grids = [], []
    for name in dict.fromkeys(run.quantization for run in runs()):
        mine = [run for run in runs() if run.quantization == name]
        times = form([run for run in mine if run.load <= FITTED])
        some = [run for run in mine if FITTED < run.load <= JUDGED]
        chosen += some
        grids += [times] * len(some)
    ratios = np.array(
        [figures(run, times, run.seed) / _measured(run) for run, times in zip(chosen, grids, strict=True)]
    )
    return chosen, grids, ratios


def _measured(run: Run) -> Floats:
    return np.array([run.measured[name] for name in FIGURES])


def test_simulated_against_measured(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "\n| iteration times | runs | median error: TTFT p50 | TTFT p90 | TPOT p50 | median simulated/measured |",
        "| --- | --: | --: | --: | --: | --: |",
    ]

    def add(label: str, ratios: Floats) -> Floats:
        error = np.nanmedian(np.abs(ratios - 1), axis=0)
        bias = " / ".join(f"{value:.2f}" for value in np.nanmedian(ratios, axis=0))
        lines.append(f"| {label} | {len(ratios)} | " + " | ".join(f"{value:.1%}" for value in error) + f" | {bias} |")
        return error

    alike = add("every token alike", judged(every_token_alike)[2])
    chosen, grids, ratios = judged(gains_nothing)
    nothing = add("no gain from batching", ratios)
    load = np.array([run.load for run in chosen])
    for low, high in ((FITTED, 0.55), (0.55, JUDGED)):
        add(f"- at {low:.0%} to {high:.0%} of saturation", ratios[(load > low) & (load <= high)])
    unseen = np.array([run.quantization not in LOOKED_AT for run in chosen])
    add("- quantizations not looked at", ratios[unseen])
    others = np.array(
        [[figures(run, times, seed) for seed in OTHER_SEEDS] for run, times in zip(chosen, grids, strict=True)]
    )
    mean = np.nanmean(others, axis=1) / np.array([_measured(run) for run in chosen])
    add("- against the mean of 30 other seeds", mean)
    spread = np.nanmedian(np.nanstd(others, axis=1) / np.nanmean(others, axis=1), axis=0)
    least, most = (
        np.array([run.measured.get(f"ttft_p90_{end}_s", np.nan) for run in chosen]) for end in ("low", "high")
    )
    simulated = ratios[:, 1] * np.array([run.measured["ttft_p90_s"] for run in chosen])
    known = np.isfinite(least) & np.isfinite(most)
    inside = ((simulated >= least) & (simulated <= most))[known].mean()
    lines += [
        "",
        "standard deviation of nine seconds over seeds: " + ", ".join(f"{value:.1%}" for value in spread),
        f"simulated TTFT p90 inside the measured 95 % interval: {inside:.0%} of {known.sum()} runs",
    ]
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    assert len(chosen) > 100
    assert nothing[2] < alike[2]  # the cause of the largest miss: small batches cost what their sequences cost alone
