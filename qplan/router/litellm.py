"""A routing policy inside LiteLLM, for those who have that gateway already.

LiteLLM asks its callbacks which of a model's healthy deployments may serve a request, and tells them how it ended
(``litellm.integrations.custom_logger.CustomLogger``: `async_filter_deployments`, `async_log_success_event`,
`async_log_failure_event`; read in 1.106). :class:`PolicyRouting` answers with the one deployment that the online rule
chooses. Health, cooldowns, retries and keys stay LiteLLM's own.

A deployment says in its ``model_info`` which group of the policy it belongs to (``qplan_group``); a request may name
its class in its metadata (``qplan_class``).
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError
from qplan.core.policy import Policy
from qplan.router.clock import since_midnight_s
from qplan.router.files import read_policy
from qplan.router.settings import Settings
from qplan.solvers.routing.online import Choice, OnlineRule, ReplicaState, Request

GROUP, CLASS, TICKET = "qplan_group", "qplan_class", "qplan_ticket"
_BYTES_PER_TOKEN = 4
_FORGOTTEN_S = 900.0
_REST_S = 5.0


@dataclass(frozen=True, slots=True)
class _Flight:
    request_class: str
    choice: Choice
    state: ReplicaState
    tokens: float
    began_s: float


class PolicyRouting:
    """The online rule as a LiteLLM callback.

    Parameters
    ----------
    policy
        What it follows.
    clock
        Seconds that only go forward.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule, self._clock = OnlineRule(policy, clock() - since_midnight_s()), clock
        self._groups = {group.name: number for number, group in enumerate(policy.groups)}
        self._classes = tuple(one.name for one in policy.classes)
        self._states: dict[str, ReplicaState] = {}
        self._rests_until_s: dict[int, float] = {}
        self._flights: OrderedDict[str, _Flight] = OrderedDict()
        self._tickets = itertools.count(1)

    @property
    def states(self) -> Mapping[str, ReplicaState]:
        """What is known of each deployment, by its id."""
        return self._states

    async def async_filter_deployments(
        self,
        model: str,  # noqa: ARG002 - LiteLLM names what it hands over
        healthy_deployments: list[Any],
        messages: list[Any] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,  # noqa: ARG002
    ) -> list[Any]:
        """Return the one deployment that the policy chooses; those of no group are left to LiteLLM."""
        known = [one for one in healthy_deployments if _info(one).get(GROUP) in self._groups]
        if not known:
            return healthy_deployments
        given = request_kwargs if request_kwargs is not None else {}
        metadata = given.setdefault("metadata", {}) or {}
        name = metadata.get(CLASS)
        arrived_s = self._clock()
        request = Request(
            name if name in self._classes else self._classes[0],
            math.ceil(_prompt_bytes(messages, given) / _BYTES_PER_TOKEN),
            _limit(given),
            arrived_s=arrived_s,
        )
        while True:
            states = self._states_of(known)
            now_s = self._clock()
            choice = self._rule.choose(request, states, now_s)
            request = replace(request, asked_s=now_s)
            if choice.replica is not None or choice.wait_s is None:
                break
            await asyncio.sleep(choice.wait_s)  # a class that may wait for a better time
        if choice.replica is None:
            return healthy_deployments
        metadata[TICKET] = self._begin(request, choice, states[choice.replica])
        given["metadata"] = metadata
        return [known[choice.replica]]

    async def async_log_success_event(
        self,
        kwargs: Mapping[str, Any],
        response_obj: Any,
        start_time: Any,  # noqa: ARG002
        end_time: Any,
    ) -> None:
        """Take note that a request was answered, and learn from how long that took."""
        flight = self._end(kwargs)
        started, first = kwargs.get("api_call_start_time"), kwargs.get("completion_start_time")
        if flight is None or not isinstance(started, datetime) or not isinstance(first, datetime):
            return
        if not kwargs.get("stream") or not isinstance(end_time, datetime):
            return  # without a stream nobody saw the first token
        tokens = _completion_tokens(response_obj)
        tpot_s = (end_time - first).total_seconds() / (tokens - 1) if tokens > 1 else None
        self._rule.observe(flight.state, flight.choice, (first - started).total_seconds(), tpot_s)

    async def async_log_failure_event(
        self,
        kwargs: Mapping[str, Any],
        response_obj: Any,  # noqa: ARG002
        start_time: Any,  # noqa: ARG002
        end_time: Any,  # noqa: ARG002
    ) -> None:
        """Take note that a request failed: LiteLLM's next try is for another deployment."""
        flight = self._end(kwargs)
        if flight is not None:
            self._rule.take_back(flight.request_class, flight.state)
            self._rests_until_s[id(flight.state)] = self._clock() + _REST_S

    def _states_of(self, deployments: Sequence[Any]) -> list[ReplicaState]:
        """Return what is known of each; those that have just failed rest, unless all have."""
        states, now_s = [], self._clock()
        for info in map(_info, deployments):
            group = self._groups[info[GROUP]]
            state = self._states.setdefault(str(info.get("id")), ReplicaState(group=group))
            state.group, state.up = group, now_s >= self._rests_until_s.get(id(state), now_s)
            states.append(state)
        if not any(state.up for state in states):
            for state in states:
                state.up = True
        return states

    def _begin(self, request: Request, choice: Choice, state: ReplicaState) -> str:
        now_s = self._clock()
        while self._flights:  # of clients that went away LiteLLM may say nothing
            ticket, oldest = next(iter(self._flights.items()))
            if now_s - oldest.began_s < _FORGOTTEN_S:
                break
            self._land(self._flights.pop(ticket))
        ticket, tokens = str(next(self._tickets)), float(request.input_tokens)
        self._flights[ticket] = _Flight(request.request_class, choice, state, tokens, now_s)
        state.in_flight += 1
        state.waiting_tokens += tokens
        state.held_tokens += choice.expected_tokens
        return ticket

    def _end(self, kwargs: Mapping[str, Any]) -> _Flight | None:
        metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
        flight = self._flights.pop(str(metadata.get(TICKET)), None)
        if flight is not None:
            self._land(flight)
        return flight

    @staticmethod
    def _land(flight: _Flight) -> None:
        # LiteLLM does not say when the first token came before it says that all is over: prompts count until then.
        state = flight.state
        state.in_flight -= 1
        state.waiting_tokens = max(0.0, state.waiting_tokens - flight.tokens)
        state.held_tokens = max(0.0, state.held_tokens - flight.choice.expected_tokens)


def callback(policy: Path) -> Any:
    """Return a LiteLLM callback that follows the policy in a file; for ``litellm_settings: callbacks``.

    Raises
    ------
    InputError
        LiteLLM is missing, or the file is no policy.
    """
    try:
        base = importlib.import_module("litellm.integrations.custom_logger").CustomLogger
    except ImportError:
        raise InputError("LiteLLM is missing here: pip install 'litellm[proxy]'") from None
    routing = type("QplanRouting", (PolicyRouting, base), {})
    return routing(read_policy(policy))


def proxy_files(policy: Path, settings: Settings, model: str) -> dict[str, str]:
    """Return the files for ``litellm --config``, by name: its configuration, and the module of the callback.

    Keys of replicas stay in the environment; the configuration names the variables.
    """
    deployments = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"hosted_vllm/{one.model or model}",
                "api_base": f"{one.url}/v1",
                "api_key": f"os.environ/{one.api_key_env}" if one.api_key_env else "none",
            },
            "model_info": {"id": one.name, GROUP: one.group},
        }
        for one in settings.replicas
    ]
    configuration = {
        "model_list": deployments,
        "litellm_settings": {"callbacks": ["qplan_routing.routing"]},
        "router_settings": {"routing_strategy": "simple-shuffle", "num_retries": 2},
    }
    module = (
        '"""The routing policy, as a callback of LiteLLM."""\n\nfrom pathlib import Path\n\n'
        f"from qplan.router.litellm import callback\n\nrouting = callback(Path({str(policy.resolve())!r}))\n"
    )
    return {"config.yaml": _yaml(configuration), "qplan_routing.py": module}


def _yaml(document: object) -> str:
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def _info(deployment: Any) -> Mapping[str, Any]:
    info = deployment.get("model_info") if isinstance(deployment, Mapping) else None
    return info if isinstance(info, Mapping) else {}


def _prompt_bytes(messages: Sequence[Any] | None, given: Mapping[str, Any]) -> int:
    found = messages if messages is not None else given.get("prompt", given.get("input", ""))
    size = 0
    for item in found if isinstance(found, list) else [found]:
        content = item.get("content") if isinstance(item, Mapping) else item
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            size += len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
    return size


def _limit(given: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = given.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _completion_tokens(response: Any) -> int:
    usage = getattr(response, "usage", None)
    tokens = getattr(usage, "completion_tokens", 0)
    return tokens if isinstance(tokens, int) else 0
