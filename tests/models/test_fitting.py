from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from qplan.core.errors import StoreError
from qplan.models.fitted import Fitted
from qplan.models.fitting import HeldOut, fit_profiles
from qplan.profiles.packs import read_pack

PACK = "trtllm-composed"
pytestmark = pytest.mark.slow
ERROR = {"measured_over_predicted": {"ttft": {"lower": 0.5, "upper": 4.0}, "tpot": {"lower": 0.8, "upper": 1.25}}}


def rows(*models: str) -> pa.Table:
    table = read_pack(PACK, models=models).table
    here = zip(table["gpu"].to_pylist(), table["tp"].to_pylist(), strict=True)
    return table.filter(np.array([gpu == "L40S" and tp in (1, 2) for gpu, tp in here]))


@cache
def fitted() -> tuple[Fitted, tuple[HeldOut, ...], list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    found, held = fit_profiles(
        rows("llama-2-7b", "llama-2-13b"), "slice", ERROR, lambda done, of: told.append((done, of))
    )
    return found, held, told


def test_every_kind_of_question_has_errors_of_its_own() -> None:
    _, held, _ = fitted()
    assert [one.what for one in held] == [
        "load, in between",
        "load, the largest",
        "length, in between",
        "length, the longest",
        "tensor parallelism",
        "quantization",
        "model",
    ]
    for one in held:
        assert one.points > 100
        assert 0 < one.median_error < one.p90_error
        assert all(ratio.lower < ratio.upper for ratio in one.by_level.values())
    between, model = held[0], held[-1]
    assert set(between.by_level) == {"deployment"}
    assert set(model.by_level) == {"GPU, engine and quantization"}
    assert between.median_error < 0.05


def test_the_widest_range_of_a_level_is_kept() -> None:
    found, held, _ = fitted()
    for level, kept in found.step_error.items():
        ratios = [one.by_level[level] for one in held if level in one.by_level]
        assert kept.lower == min(ratio.lower for ratio in ratios)
        assert kept.upper == max(ratio.upper for ratio in ratios)


def test_progress_reaches_its_end() -> None:
    _, _, told = fitted()
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 7
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_one_model_alone_says_nothing_of_others() -> None:
    _, held = fit_profiles(rows("llama-2-7b"), "slice", None, lambda *_: None)
    assert "model" not in [one.what for one in held]


def test_profiles_without_step_times_cannot_be_fitted() -> None:
    with pytest.raises(StoreError, match="no prefill or decode row"):
        fit_profiles(rows("llama-2-7b").slice(0, 0), "nothing", None, lambda *_: None)
