"""A study as text, JSON, figure and page: bounds are told from values everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from qplan.core.errors import InputError
from qplan.report.tuning import print_study, value_of
from qplan.report.tuning_page import render_study, write_study
from qplan.report.tuning_plots import draw_study
from qplan.solvers.tuning.summary import Found, Summary

UNITS = {"saturation": "req/s", "perplexity:english": "", "memory": "bytes"}
DIRECTIONS = {"saturation": "maximize", "perplexity:english": "minimize", "memory": "minimize"}
BOUNDED = ("saturation",)
MEMORY = {"memory": 2.0**28}


@pytest.fixture
def summary() -> Summary:
    """A study with an exact point, one that is bounded from below, one that was abandoned, and one that cannot run."""
    reason = "saturation is at least 9 req/s: the SLOs hold even at 9 req/s"
    found = (
        Found(0, "FP16", {}, "front", {"saturation": 3.0, "perplexity:english": 38.0} | MEMORY, 0.1, None),
        Found(1, "Q4_0", {}, "front", {"saturation": 9.0, "perplexity:english": 45.0} | MEMORY, 0.1, reason, BOUNDED),
        Found(2, "Q2_K", {}, "abandoned", {"perplexity:english": 60.0} | MEMORY, 0.1, "slow", (), {"saturation": 2.0}),
        Found(3, "Q5_K <b>", {}, "cannot run", {}, None, "the engine died"),
    )
    skipped, refused = (("Q3_K", 0.004),), (("Q6_K", "not there"),)
    return Summary("made", "table", UNITS, DIRECTIONS, found, (0.5, 1.0), {}, None, skipped, refused)


def arrows(panel: Axes) -> list[Annotation]:
    return [text for text in panel.texts if isinstance(text, Annotation) and text.arrow_patch is not None]


def numbers(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts if text.get_text()]


def test_a_value_says_on_which_side_of_it_the_truth_is(summary: Summary) -> None:
    said = [value_of(one, "saturation", summary) for one in summary.found]
    assert said == ["3 req/s", "at least 9 req/s", "at most 2 req/s", "-"]
    cheap = replace(summary, directions=DIRECTIONS | {"saturation": "minimize"})
    assert [value_of(one, "saturation", cheap) for one in summary.found[1:3]] == ["at most 9 req/s", "at least 2 req/s"]


def test_bounds_are_in_the_text_and_in_the_json(summary: Summary, capsys: pytest.CaptureFixture[str]) -> None:
    print_study(summary, as_json=False)
    said = capsys.readouterr().out
    assert "at least 9 req/s" in said
    assert "a bound, which counts as the value: Q4_0: saturation is at least 9 req/s" in said
    assert "abandoned: Q2_K: slow" in said
    print_study(summary, as_json=True)
    found = json.loads(capsys.readouterr().out)["found"]
    assert [(one["bounds"], one["at_best"]) for one in found[1:3]] == [(["saturation"], {}), ([], {"saturation": 2.0})]


def test_bounds_are_drawn_with_an_arrow_to_where_the_value_is(summary: Summary) -> None:
    panel, _, of_memory, *_ = draw_study(summary).figure.axes
    # Saturation is to the right, perplexity upwards.
    ends = {arrow.xy: arrow.xyann for arrow in arrows(panel)}
    assert {at: (end[0] > 0, end[1]) for at, end in ends.items()} == {(9.0, 45.0): (True, 0), (2.0, 60.0): (False, 0)}
    faces = {(line.get_label(), line.get_markerfacecolor()) for line in panel.lines}
    assert ("abandoned", "white") in faces
    assert len({face for label, face in faces if label == "front"}) == 2  # one is exact, the other is not
    assert any("bound" in text.get_text() for text in panel.figure.legends[0].get_texts())
    # Perplexity and memory are known of all that are drawn.
    assert not arrows(of_memory)
    assert not any("bound" in str(line.get_label()) for line in of_memory.lines)


def test_a_study_of_one_objective_is_drawn_over_its_trials(summary: Summary) -> None:
    alone = replace(summary, units={"saturation": "req/s"}, directions={"saturation": "maximize"})
    panel = draw_study(alone).figure.axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("trial", "saturation, req/s (more is better)")
    ends = {arrow.xy: arrow.xyann for arrow in arrows(panel)}
    assert {at: (end[0], end[1] > 0) for at, end in ends.items()} == {(1, 9.0): (0, True), (2, 2.0): (0, False)}


def test_the_front_is_numbered_where_there_is_room(summary: Summary) -> None:
    assert numbers(draw_study(summary).figure.axes[0]) == ["0", "1"]
    crowd = tuple(replace(summary.found[0], trial=number) for number in range(50))
    assert 0 < len(numbers(draw_study(replace(summary, found=crowd)).figure.axes[0])) < 50


def test_the_page_has_what_the_picture_cannot_say(summary: Summary) -> None:
    page = render_study(summary, draw_study(summary))
    for words in ("at least 9 req/s", "at most 2 req/s", "Q5_K &lt;b&gt;", "the engine died", "Q3_K", "not there"):
        assert words in page
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    assert "<script" not in page


def test_a_study_without_a_measurement_is_not_drawn(summary: Summary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is measured yet"):
        write_study(tmp_path / "study.png", replace(summary, found=summary.found[2:]))
    assert list(tmp_path.iterdir()) == []
