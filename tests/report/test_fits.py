import json
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.models.fitted import load_fitted
from qplan.models.fitting import Report
from qplan.models.surrogates import Surrogates
from qplan.report.fits import check_plot, draw_report, print_report
from tests.models.measured_rows import report

pytest.importorskip("sklearn")


@pytest.mark.slow
def test_the_table_says_what_was_left_out_what_answers_and_what_has_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(replace(report()[0], note="a note"), as_json=False)
    shown = capsys.readouterr().out
    for word in ("TPOT p50", "load, in between", "the largest", "lengths", "model", "in 90% intervals", "without"):
        assert word in shown
    assert "12 configurations of ours (measured) over offered_qps" in shown
    assert "power_w: none, no energy counter" in shown
    assert "warning  a note" in shown


def test_json_has_the_same_and_no_step_times(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report()[0], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["load_axis"], found["configurations"], found["note"]) == ("offered_qps", 12, None)
    assert found["surrogates"]["tpot_p50_s"]["others"] == "pooled-curves"
    assert found["not_fitted"]["power_w"] == "no energy counter"
    first = next(one for one in found["loads_left_out"] if one["metric"] == "tpot_p50_s")
    assert 0 < first["coverage"]["0.9"] <= 1
    assert "step_times_left_out" not in found


def test_with_both_kinds_it_says_which_answers(capsys: pytest.CaptureFixture[str]) -> None:
    both = replace(report()[0], fitted=Surrogates(load_fitted(None), report()[0].fitted.loads))
    print_report(both, as_json=False)
    assert "step times answer for deployments that have them, measured loads for others" in capsys.readouterr().out


def test_the_calibration_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_report(report()[0], tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="cannot be written"):
        draw_report(report()[0], tmp_path / "nowhere" / "calibration.png")
    with pytest.raises(InputError, match="there are no such rows"):
        draw_report(Report(Surrogates(load_fitted(None), None), (), ()), tmp_path / "steps.png")
    with pytest.raises(InputError, match=r"expected \.png"):
        check_plot(tmp_path / "calibration.gif")
