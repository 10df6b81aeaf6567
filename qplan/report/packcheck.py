"""Predictions held against a pack, as tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.models.packcheck import QUANTITIES, SATURATION
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.models.packcheck import Compared, PackCheck

JSON_SCHEMA_VERSION = 1
_HEADER = (
    *("quantity", "n", "median error", "p90 error", "measured / predicted", "in the 90 % interval", "extrapolated"),
)
_HALF = 0.5
_MOST = 8  # notes, and reasons, on the terminal; JSON has all


def print_check(name: str, check: PackCheck, *, as_json: bool) -> None:
    """Print errors by quantization and by load, saturation rates, and what could not be predicted."""
    if as_json:
        print_json({"schema_version": JSON_SCHEMA_VERSION, "pack": name, **_document(check)})
        return
    left = f"; {check.left_out} rows of {name} were left out of it" if check.left_out else ""
    console().print(f"{name}, predicted from {check.source}{left}", style="bold", markup=False)
    for note in check.notes[:_MOST]:
        console().print(f"· {note}", style="dim", markup=False)
    if len(check.notes) > _MOST:
        console().print(f"· and {len(check.notes) - _MOST} more, in --json", style="dim", markup=False)
    loads = [one for one in check.compared if one.quantity != SATURATION]
    _print_by("quantization", loads, lambda one: one.quantization)
    _print_by("load", loads, _half)
    rates = [one for one in check.compared if one.quantity == SATURATION]
    if rates:
        console().print("\nSaturation rate at the SLOs of the loads, requests/s", style="bold")
        print_table(("system", "quantization", "mix", "measured between", "predicted", "off by"), map(_rate, rates))
    if check.missing:
        console().print(f"\n{len(check.missing)} not predicted", style="bold")
        reasons: dict[tuple[str, str], list[str]] = {}
        for one in check.missing:
            reasons.setdefault((one.quantization, one.reason), []).append(f"{one.mix} {one.what}")
        rows = [(kind, len(what), what[0], reason) for (kind, reason), what in reasons.items()]
        print_table(("quantization", "times", "the first", "reason"), rows[:_MOST])


def summary(compared: Sequence[Compared]) -> dict[str, float | None]:
    """Return errors of one quantity: of |predicted / measured - 1|, and where the truth lies."""
    ratio = np.array([one.ratio for one in compared])
    error = np.abs(1 / ratio - 1)
    covered = [one.covered for one in compared if one.covered is not None]
    return {
        "n": len(compared),
        "median_error": float(np.median(error)),
        "p90_error": float(np.quantile(error, 0.9)),
        "median_ratio": float(np.median(ratio)),
        "covered": float(np.mean(covered)) if covered else None,
        "extrapolated": float(np.mean([one.extrapolates for one in compared])),
    }


def _print_by(what: str, compared: Sequence[Compared], key: Callable[[Compared], str]) -> None:
    rows = []
    for name in sorted({key(one) for one in compared}):
        for quantity in QUANTITIES:
            some = [one for one in compared if key(one) == name and one.quantity == quantity]
            if some:
                found = summary(some)
                shares = (_share(found[one]) for one in ("covered", "extrapolated"))
                errors = (_share(found[one]) for one in ("median_error", "p90_error"))
                rows.append((name, quantity, len(some), *errors, f"{found['median_ratio']:.2f}", *shares))
    if rows:
        console().print(f"\nErrors by {what}", style="bold")
        print_table((what, *_HEADER), rows)


def _half(one: Compared) -> str:
    return "up to half of the largest rate" if one.load <= _HALF else "upwards of that"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _rate(one: Compared) -> tuple[str, ...]:
    between = f"{one.low:.3g} and {one.high:.3g}" if math.isfinite(one.high) else f"{one.low:.3g} or more"
    off = "within" if one.ratio == 1 else f"{1 / one.ratio - 1:+.0%}"
    return one.system, one.quantization, one.mix, between, f"{one.predicted:.3g}", off


def _document(check: PackCheck) -> dict[str, Any]:
    compared = [{**asdict(one), "ratio": one.ratio, "covered": one.covered} for one in check.compared]
    quantities = {
        name: summary(some) for name in QUANTITIES if (some := [one for one in check.compared if one.quantity == name])
    }
    return {**asdict(check), "compared": compared, "errors": quantities}
