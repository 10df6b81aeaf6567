"""The report of a calibration: error before and after, and against the number of points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, StoreError
from qplan.models.calibration.curve import COUNTS
from qplan.models.calibration.systems import LEVELS
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.models.calibrated import Calibrated
    from qplan.models.calibrated_fit import FewPoints
    from qplan.models.calibration.systems import Branch, Fit

_METRICS = ("tpot", "ttft")
_FORMATS = (".png",)


def print_calibration(found: Calibrated, few: FewPoints, *, as_json: bool) -> None:
    """Print each system's error before and after, and what 0, 1, 3, 5, 10 points would have done."""
    if as_json:
        print_json(_document(found, few))
        return
    out = console()
    out.print(f"{found.prior.source}, corrected by the runs in {found.measured_in}\n")
    print_table(
        ("corrected", "metric", "runs", "error before", "after, left out", "90 % of cases: measured / predicted"),
        [row for branch, fit in found.systems.fits.items() if branch for row in _rows(branch, fit)],
    )
    saturated = sum(fit.saturated for branch, fit in found.systems.fits.items() if branch in found.systems.measured)
    if saturated:
        out.print(
            f"[yellow]warning[/yellow]  {saturated} runs are at loads that the prior does not carry: TTFT was not "
            "corrected by those that the correction does not carry either"
        )
    out.print("\nMedian error of each system's other runs, by how many of its runs correct it\n")
    print_table(
        ("metric", "runs", "median", "over designs", "90th percentile", "judged on", "deployments"),
        [row for metric in _METRICS for row in _curve_rows(few, metric)],
    )


def check_curve_plot(path: Path) -> None:
    """Refuse a format that cannot be drawn, before the work; raise :class:`InputError`."""
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"--plot: {path}: expected a name that ends in {', '.join(_FORMATS)}")


def draw_few_points(few: FewPoints, path: Path) -> None:
    """Draw error against the number of points.

    Raises
    ------
    InputError
        matplotlib is not installed, or no deployment has runs that a correction did not see.
    StoreError
        The file cannot be written.
    """
    from qplan.report.calibration import draw_curve

    if not few.curve.calibrated:
        raise InputError("--plot: no deployment has two runs: there is none to judge a correction on")
    try:
        path.write_bytes(draw_curve(few.curve).png)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from None


def _rows(branch: Branch, fit: Fit) -> list[tuple[str, ...]]:
    name = " ".join(filter(None, branch))
    points = {"tpot": fit.correction.tpot.points, "ttft": fit.correction.ttft.points}
    return [
        (
            name if LEVELS[len(branch)] == LEVELS[max(LEVELS)] else f"{name}, any TP",
            metric.upper(),
            str(points[metric]),
            _percent(fit.before.get(metric)),
            _percent(fit.after.get(metric)),
            f"{fit.error[metric].lower:.2f}-{fit.error[metric].upper:.2f}",
        )
        for metric in _METRICS
    ]


def _curve_rows(few: FewPoints, metric: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for count in (None, *COUNTS):
        known = few.curve.uncorrected[metric] if count is None else few.curve.calibrated.get(metric, {}).get(count)
        if not known:
            continue
        one = few.curve.errors(metric, count)
        low, high = (one.median, one.median) if count is None else few.designs[metric][count]
        rows.append(
            (
                metric.upper(),
                "prior" if count is None else str(count),
                _percent(one.median),
                f"{low:.1%}-{high:.1%}" if count else "",
                _percent(one.p90),
                f"{one.rows} runs",
                str(one.families),
            )
        )
    return rows


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"


def _document(found: Calibrated, few: FewPoints) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "profiles": found.prior.source,
        "measured": found.measured_in,
        "corrections": [
            {
                "system": dict(
                    zip(("gpu", "engine", "engine_version", "model", "quantization", "tp"), branch, strict=False)
                ),
                "level": LEVELS[len(branch)],
                "points": {"tpot": fit.correction.tpot.points, "ttft": fit.correction.ttft.points},
                "median_error_before": dict(fit.before),
                "median_error_left_out": dict(fit.after),
                "latency_measured_over_predicted": {
                    metric: {"lower": ratio.lower, "upper": ratio.upper} for metric, ratio in fit.error.items()
                },
                "runs_the_prior_does_not_carry": fit.saturated,
                "loads": fit.loads,
            }
            for branch, fit in found.systems.fits.items()
        ],
        "error_by_points": {
            metric: [
                {
                    "points": count,
                    "median": one.median,
                    "median_over_designs": list(few.designs[metric][count]),
                    "p90": one.p90,
                    "runs": one.rows,
                    "deployments": one.families,
                }
                for count in counts
                for one in (few.curve.errors(metric, count),)
            ]
            for metric, counts in few.curve.calibrated.items()
        },
    }
