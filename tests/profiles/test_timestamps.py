"""Timestamps beside a pack: small, whole, found by the pack's name, and no pack of their own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qplan.core.errors import InputError, StoreError
from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.profiles import packs
from qplan.profiles.observations import from_rows
from qplan.profiles.packs import Pack, installed_packs, write_pack
from qplan.profiles.timestamps import latencies, read_requests, requests_path, schema, write_requests

PLANS = ("h200-measured", "h200-measured-repeats", "h200-measured-large", "h200-measured-fp8")
ROW = {
    "model": "llama-2-7b", "quantization": "BF16", "gpu": "H200-SXM", "tp": 1, "engine": "vllm",
    "engine_version": "1", "phase": "serving", "workload": "isl=128,osl=256", "offered_qps": 2.0, "repeat": 0,
    "status": "ok", "provenance": "measured", "source": "campaign made-up point a", "achieved_qps": 2.0,
}  # fmt: skip


def requests(point: str, count: int, seed: int = 0, output_tokens: int = 256) -> pa.Table:
    """Poisson arrivals at 16 req/s with latencies that scatter."""
    draw = np.random.default_rng(seed)
    ttft_s, tpot_s = draw.lognormal(-3, 0.5, count), draw.lognormal(-4, 0.2, count)
    texts = {"point": [point] * count, "outcome": ["ok"] * count, "steady": [True] * count}
    numbers = {
        "scheduled_us": np.rint(draw.exponential(1 / 16, count).cumsum() * 1e6),
        "lag_us": np.rint(draw.exponential(300, count)),
        "first_token_us": np.rint(ttft_s * 1e6),
        "last_token_us": np.rint(tpot_s * (output_tokens - 1) * 1e6),
        "input_tokens": np.full(count, 128),
        "output_tokens": np.full(count, output_tokens),
    }
    columns = {**texts, **{name: values.astype(np.int64).tolist() for name, values in numbers.items()}}
    return pa.table(columns, schema=schema())


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "ours.parquet"
    table = from_rows([ROW], "made up")
    write_pack(path, Pack.of_store("ours", table).card, table)
    return path


def test_what_is_written_is_read_again_by_the_name_of_the_pack(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = requests("campaign made-up point a", 50)
    assert write_requests(pack, table) == requests_path(pack)
    assert read_requests(pack).equals(table)
    monkeypatch.setattr(packs, "SHIPPED", pack.parent)
    assert read_requests("ours").equals(table)
    assert list(installed_packs()) == ["ours"]


def test_the_requests_of_all_h200_plans_fit_into_a_megabyte(pack: Path) -> None:
    """As many requests as the plans send, in points of their sizes."""
    counts = []
    for name in PLANS:
        with resources.as_file(resources.files("qplan.profiles.packs").joinpath(f"{name}.yaml")) as path:
            plan, _ = read_plan(path)
        counts += [round((point.qps or 0) * (plan.duration_s or 0)) for point in make_grid(plan).points]
    assert sum(counts) > 30_000
    table = pa.concat_tables([requests(f"campaign x point {n:012x}", count, n) for n, count in enumerate(counts)])
    assert write_requests(pack, table).stat().st_size < 1_000_000


def test_latencies_are_of_steady_requests_that_went_well() -> None:
    table = requests("campaign made-up point a", 4)
    changed: dict[str, list[Any]] = {
        "steady": [True, True, True, False],
        "outcome": ["ok", "timeout", "ok", "ok"],
        "output_tokens": [256, 256, 1, 256],
    }
    for name, values in changed.items():
        field = schema().field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    one, other = latencies(pa.concat_tables([table, requests("campaign made-up point b", 3, 1)]))
    assert (one.point, one.requests, one.failed) == ("campaign made-up point a", 3, 1)
    first, last, sent = (table[name].to_numpy() for name in ("first_token_us", "last_token_us", "lag_us"))
    assert sent[0] > 0
    assert one.ttft_s.tolist() == [first[0] / 1e6, first[2] / 1e6]  # of sending, however late that was
    assert one.tpot_s.tolist() == [pytest.approx(last[0] / 255 / 1e6)]  # one token has no time after the first
    assert (other.point, other.requests, len(other.tpot_s)) == ("campaign made-up point b", 3, 3)
    assert other.columns()["ttft_p50_s"] == pytest.approx(np.median(other.ttft_s))


def test_a_pack_without_timestamps_says_how_to_get_them(pack: Path) -> None:
    with pytest.raises(InputError, match=r"ours has no timestamps.*ours\.requests\.parquet.*export --requests"):
        read_requests(pack)


def test_another_table_is_refused(pack: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"point": ["a"]}), requests_path(pack))
    with pytest.raises(StoreError, match="columns point; expected point, scheduled_us"):
        read_requests(pack)
    requests_path(pack).write_bytes(b"no table")
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        read_requests(pack)
