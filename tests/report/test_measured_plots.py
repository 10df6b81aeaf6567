from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer

from qplan.profiles.observations import from_rows
from qplan.report.measured_axes import apart, round_numbers, shades
from qplan.report.measured_plots import draw_loads, draw_trends
from qplan.report.measured_summary import Measured, summarize_measured


@pytest.fixture(scope="module")
def measured(campaign_with_energy: pa.Table) -> Measured:
    rows = [
        row
        for row in campaign_with_energy.to_pylist()
        if row["phase"] != "serving" or (row["workload"] == "chat" and row["quantization"].startswith(("FP16", "Q4")))
    ]
    return summarize_measured(from_rows(rows, "made"))


@pytest.fixture(scope="module")
def few(campaign: pa.Table) -> Measured:
    """Two schemes with one KV format and one workload."""
    rows = [
        row
        for row in campaign.to_pylist()
        if row["quantization"] in ("FP16", "Q4_0") and row["workload"] in (None, "chat")
    ]
    return summarize_measured(from_rows(rows, "made"))


@pytest.mark.slow
def test_the_trend_shows_the_medians_with_their_ranges(measured: Measured) -> None:
    trend, tasks = draw_trends(measured)
    assert [at.get_ylabel() for at in trend.figure.axes] == [
        "perplexity",
        "KL divergence from 16 bits (nats)",
        "saturation (req/s)",
        "saturation (req/s)",
    ]
    assert [at.get_ylabel() for at in tasks.figure.axes] == ["top-1 agreement with 16 bits"]
    chat = next(at for at in trend.figure.axes if at.get_title("left").startswith("chat"))
    bars = chat.containers[0]
    assert isinstance(bars, ErrorbarContainer)
    line, _, (ranges,) = bars.lines
    assert line is not None
    wanted = sorted(
        ((s.variant.bits or 0), s.qps) for s in measured.saturations if s.workload == "chat" and s.variant.kv == "KV16"
    )
    assert np.asarray(line.get_xdata()).tolist() == [bits for bits, _ in wanted]
    assert np.asarray(line.get_ydata()).tolist() == [qps.value for _, qps in wanted]
    drawn = [(segment[0][1], segment[1][1]) for segment in ranges.get_segments()]
    assert np.allclose(drawn, [(qps.low, qps.high) for _, qps in wanted])


@pytest.mark.slow
def test_each_system_and_workload_gets_latency_goodput_and_energy(measured: Measured) -> None:
    drawn = draw_loads(measured)
    assert [figure.name.split("-")[0] for figure in drawn] == ["latency", "goodput", "energy"]
    latency = drawn[0].figure
    assert [at.get_ylabel() for at in latency.axes[:2]] == ["TTFT p50 (s)", "TTFT p90 (s)"]
    limits = [np.asarray(line.get_ydata())[0] for at in latency.axes for line in at.lines if line.get_label() == "SLO"]
    assert limits == [0.5, 50.0]
    for figure in drawn:
        (legend,) = figure.figure.legends
        box = legend.get_window_extent()
        assert not any(box.overlaps(at.get_window_extent()) for at in figure.figure.axes), figure.name


def test_an_interval_that_reaches_zero_does_not_cost_the_panel_its_logarithmic_scale(few: Measured) -> None:
    scores = [score for score in few.scores if score.metric == "kl_divergence"]
    reaching = [replace(score, score=replace(score.score, low=-0.01)) for score in scores]
    (trend,) = draw_trends(replace(few, scores=tuple(reaching), saturations=()))
    (panel,) = trend.figure.axes
    assert panel.get_yscale() == "log"
    assert 0 < panel.get_ylim()[0] < min(score.score.value for score in scores if score.score.value > 0)


def test_without_energy_there_is_no_energy_figure(few: Measured) -> None:
    assert [figure.name.split("-")[0] for figure in draw_loads(few)] == ["latency", "goodput"]


def test_one_point_and_names_with_any_signs_can_be_drawn() -> None:
    row: dict[str, Any] = {
        "model": "../../$a_b^c$ <b>模型</b>",
        "quantization": "home$made$",
        "gpu": "CPU",
        "tp": 1,
        "engine": "llamacpp",
        "engine_version": "%s{}",
        "status": "ok",
        "provenance": "measured",
        "source": "test",
        "repeat": 0,
        "phase": "serving",
        "workload": "$w$",
        "offered_qps": 1.0,
        "ttft_p50_s": 0.1,
        "slo": "not an slo",
        "bits_per_weight": 4.5,
    }
    search = {**row, "phase": "saturation", "offered_qps": None, "ttft_p50_s": None, "saturation_qps": 2.0}
    found = summarize_measured(from_rows([row, search], "made"))
    drawn = [*draw_trends(found), *draw_loads(found)]
    assert [figure.name for figure in drawn] == ["trend-a-b-c-b-b", "latency-a-b-c-b-b-llamacpp-w"]
    assert all(figure.png.startswith(b"\x89PNG") for figure in drawn)


def test_the_same_observations_give_the_same_bytes_and_settings_are_left_alone(few: Measured) -> None:
    searches = replace(few, scores=())
    before = dict(rcParams)
    assert draw_trends(searches)[0].png == draw_trends(searches)[0].png
    assert dict(rcParams) == before


def test_shades_get_lighter_so_that_any_eye_can_order_them() -> None:
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, shades(11))]
    assert lightness == sorted(lightness)
    assert min(np.diff(lightness)) > 0.01


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_labels_that_would_touch_are_moved_apart_in_their_order(places: list[float]) -> None:
    moved = apart(places, 0.05)
    assert len(moved) == len(places)
    assert all(gap >= 0.05 - 1e-9 for gap in np.diff(moved))
    assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-9)
    if all(gap >= 0.05 for gap in np.diff(places)):
        assert moved == pytest.approx(places)


@given(low=st.floats(1e-6, 1e6), ratio=st.floats(1.2, 1e6))
def test_an_axis_has_a_handful_ofround_numbers(low: float, ratio: float) -> None:
    ticks = round_numbers(low, low * ratio)
    assert 3 <= len(ticks) <= 12
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert all(len(f"{tick:.6e}".split("e")[0].rstrip("0")) <= 5 for tick in ticks)
