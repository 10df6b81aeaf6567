"""Fleets from files; what is wrong in one is told with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qplan.core import InputError
from qplan.models.simulator.fleetfile import make_fleet, read_fleet

GROUP = {"model": "llama-2-7b", "quantization": "W4A16", "gpu": "h100"}


def written(folder: Path, data: Any) -> Path:
    path = folder / "fleet.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_what_a_group_says_is_kept(tmp_path: Path) -> None:
    said = {**GROUP, "count": 3, "weight": 2, "kv_tokens": 5000, "max_sequences": 7, "chunked_prefill": False}
    file = read_fleet(written(tmp_path, {"schema_version": 1, "replicas": [said, {**GROUP, "tp": 2}]}))
    fleet = make_fleet(file, "trtllm-composed", chunked_prefill=True)
    first, last = fleet.replicas[0], fleet.replicas[-1]
    assert [replica.weight for replica in fleet.replicas] == [2, 2, 2, 1]
    assert (first.kv_tokens, first.batching.max_sequences, first.batching.chunked_prefill) == (5000, 7, False)
    assert last.batching.chunked_prefill
    assert last.kv_tokens == file.groups[1].deployment.memory().kv_tokens
    assert fleet.prefill == ()
    assert fleet.power_note == ""
    assert last.idle_w is not None
    assert first.idle_w is not None
    assert last.idle_w > first.idle_w
    assert all("kernel-composed" in source for source in fleet.provenance)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "as JSON"),
        ("[]", "holds no JSON object"),
        ({"schema_version": 2, "replicas": [GROUP]}, "schema_version is 2; this qplan reads 1"),
        ({"schema_version": 1, "replicas": []}, "expected a list of at least one group"),
        ({"schema_version": 1, "replica": [GROUP]}, "unknown field 'replica'; expected schema_version"),
        ({"schema_version": 1, "replicas": ["h100"]}, "replicas[0] is 'h100'; expected an object"),
        ({"schema_version": 1, "replicas": [{**GROUP, "quantisation": "W4A16"}]}, "did you mean 'quantization'"),
        ({"schema_version": 1, "replicas": [GROUP, {"model": "llama-2-7b"}]}, "replicas[1]: quantization is missing"),
        ({"schema_version": 1, "replicas": [{**GROUP, "count": 1.5}]}, "count is 1.5; expected a whole number"),
        ({"schema_version": 1, "replicas": [{**GROUP, "count": True}]}, "count is True; expected a whole number"),
        ({"schema_version": 1, "replicas": [{**GROUP, "count": 0}]}, "count is 0; expected at least 1"),
        ({"schema_version": 1, "replicas": [{**GROUP, "model": "lama-2-7b"}]}, "replicas[0]: unknown model"),
        ({"schema_version": 1, "replicas": [{**GROUP, "role": "decoder"}]}, "did you mean 'decode'"),
        ({"schema_version": 1, "replicas": [{**GROUP, "role": "decode"}]}, "expected prefill and decode, or neither"),
        ({"schema_version": 1, "replicas": [GROUP], "kv_transfer": {"bandwidth_gb_s": 1}}, "go together"),
        ({"schema_version": 1, "replicas": [GROUP], "kv_transfer": {"bandwidth_gb_s": 0}}, "expected more than 0"),
        ({"schema_version": 1, "replicas": [GROUP], "kv_transfer": {}}, "expected bandwidth_gb_s"),
        ({"schema_version": 1, "objective_name": "cost"}, "not a plan"),
    ],
)
def test_a_bad_file_is_a_clear_error(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read_fleet(written(tmp_path, data))
    assert "fleet.json" in str(raised.value)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({**GROUP, "gpu": "cpu", "engine": "vllm"}, "trtllm-composed has neither step times nor loads of llama-2"),
        ({**GROUP, "max_sequences": 0}, "replicas[0]: batching: max_sequences is 0"),
        ({**GROUP, "kv_tokens": 5}, "holds no block"),
        ({**GROUP, "weight": -1}, "weight -1"),
    ],
)
def test_a_fleet_that_cannot_serve_is_a_clear_error(group: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = read_fleet(written(tmp_path, {"schema_version": 1, "replicas": [group]}))
    with pytest.raises(InputError, match=re.escape(message)):
        make_fleet(file, "trtllm-composed")


def test_an_infeasible_plan_is_no_fleet(tmp_path: Path) -> None:
    from qplan.core.plan import Plan

    plan = Plan("infeasible", "cost", (), {}, None, None, "", None, (), None, None, None, None, "highs", 0.1, (), ())
    with pytest.raises(InputError, match="the plan is infeasible and has no replicas"):
        read_fleet(written(tmp_path, plan.to_json()))
