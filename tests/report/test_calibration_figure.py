from __future__ import annotations

import numpy as np
import pytest

from qplan.models.calibration import Curve
from qplan.report.calibration import draw_curve
from qplan.report.measured_axes import Drawn

COUNTS = (0, 1, 5)


@pytest.fixture(scope="module")
def curve() -> Curve:
    """Two families, of which one has too few rows for 5 points."""
    rng = np.random.default_rng(1)
    calibrated = {
        count: {name: rng.uniform(0.5, 1.5, 30) * size for name in ("a", "b")[: 1 if count == 5 else 2]}
        for count, size in zip(COUNTS, (0.3, 0.2, 0.05), strict=True)
    }
    uncorrected = {"a": np.full(30, 0.6), "b": np.full(4, 0.6)}
    metrics = ("ttft", "tpot")
    return Curve(dict.fromkeys(metrics, uncorrected), dict.fromkeys(metrics, calibrated), {})


@pytest.fixture(scope="module")
def drawn(curve: Curve) -> Drawn:
    return draw_curve(curve)


def test_a_panel_for_each_metric_with_the_points_below(drawn: Drawn) -> None:
    assert [at.get_title() for at in drawn.figure.axes] == ["time to first token", "time per output token"]
    assert [label.get_text() for label in drawn.figure.axes[0].get_xticklabels()] == ["0", "1", "5"]
    assert drawn.png.startswith(b"\x89PNG")


def test_what_is_drawn_is_what_the_curve_says(curve: Curve, drawn: Drawn) -> None:
    lines = {str(line.get_label()): line for line in drawn.figure.axes[1].get_lines()}
    summaries = [curve.errors("tpot", count) for count in COUNTS]
    assert np.asarray(lines["median of rows"].get_ydata()).tolist() == [one.median for one in summaries]
    assert np.asarray(lines["90th percentile of rows"].get_ydata()).tolist() == [one.p90 for one in summaries]
    assert set(np.asarray(lines["median, uncorrected"].get_ydata()).tolist()) == {0.6}
    greys = [np.asarray(line.get_xdata()).tolist() for name, line in lines.items() if name.startswith("_")]
    assert sorted(greys) == [[0, 1], [0, 1, 2]]
