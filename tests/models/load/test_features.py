import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest

from qplan.core.errors import InputError
from qplan.models.load.curves import PooledCurves
from qplan.models.load.features import COLUMNS, GROUPS, LOAD, LoadEncoder, load_rows
from qplan.models.load.monotone import AMORTISED, RISING, SATURATING
from qplan.models.steptimes import Floats
from qplan.profiles.observations import from_rows


def observation(
    load: float, quantization: str = "W8A8-FP", version: str = "0.9.0", **changes: object
) -> dict[str, object]:
    return {
        "model": "llama-2-13b", "quantization": quantization, "gpu": "H100-SXM5-80GB", "tp": 1, "engine": "vllm",
        "engine_version": version, "phase": "serving", "workload": "chat", "concurrency": float(load),
        "input_tokens": 300.0 + load, "output_tokens": 200.0, "repeat": 0, "status": "ok",
        "tpot_mean_s": (0.01 if quantization == "BF16" else 0.006) * (1 + load / 50),
        "energy_j": 600.0 * 60, "duration_s": 60.0, "output_tokens_per_s": 100.0 * load**0.8,
        "provenance": "measured", "source": "made up",
    } | changes  # fmt: skip


def table(more: Sequence[dict[str, object]] = ()) -> pa.Table:
    rows = [observation(load, name) for name in ("BF16", "W8A8-FP") for load in (1, 4, 16, 64)]
    return from_rows([*rows, *more], "test")


def column(X: Floats, name: str) -> Floats:
    return X[:, COLUMNS.index(name)]


def test_rows_become_loads_groups_and_physical_features() -> None:
    rows = load_rows(table(), "tpot_mean_s")
    assert (rows.X.shape, rows.elasticity) == ((8, len(COLUMNS)), RISING)
    np.testing.assert_array_equal(rows.X[:, LOAD], [1, 4, 16, 64] * 2)
    # Lengths that differ from run to run do not make another configuration.
    np.testing.assert_array_equal(rows.X[:, list(GROUPS)], [[0, 0, 0]] * 4 + [[0, 1, 1]] * 4)
    bf16, fp8 = rows.X[0], rows.X[4]
    difference = dict(zip(COLUMNS, bf16 - fp8, strict=True))
    assert difference["ln_weights_s"] == pytest.approx(np.log(2), abs=0.03)  # embeddings stay at 16 bits
    assert difference["ln_token_s"] == pytest.approx(np.log(2), abs=0.01)
    assert difference["weight_bits"] == difference["activation_bits"] == 8
    assert difference["ln_kv_tokens"] < 0
    assert (rows.y == [*table()["tpot_mean_s"].to_pylist()]).all()


def test_energy_becomes_joules_per_token_of_the_same_window() -> None:
    rows = load_rows(table(), "j_per_output_token")
    np.testing.assert_allclose(rows.y[:4], 600 / (100 * np.array([1, 4, 16, 64]) ** 0.8))
    assert rows.elasticity == AMORTISED
    np.testing.assert_allclose(load_rows(table(), "power_w").y, 600)
    assert load_rows(table(), "output_tokens_per_s").elasticity == SATURATING


def test_rows_that_say_nothing_of_the_metric_are_left_out() -> None:
    more = [
        observation(32, status="failed", reason="crashed", tpot_mean_s=None),
        observation(32, tpot_mean_s=None),
        observation(32, concurrency=None, offered_qps=3.0),
        observation(32, phase="decode", batch=4, context_tokens=100.0, concurrency=None),
    ]
    rows = load_rows(table(more=more), "tpot_mean_s")
    np.testing.assert_array_equal(rows.rows, np.arange(8))
    open_loop = load_rows(table(more=more), "tpot_mean_s", axis="offered_qps")
    assert (open_loop.encoder.axis, open_loop.X[:, LOAD].tolist()) == ("offered_qps", [3.0])


def test_versions_are_in_order_of_release() -> None:
    more = [observation(2, version=version) for version in ("0.10.1", "0.9.10", "1.0.0rc1")]
    X = load_rows(table(more=more), "tpot_mean_s").X
    np.testing.assert_array_equal(column(X, "engine_version")[[0, 9, 8, 10]], [0, 1, 2, 3])


def test_what_was_not_measured_has_no_code() -> None:
    encoder = load_rows(table(), "tpot_mean_s").encoder
    query = observation(8, "W4A16", version="2.0") | {"engine": "sglang"}
    X = encoder.encode([observation(8), query])
    np.testing.assert_array_equal(X[:, list(GROUPS)], [[0, 1, 1], [0, -1, -1]])
    assert [column(X, "engine").tolist(), column(X, "engine_version").tolist()] == [[0, -1], [0, -1]]


def test_an_encoder_is_saved_as_plain_data() -> None:
    encoder = load_rows(table(), "tpot_mean_s").encoder
    assert LoadEncoder.from_data(json.loads(json.dumps(encoder.to_data()))) == encoder
    for broken in ({}, {**encoder.to_data(), "axis": "users"}, {**encoder.to_data(), "groups": 3}):
        with pytest.raises(InputError):
            LoadEncoder.from_data(broken)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: load_rows(table(), "tpot_mean"), "no metric 'tpot_mean' over load.*did you mean 'tpot_mean_s'"),
        (lambda: load_rows(table(), "tpot_mean_s", axis="concurency"), "no load 'concurency'.*did you mean"),
        (lambda: load_rows(table(), "ttft_p90_s"), "no serving row has ttft_p90_s"),
        (lambda: load_rows(table(), "tpot_mean_s").encoder.encode([observation(0)]), "concurrency 0"),
        (lambda: load_rows(table(more=[observation(2, gpu="h900")]), "tpot_mean_s"), "unknown GPU 'h900'"),
    ],
)
def test_what_cannot_be_encoded_is_said(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask()


def test_a_surrogate_of_observations_answers_for_another_quantization() -> None:
    rows = load_rows(table(), "tpot_mean_s")
    fitted = PooledCurves(LOAD, GROUPS, rows.elasticity).fit(rows.X, rows.y)
    seen = rows.encoder.encode([observation(32, "BF16")])
    assert fitted.predict(seen)[0] == pytest.approx(0.01 * (1 + 32 / 50), rel=0.1)
    new = fitted.predict(rows.encoder.encode([observation(32, "W4A16")]))[0]
    assert np.isfinite(new)
