"""A pack held against predictions that it had no part in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pyarrow as pa
import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.workload import Workload
from qplan.models.forecast import forecast
from qplan.models.packcheck import SATURATION, STEP, PackCheck, check_pack, fit_to, left_out
from qplan.models.surrogates import Surrogates, open_fitted
from qplan.profiles.observations import from_rows

SLO = "p90:ttft=1s,p90:tpot=50ms"
MIX = "isl=128,osl=256"
RATES = (1.0, 2.0, 4.0)


@cache
def shipped() -> Surrogates:
    return open_fitted(None)


@cache
def as_predicted(quantization: str, qps: float) -> dict[str, Any]:
    """Return what is predicted of a run on an H200 under an engine that the shipped pack has not."""
    deployment = Deployment(
        Model.named("llama-2-7b"), Quantization.parse(quantization), Gpu.named("H200-SXM"), 1, "llamacpp", "1"
    )
    found = forecast(shipped().answering(deployment), deployment, Workload.fixed(MIX), qps)
    return {one.name: one.prediction.value for one in found.quantities if one.prediction is not None}


def runs(slower: float = 1.0, **changes: Any) -> Iterator[dict[str, Any]]:
    """Runs whose latencies are `slower` times those predicted, and whose power is as predicted."""
    for quantization in ("BF16", "W4A16"):
        for qps in RATES:
            values = as_predicted(quantization, qps)
            latencies = {
                f"{name}_s": slower * values[name] for name in ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90")
            }
            yield {
                "model": "llama-2-7b", "quantization": quantization, "gpu": "H200-SXM", "tp": 1, "engine": "llamacpp",
                "engine_version": "1", "workload": MIX, "offered_qps": qps, "arrivals": "poisson", "slo": SLO,
                "phase": "serving", "repeat": 0, "status": "ok", "provenance": "measured", "duration_s": 20.0,
                "source": f"campaign ours point {quantization}{qps:g}", "achieved_qps": qps,
                "output_tokens_per_s": qps * 256, "tpot_mean_s": slower * values["tpot_p50"],
                "energy_j": 20 * values["power_w"], **latencies, **changes,
            }  # fmt: skip


def checked(rows: Iterator[dict[str, Any]], fitted: Surrogates | None = None) -> PackCheck:
    return check_pack(from_rows(list(rows), "made up"), "ours", fitted or shipped())


def steps(slower: float, source: str, engine: str = "llamacpp") -> Iterator[dict[str, Any]]:
    """Step times on a small grid."""
    about = {
        "model": "llama-2-7b", "quantization": "BF16", "gpu": "H200-SXM", "tp": 1, "engine": engine,
        "engine_version": "1", "repeat": 0, "status": "ok", "provenance": "measured", "source": source,
    }  # fmt: skip
    for tokens in (64.0, 512.0):
        yield {**about, "phase": "prefill", "batch": 1, "input_tokens": tokens, "step_time_s": slower * 1e-5 * tokens}
    for batch in (1, 16):
        for context in (64.0, 512.0):
            time_s = slower * (5e-3 + 1e-5 * batch)
            yield {**about, "phase": "decode", "batch": batch, "context_tokens": context, "step_time_s": time_s}


def test_what_went_as_predicted_has_no_error() -> None:
    check = checked(runs())
    assert check.source == "trtllm-composed"
    for one in check.compared:
        if one.quantity in ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "power_w", "j_per_token"):
            assert one.ratio == pytest.approx(1), one
        if one.quantity == STEP:
            assert one.ratio == pytest.approx(1, abs=0.2), one
    assert {one.quantity for one in check.compared} >= {STEP, "ttft_p50", "tpot_p90", "power_w", SATURATION}
    assert not check.missing
    assert all(one.extrapolates for one in check.compared)  # the pack has another engine
    assert any("trtllm" in note for note in check.notes)


def test_slower_runs_show_by_how_much_and_whether_the_interval_held_them() -> None:
    check = checked(runs(slower=3.0))
    found = [one for one in check.compared if one.quantity == "tpot_p50"]
    assert [one.ratio for one in found] == pytest.approx([3.0] * 6)
    assert {one.covered for one in found} == {None}  # the error of another engine's steps was never checked
    assert {one.covered for one in check.compared if one.quantity == "power_w"} == {True}
    far = checked(row | {"energy_j": 10 * row["energy_j"]} for row in runs())
    assert {one.covered for one in far.compared if one.quantity == "power_w"} == {False}
    assert {one.load for one in found} == {0.25, 0.5, 1.0}


def test_a_saturation_rate_is_bracketed_by_the_loads() -> None:
    """The last of three rates misses its SLO; the search of another pack is taken as it is."""
    rows = [row | ({"ttft_p90_s": 2.0} if row["offered_qps"] == RATES[-1] else {}) for row in runs()]
    found = [one for one in checked(iter(rows)).compared if one.quantity == SATURATION]
    assert [(one.low, one.high) for one in found] == [RATES[1:]] * 2
    assert all(one.predicted > RATES[-1] and one.ratio < 1 for one in found)
    assert all(math.isnan(one.offered_qps) for one in found)
    about = {key: rows[0][key] for key in rows[0] if not key.endswith("_s") and key not in ("offered_qps", "energy_j")}
    about = {key: value for key, value in about.items() if key not in ("achieved_qps", "output_tokens_per_s")}
    ends = {"saturation_qps": 30.0, "saturation_low_qps": 25.0, "saturation_high_qps": 36.0}
    search = about | ends | {"phase": "saturation", "source": "campaign ours point search"}
    found = [one for one in checked(iter([*rows, search])).compared if one.quantity == SATURATION]
    assert (found[0].low, found[0].high) == (25.0, 36.0)


def test_rates_beyond_the_predicted_saturation_are_listed() -> None:
    check = checked(row | {"offered_qps": 500.0} for row in runs() if row["offered_qps"] == 1.0)
    assert {one.what for one in check.missing} >= {"ttft_p50 at 500 req/s"}
    assert all("beyond saturation" in one.reason for one in check.missing)


def test_what_is_not_known_is_a_reason_and_no_error() -> None:
    check = checked(runs(model="somebody-s-own-9b"))
    assert not check.compared
    assert len(check.missing) == 2
    assert "somebody-s-own-9b" in check.missing[0].reason


def test_a_fit_to_the_pack_itself_is_refused() -> None:
    with pytest.raises(InputError, match="trtllm-composed is what the model was fitted to"):
        check_pack(from_rows(list(runs()), "made up"), "trtllm-composed", shipped())


def test_a_pack_without_loads_is_refused() -> None:
    with pytest.raises(InputError, match="no run under an open loop"):
        checked(steps(1.0, "a"))


class TestLeftOut:
    """Rows of the pack have no part in the fit."""

    def test_rows_go_by_identity_and_by_source(self) -> None:
        own, others = list(runs()), list(steps(1.0, "elsewhere"))
        again = {**own[0], "repeat": 5}  # as a store numbers it when another source has the same identity
        alike = {**own[1], "source": "a copy of it"}
        own_without_one = [own[0], *own[2:]]
        kept, gone = left_out(from_rows([*others, *own_without_one, again, alike], "store"), from_rows(own, "pack"))
        assert gone == len(own) + 1
        assert set(kept["source"].to_pylist()) == {"elsewhere"}

    def test_the_fit_is_the_same_with_and_without_them(self) -> None:
        """A store holds the pack's own step times, ten times slower: predictions do not move."""
        pack = from_rows([*runs(), *steps(10.0, "ours, steps", engine="vllm")], "pack")
        others = from_rows(list(steps(1.0, "elsewhere")), "others")
        store = pa.concat_tables([others, pack])
        table, gone = left_out(store, pack)
        assert gone == pack.num_rows
        assert table.equals(others)
        only_steps = pa.array([phase != "serving" for phase in store["phase"].to_pylist()])
        fits = (others, table, store.filter(only_steps))
        alone, without, with_them = (
            [one.predicted for one in checked(runs(), fit_to(rows, "a store", None, _quiet)).compared] for rows in fits
        )
        assert without == alone
        assert with_them != alone


def _quiet(done: int, of: int) -> None:
    pass
