"""The policy as a callback of LiteLLM, against the interface that LiteLLM 1.106 calls."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from qplan.cli.app import app
from qplan.router.litellm import PolicyRouting, callback
from tests.router.live import make_policy, write_policy

START = datetime(2026, 1, 1)


def deployments(*names: str) -> list[dict[str, Any]]:
    return [{"model_name": "m", "model_info": {"id": name, "qplan_group": "g"}} for name in names]


def filtered(routing: PolicyRouting, given: list[dict[str, Any]], **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    messages = [{"role": "user", "content": "x" * 400}]
    found = asyncio.run(routing.async_filter_deployments("m", given, messages, kwargs))
    return found, {"litellm_params": {"metadata": kwargs.get("metadata")}, "stream": True}


def test_one_deployment_is_left_and_its_state_returns_to_nothing() -> None:
    routing = PolicyRouting(make_policy())
    found, logged = filtered(routing, deployments("a", "b"), max_tokens=5)
    assert len(found) == 1
    state = routing.states[found[0]["model_info"]["id"]]
    assert (state.in_flight, state.waiting_tokens, state.held_tokens) == (1, 100, 105)
    logged |= {"api_call_start_time": START, "completion_start_time": START + timedelta(seconds=2)}
    response = SimpleNamespace(usage=SimpleNamespace(completion_tokens=11))
    end = START + timedelta(seconds=3)
    asyncio.run(routing.async_log_success_event(logged, response, START, end))
    assert (state.in_flight, state.waiting_tokens, state.held_tokens) == (0, 0, 0)
    assert state.ttft_ratio > 1  # 2 s were seen, milliseconds predicted
    assert state.tpot_ratio > 1
    asyncio.run(routing.async_log_success_event(logged, response, START, end))
    assert state.in_flight == 0  # said twice, counted once


def test_requests_are_kept_together_until_a_deployment_fails() -> None:
    now, policy = [0.0], make_policy()
    gathered = replace(  # one replica is planned, and begins others only when it must
        policy,
        groups=(replace(policy.groups[0], energy_among_j=((20.0, 10.0),)),),
        levels=(replace(policy.levels[0], serving=(1,)),),
    )
    routing = PolicyRouting(gathered, lambda: now[0])
    first, logged = filtered(routing, deployments("a", "b"))
    assert filtered(routing, deployments("a", "b"))[0] == first
    asyncio.run(routing.async_log_failure_event(logged, None, START, START))
    assert filtered(routing, deployments("a", "b"))[0] != first
    assert filtered(routing, first)[0] == first  # the only one that is left
    now[0] = 10.0
    assert routing.states[first[0]["model_info"]["id"]].in_flight == 2


def test_what_litellm_never_reports_is_forgotten() -> None:
    now = [0.0]
    routing = PolicyRouting(make_policy(), lambda: now[0])
    filtered(routing, deployments("a"))
    now[0] = 1000.0
    filtered(routing, deployments("a"))
    assert routing.states["a"].in_flight == 1


def test_deployments_of_no_group_are_left_to_litellm() -> None:
    routing = PolicyRouting(make_policy())
    given: list[dict[str, Any]] = [{"model_name": "m", "model_info": {"id": "x"}}, {"model_name": "m"}]
    assert filtered(routing, given)[0] == given
    assert filtered(routing, [*given, *deployments("a")])[0] == deployments("a")


def test_a_class_in_the_metadata() -> None:
    policy = make_policy()
    other = replace(policy.classes[0], name="code")
    bucket = replace(policy.buckets[0], request_class="code")
    group = replace(policy.groups[0], quality={"code": 1.0, "chat": 1.0})
    levels = tuple(replace(one, quality_price={"chat": 0.0, "code": 0.0}) for one in policy.levels)
    routing = PolicyRouting(replace(policy, classes=(other,), buckets=(bucket,), groups=(group,), levels=levels))
    metadata: dict[str, Any] = {"qplan_class": "code", "tenant": 7}
    found, _ = filtered(routing, deployments("a"), metadata=metadata)
    assert found == deployments("a")
    assert metadata["tenant"] == 7


def test_without_litellm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(Exception, match="pip install 'litellm"):
        callback(write_policy(tmp_path))


def test_the_files_for_its_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "very-secret")
    policy = write_policy(tmp_path)
    (tmp_path / "replicas.yaml").write_text(
        "replicas:\n- {name: a, url: http://h:1, model: inner, api_key_env: KEY}\n- {name: b, url: http://h:2}\n"
    )
    arguments = [
        "route",
        "litellm",
        str(policy),
        "--replicas",
        str(tmp_path / "replicas.yaml"),
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out/config.yaml").read_text()
    first, second = yaml.safe_load(text)["model_list"]
    assert first["litellm_params"] == {
        "model": "hosted_vllm/inner",
        "api_base": "http://h:1/v1",
        "api_key": "os.environ/KEY",
    }
    assert second["model_info"] == {"id": "b", "qplan_group": "g"}
    assert "secret" not in text

    class CustomLogger:
        pass

    parent, module = ModuleType("litellm.integrations"), ModuleType("litellm.integrations.custom_logger")
    module.CustomLogger = CustomLogger  # type: ignore[attr-defined]
    for name, one in (("litellm", ModuleType("litellm")), (parent.__name__, parent), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, one)
    space: dict[str, Any] = {}
    exec((tmp_path / "out/qplan_routing.py").read_text(), space)
    assert isinstance(space["routing"], CustomLogger)
    assert isinstance(space["routing"], PolicyRouting)


def test_a_class_that_may_wait_waits_as_the_policy_says() -> None:
    policy = make_policy()
    waits = ((0.0, 0.05), (2 * 86400.0, 0.05))
    patient = replace(policy.classes[0], deadline_s=0.2, waits=waits)
    routing = PolicyRouting(replace(policy, classes=(patient,), horizon_s=2 * 86400.0))
    began = time.monotonic()
    found, _ = filtered(routing, deployments("a"), max_tokens=5)
    assert len(found) == 1
    assert time.monotonic() - began > 0.049
