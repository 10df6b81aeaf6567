import numpy as np
import pytest

from qplan.core.errors import InputError, StoreError
from qplan.models.fitting import fit_rows
from qplan.models.fittingloads import fit_loads
from qplan.models.heldout import Trials
from qplan.models.load.features import CONFIGURATION, LENGTHS, LOAD, load_rows
from qplan.profiles.observations import from_rows
from tests.models.measured_rows import LOADS, quickly, report, rows, serving, table

pytest.importorskip("sklearn")


def test_every_metric_that_was_measured_has_a_surrogate_and_the_others_a_reason() -> None:
    fitted = report()[0].fitted
    assert fitted.steps is None
    assert fitted.loads is not None
    assert set(fitted.loads.surrogates) == {"ttft_p50_s", "tpot_p50_s", "output_tokens_per_s"}
    assert fitted.loads.missing["ttft_p90_s"] == "not measured"
    assert fitted.loads.missing["power_w"] == "no energy counter"
    assert fitted.loads.chosen["tpot_p50_s"] == ("pooled-curves", "pooled-curves")


def test_every_question_has_errors_and_coverages_of_its_own() -> None:
    held = [one for one in report()[0].loads if one.metric == "tpot_p50_s"]
    whats = ["load, in between", "load, the largest", "lengths", "configuration", "deployment", "model"]
    assert [one.what for one in held] == whats
    by_name = {one.what: one for one in held}
    assert by_name["load, the largest"].points == 12
    assert by_name["model"].points == 61
    assert by_name["load, in between"].median_error < 0.1
    for one in held:
        assert 0 < one.median_error <= one.p90_error
        assert list(one.coverage.values()) == sorted(one.coverage.values())
    # Two of three models cannot bound a third; twelve configurations can bound one.
    assert by_name["model"].bounded < 1
    assert by_name["load, in between"].bounded == 1
    assert by_name["load, in between"].coverage[0.95] > by_name["load, in between"].coverage[0.5] > 0.2


def test_progress_reaches_its_end() -> None:
    told = report()[1]
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == list(range(len(told)))


def test_failed_rows_and_rows_without_a_value_are_left_alone() -> None:
    fitted = report()[0].fitted.loads
    assert fitted is not None
    assert len(fitted.configurations) == 12
    assert fitted.configurations[0].lowest == LOADS[0]
    assert sum(one.saturation_qps is not None for one in fitted.configurations) == 1


def test_what_is_left_out_is_whole() -> None:
    data = load_rows(table(), "tpot_p50_s")
    trials = Trials.of("tpot_p50_s", data)
    X = trials.rows.X
    between, largest = trials.left_out["load, in between"][0], trials.left_out["load, the largest"][0]
    assert set(X[between, LOAD]) == {1.0, 4.0}
    assert set(X[largest, LOAD]) == {8.0}
    for what, columns in {"lengths": list(LENGTHS), "configuration": [CONFIGURATION], "model": [0]}.items():
        masks = trials.left_out[what]
        assert np.sum(masks, axis=0).tolist() == [1] * len(X)  # each row once
        for mask in masks:
            left, kept = (set(map(tuple, X[rows][:, columns])) for rows in (mask, ~mask))
            assert not left & kept


def test_repeats_of_a_load_are_left_out_together() -> None:
    again = [{**row, "repeat": 2, "offered_qps": 1.01 * float(str(row["offered_qps"]))} for row in rows()[:60]]
    trials = Trials.of("tpot_p50_s", load_rows(table(again), "tpot_p50_s"))
    left = trials.rows.X[trials.left_out["load, in between"][0], LOAD]
    assert set(left.round(3)) == {1.0, 1.01, 4.0, 4.04}


def test_stores_with_steps_and_loads_have_both_and_few_loads_are_told() -> None:
    one = serving("llama-2-7b", "BF16", "isl=512,osl=64", 1.0)
    kept = (
        "model",
        "quantization",
        "gpu",
        "tp",
        "engine",
        "engine_version",
        "provenance",
        "source",
        "repeat",
        "status",
    )
    steps = [
        {**{name: one[name] for name in kept}, "phase": "decode", "batch": batch, "context_tokens": context,
         "step_time_s": 0.006 + 1e-4 * batch + 1e-8 * batch * context}
        for batch in (1, 2, 4, 8, 16, 32) for context in (256.0, 1024.0, 4096.0)
    ] + [
        {**{name: one[name] for name in kept}, "phase": "prefill", "batch": 1, "input_tokens": float(tokens),
         "step_time_s": 0.004 + 3e-5 * tokens}
        for tokens in (128, 256, 512, 1024, 2048)
    ]  # fmt: skip
    with quickly(judged=False):
        few = fit_rows(from_rows([*steps, one], "few"), "few", None, lambda *_: None)
        assert few.fitted.loads is None
        assert "only 1 rows have it" in (few.note or "")
        both = fit_rows(from_rows([*steps, *rows()[:20]], "both"), "both", None, lambda *_: None)
    assert both.fitted.steps is not None
    assert both.fitted.loads is not None
    assert {*both.fitted.to_parts()} >= {"fitted", "loads", "loads_tpot_p50_s"}


@pytest.mark.parametrize(
    ("of", "error", "says"),
    [
        ([], StoreError, "no prefill, decode or serving row"),
        (rows()[:5], StoreError, "no metric under load to fit: .*only 5 rows have it; 12 are needed"),
        ([{**row, "offered_qps": None} for row in rows()[:20]], StoreError, "no serving row that went well"),
        ([{**row, "gpu": "h900"} for row in rows()[:20]], InputError, "unknown GPU 'h900'"),
    ],
)
def test_what_cannot_be_fitted_is_one_clear_line(
    of: list[dict[str, object]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fit_rows(from_rows(of, "made up"), "ours", None, lambda *_: None)


def test_loads_can_be_fitted_alone() -> None:
    with quickly(), pytest.raises(StoreError, match="no serving row that went well"):
        fit_loads(table().slice(0, 0), "nothing", lambda *_: None)
