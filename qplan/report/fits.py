"""What was fitted to profiles: its errors and intervals on what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.models.fitted import Fitted
from qplan.models.heldout import COVERAGE
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.models.fittedloads import FittedLoads
    from qplan.models.fitting import HeldOut, Report
    from qplan.models.heldout import HeldOutLoads


def print_report(report: Report, *, as_json: bool) -> None:
    """Print the errors of all that was fitted, each on what was left out of its fit."""
    if as_json:
        print_json(_document(report))
        return
    fitted = report.fitted
    if isinstance(fitted.steps, Fitted):
        _print_steps(fitted.steps, report.steps)
    if fitted.loads is not None:
        _print_loads(fitted.loads, report.loads)
    if report.note is not None:
        console().print(f"\n[yellow]warning[/yellow]  {report.note}", highlight=False)
    if fitted.steps is not None and fitted.loads is not None:
        console().print("\nstep times answer for deployments that have them, measured loads for others")


def draw_report(report: Report, path: Path) -> None:
    """Draw how many held-out truths the intervals held, against how many they promised: PNG.

    Raises
    ------
    InputError
        Nothing with intervals was measured under load, the file is no PNG or cannot be written, or Matplotlib is not
        installed.
    """
    from qplan.report.calibration_plot import draw_calibration

    if report.fitted.loads is None:
        raise InputError("--plot: draws the intervals of what was measured under load; there are no such rows")
    panels: dict[str, dict[str, dict[float, float]]] = {}
    for one in report.loads:
        if one.coverage:
            panels.setdefault(one.what, {})[_name(one.metric)] = dict(one.coverage)
    drawn = draw_calibration(panels, report.fitted.source)
    try:
        path.write_bytes(drawn.png)
    except OSError as error:
        raise InputError(f"--plot: {path} cannot be written: {error.strerror}") from None


def check_plot(path: Path) -> None:
    """Raise :class:`InputError` unless `path` can be drawn; asked before a long fit."""
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs Matplotlib: pip install 'qplan[plots]'")
    if path.suffix.casefold() != ".png":
        raise InputError(f"--plot: {path} is of no kind that can be drawn; expected .png")


def _document(report: Report) -> dict[str, Any]:
    fitted = report.fitted
    document: dict[str, Any] = {"schema_version": 1, "profiles": fitted.source, "evidence": fitted.evidence}
    if isinstance(fitted.steps, Fitted):
        errors = fitted.steps.latency_error
        document["step_times_left_out"] = [asdict(one) for one in report.steps]
        document["latency_measured_over_predicted"] = {name: asdict(one) for name, one in errors.items()}
    if fitted.loads is not None:
        document["load_axis"] = fitted.loads.encoder.axis
        document["configurations"] = len(fitted.loads.configurations)
        document["surrogates"] = {
            metric: {"measured_configurations": known, "others": unseen}
            for metric, (known, unseen) in fitted.loads.chosen.items()
        }
        document["not_fitted"] = dict(fitted.loads.missing)
        document["loads_left_out"] = [asdict(one) for one in report.loads]
    document["note"] = report.note
    return document


def _print_steps(fitted: Fitted, held_out: Sequence[HeldOut]) -> None:
    """Print the errors of step times, and what is known of latencies."""
    out = console()
    out.print(f"step times of {fitted.source} ({fitted.evidence}), each predicted by a fit that had not seen it\n")
    print_table(
        ("left out", "points", "median error", "90 % below", "true / predicted, 90 %, by what it fell back on"),
        [
            (
                one.what,
                one.points,
                f"{one.median_error:.1%}",
                f"{one.p90_error:.1%}",
                "; ".join(f"{level} {ratio.lower:.2f} to {ratio.upper:.2f}" for level, ratio in one.by_level.items()),
            )
            for one in held_out
        ],
    )
    if not fitted.latency_error:
        out.print(f"\nnobody has measured how far latencies from {fitted.source} are from real serving")
    for name, ratio in fitted.latency_error.items():
        out.print(
            f"\n{name.upper()} measured in real serving was {ratio.lower:.2f} to {ratio.upper:.2f} of that predicted "
            "from the profiles, in 90 % of cases",
            end="",
        )
    out.print()


def _print_loads(fitted: FittedLoads, held_out: Sequence[HeldOutLoads]) -> None:
    """Print the errors and coverages of each metric over load, what answers for it, and what has no data."""
    out = console()
    out.print(
        f"{len(fitted.configurations)} configurations of {fitted.source} ({fitted.evidence}) over {fitted.encoder.axis}"
        "; each row predicted by what was chosen, fitted and calibrated without it\n"
    )
    print_table(
        ("metric", "left out", "rows", "median error", "90 % below", f"in {COVERAGE:.0%} intervals", "intervals"),
        [
            (
                _name(one.metric),
                one.what,
                one.points,
                f"{one.median_error:.1%}",
                f"{one.p90_error:.1%}",
                f"{one.coverage[COVERAGE]:.0%}" if COVERAGE in one.coverage else "",
                _intervals(one),
            )
            for one in held_out
        ],
    )
    out.print()
    for metric, (known, unseen) in fitted.chosen.items():
        others = "" if unseen == known else f"; of others by {unseen}"
        out.print(f"{_name(metric)}: loads of measured configurations by {known}{others}")
    for metric, why in fitted.missing.items():
        out.print(f"{_name(metric)}: none, {why}", markup=False)


def _intervals(one: HeldOutLoads) -> str:
    """Say which rows had no interval, and which had one that was called a guess."""
    said = []
    if one.bounded < 1:
        said.append(f"{1 - one.bounded:.0%} without")
    if one.guessed > 0:
        said.append(f"{one.guessed:.0%} called a guess")
    return ", ".join(said)


def _name(metric: str) -> str:
    latency, _, rest = metric.removesuffix("_s").partition("_")
    return f"{latency.upper()} {rest}" if latency in ("ttft", "tpot") else metric
