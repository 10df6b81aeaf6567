"""What the engines' metrics routes say, in the engines' own words."""

from __future__ import annotations

import json

import pytest

from qplan.measure.engines.contract import EngineState
from qplan.measure.engines.metrics_text import parse_prometheus, read_state

LLAMACPP = """\
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
llamacpp:requests_deferred 5
llamacpp:predicted_tokens_seconds 41.2
"""
VLLM = """\
vllm:num_requests_running{engine="0",model_name="facebook/opt-125m"} 3.0
vllm:num_requests_running{engine="1",model_name="facebook/opt-125m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="facebook/opt-125m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="facebook/opt-125m"} 1.0
vllm:num_requests_waiting_by_reason{engine="1",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="facebook/opt-125m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="facebook/opt-125m"} 0.5
"""
SGLANG = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 1.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.0
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.0125
"""
TRTLLM = json.dumps(
    [
        {"iter": 1, "numActiveRequests": 9, "numQueuedRequests": 9},
        {
            "iter": 2,
            "numActiveRequests": 4,
            "numQueuedRequests": 2,
            "kvCacheStats": {"maxNumBlocks": 200, "usedNumBlocks": 50, "freeNumBlocks": 150},
        },
    ]
)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (LLAMACPP, EngineState(2, 5, None)),
        (VLLM, EngineState(7, 1, 0.5)),
        (SGLANG, EngineState(1, 0, 0.0125)),
        (TRTLLM, EngineState(4, 2, 0.25)),
        ("[]", EngineState()),
        ("{broken", EngineState()),
        ('[{"numActiveRequests": 1, "kvCacheStats": null}]', EngineState(1, None, None)),
        ("<html>not here</html>", EngineState()),
        ("", EngineState()),
    ],
)
def test_each_engine_is_understood(text: str, state: EngineState) -> None:
    assert read_state(text) == state


def test_lines_that_are_no_samples_are_skipped() -> None:
    text = 'a 1\nb{x="} 2"} 3 1700000000\n# a 9\nc NaN-ish\nd\n{} 4\ne +Inf\n'
    assert parse_prometheus(text) == {"a": [1.0], "b": [3.0], "e": [float("inf")]}
