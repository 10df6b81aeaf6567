import numpy as np
import pytest

from qplan.report.calibration_plot import draw_calibration
from qplan.report.measured_axes import Drawn

HELD = {
    "a new load": {"TPOT": {0.9: 0.88, 0.5: 0.52}, "TTFT": {0.5: 0.6, 0.9: 0.95}},
    "a new configuration": {"TTFT": {0.9: 0.86}},
}


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_calibration(HELD, "llm-pilot")


def test_a_panel_for_each_question_and_a_line_for_each_series(drawn: Drawn) -> None:
    first, second = drawn.figure.axes
    assert [at.get_title() for at in (first, second)] == list(HELD)
    lines = {str(line.get_label()): line for line in first.get_lines()}
    assert np.asarray(lines["TPOT"].get_xdata()).tolist() == [0.5, 0.9]
    assert np.asarray(lines["TPOT"].get_ydata()).tolist() == [0.52, 0.88]
    assert [str(line.get_label()) for line in second.get_lines()] == ["as promised", "TTFT"]
    assert drawn.png.startswith(b"\x89PNG")


def test_a_series_looks_the_same_in_every_panel(drawn: Drawn) -> None:
    first, second = (
        {str(line.get_label()): line.get_color() for line in at.get_lines()}["TTFT"] for at in drawn.figure.axes
    )
    assert first == second


def test_the_same_figures_give_the_same_picture(drawn: Drawn) -> None:
    assert draw_calibration(HELD, "llm-pilot").png == drawn.png
