"""What a campaign's store gives a pack beside its observations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.measure.campaign.shipping import notes_of, requests_of
from qplan.profiles.store import ProfileStore
from qplan.profiles.timestamps import differences, latencies


def test_timestamps_give_the_latencies_of_the_observations_again(
    write_plan: Callable[..., Path], run_plan: Any, tmp_path: Path
) -> None:
    """Two loads, the first third of each a warm-up that is no part of its latencies."""
    path = write_plan(loads="[20, 40]", requests=18)
    path.write_text(path.read_text().replace("warm_up: 0", "warm_up: 0.2s"))
    run_plan(path)
    with ProfileStore(str(tmp_path / "store.db")) as store:
        rows, table, notes = store.read().to_pylist(), requests_of(store), notes_of(store)
    assert notes == ()
    assert table.num_rows == 36
    assert sum(one.requests for one in latencies(table)) == sum(row["requests"] for row in rows) < 36
    apart = differences(rows, table)
    assert set(apart) == {row["source"] for row in rows}
    assert max(apart.values()) < 2e-3  # a microsecond of a millisecond
    sent = table["scheduled_us"].to_numpy()
    assert (table["lag_us"].to_numpy() >= 0).all()
    assert (sent >= 0).all()


def test_a_wrong_observation_is_told(write_plan: Callable[..., Path], run_plan: Any, tmp_path: Path) -> None:
    run_plan(write_plan(requests=8))
    with ProfileStore(str(tmp_path / "store.db")) as store:
        (row,), table = store.read().to_pylist(), requests_of(store)
    assert differences([row | {"ttft_p90_s": 2 * row["ttft_p90_s"]}], table) == {row["source"]: pytest.approx(1, 0.01)}


def test_a_store_without_a_campaign_has_no_requests(tmp_path: Path) -> None:
    from qplan.profiles.observations import from_rows

    row = {
        "model": "m", "quantization": "BF16", "gpu": "H100-SXM5-80GB", "tp": 1, "engine": "vllm",
        "engine_version": "1", "phase": "serving", "repeat": 0, "status": "ok", "provenance": "published",
        "source": "a page", "offered_qps": 1.0, "achieved_qps": 1.0,
    }  # fmt: skip
    with ProfileStore(str(tmp_path / "other.db")) as store:
        store.add(from_rows([row], "made up"))
        assert notes_of(store) == ()
        with pytest.raises(InputError, match="no load that a campaign measured"):
            requests_of(store)
