from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from qplan.core.errors import InputError
from qplan.profiles.observations import from_rows
from qplan.report.measured_summary import Measured, Spread, summarize_measured

ROW: dict[str, Any] = {
    "model": "M",
    "quantization": "Q4_0",
    "gpu": "CPU",
    "tp": 1,
    "engine": "llamacpp",
    "engine_version": "1",
    "status": "ok",
    "provenance": "measured",
    "source": "test",
    "repeat": 0,
}


def measured(*rows: dict[str, Any]) -> Measured:
    return summarize_measured(from_rows([{**ROW, **row} for row in rows], "made"))


def searched(low: float, best: float, high: float, **other: Any) -> dict[str, Any]:
    return {
        "phase": "saturation",
        "workload": "chat",
        "slo": "p90:ttft=1s",
        "saturation_qps": best,
        "saturation_low_qps": low,
        "saturation_high_qps": high,
        **other,
    }


def served(**other: Any) -> dict[str, Any]:
    return {"phase": "serving", "workload": "chat", "offered_qps": 1.0, "ttft_p50_s": 0.1, **other}


def test_repeats_become_a_median_and_the_range_of_their_intervals() -> None:
    rows = [searched(1.9, 2.0, 2.2), searched(2.0, 2.4, 2.5, repeat=1), searched(1.7, 2.1, 2.3, repeat=2)]
    (found,) = measured(*rows).saturations
    assert found.qps == Spread(2.1, 1.7, 2.5, 3)


def test_other_slos_arrivals_and_settings_are_other_points() -> None:
    rows = [
        searched(1, 2, 3),
        searched(1, 2, 3, slo="p90:ttft=2s"),
        searched(1, 2, 3, arrivals="constant"),
        searched(1, 2, 3, settings='{"threads": 2}'),
    ]
    found = measured(*rows)
    assert len(found.saturations) == 4
    assert [variant.settings for variant in found.variants] == ["", '{"threads": 2}']


def test_measured_bits_of_any_row_stand_for_the_scheme_whatever_the_kv_cache() -> None:
    rows = [
        searched(1, 2, 3, bits_per_weight=6.9),
        searched(1, 2, 3, quantization="Q4_0-KV8-INT"),
        searched(1, 2, 3, quantization="Q8_0"),
        searched(1, 2, 3, quantization="homemade"),
    ]
    found = {v.quantization: (v.scheme, v.kv, v.bits, v.bits_measured) for v in measured(*rows).variants}
    assert found == {
        "Q4_0": ("Q4_0", "KV16", 6.9, True),
        "Q4_0-KV8-INT": ("Q4_0", "KV8-INT", 6.9, True),
        "Q8_0": ("Q8_0", "KV16", 8.5, False),
        "homemade": ("homemade", "KV16", None, False),
    }


def test_energy_of_a_token_is_over_the_tokens_of_the_same_window() -> None:
    window = {"energy_j": 6000.0, "output_tokens_per_s": 20.0, "duration_s": 60.0}
    (load,) = measured(served(**window, idle_power_w=60.0), served(**window, repeat=1)).loads
    assert load.values["j_per_token"].value == pytest.approx(5.0)
    assert load.values["j_per_token_above_idle"] == Spread(2.0, 2.0, 2.0, 1)
    (without,) = measured(served(energy_note="no counter")).loads
    assert "j_per_token" not in without.values


def test_bootstrap_intervals_widen_a_percentiles_range() -> None:
    (load,) = measured(served(ttft_p90_s=0.3, ttft_p90_low_s=0.2, ttft_p90_high_s=0.5)).loads
    assert load.values["ttft_p90_s"] == Spread(0.3, 0.2, 0.5, 1)


def test_failed_rows_are_in_no_number_and_are_listed_with_their_reason() -> None:
    failed = served(status="failed", reason="engine died\nlast line", ttft_p50_s=None, offered_qps=9.0)
    found = measured(served(), failed, {**failed, "repeat": 1}, served(status="invalid", offered_qps=3.0))
    assert [load.offered_qps for load in found.loads] == [1.0]
    assert [(f.point, f.status, f.reason, f.count) for f in found.failures] == [
        ("chat, 3 req/s", "invalid", "no reason given", 1),
        ("chat, 9 req/s", "failed", "engine died\nlast line", 2),
    ]


def test_closed_loop_rows_are_counted_not_drawn() -> None:
    found = measured(served(), served(offered_qps=None, concurrency=4.0))
    assert (len(found.loads), found.closed_loop) == (1, 1)


def test_an_empty_table_and_one_of_other_phases_are_refused(campaign: pa.Table) -> None:
    with pytest.raises(InputError, match=r"nothing to report.*found nothing"):
        summarize_measured(campaign.slice(0, 0))
    step = {**ROW, "phase": "prefill", "input_tokens": 64.0, "batch": 1, "step_time_s": 0.1}
    with pytest.raises(InputError, match="expected rows of serving, saturation, quality; found prefill"):
        summarize_measured(from_rows([step], "made"))
