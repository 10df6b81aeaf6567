"""Clients that know nothing of the router: OpenAI's, and this project's own load client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from qplan.measure.endpoint import Endpoint
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.run import run_load
from tests.router.live import Replica, Router, ask, fleet, get


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    folder = tmp_path_factory.mktemp("router")
    (folder / "keys").write_text("the-key\n")
    with fleet(folder, [Replica("a", itl_s=0.001)], extra="api_keys_file: keys\n") as started:
        yield started


@pytest.fixture
def client(router: Router) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="the-key", max_retries=0) as made:
        yield made


def test_openai_chat(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="m", messages=messages, max_tokens=3)
    assert len(str(whole.choices[0].message.content).split()) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 3
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="m", messages=messages, max_tokens=3, stream=True, stream_options=options, tools=tools
        )
    )
    assert [chunk.choices[0].delta.content for chunk in chunks[:3]] == ["a:2:0 ", "a:2:1 ", "a:2:2 "]
    assert chunks[-1].usage is not None


def test_openai_completions_and_models(client: openai.OpenAI) -> None:
    assert client.completions.create(model="m", prompt="hello", max_tokens=3).choices[0].text
    chunks = list(client.completions.create(model="m", prompt=[1, 2], max_tokens=3, stream=True))
    assert len([chunk for chunk in chunks if chunk.choices[0].text]) == 3
    assert [model.id for model in client.models.list()] == ["m"]


def test_openai_errors_have_their_types(client: openai.OpenAI, router: Router) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="m", messages=[])
    wrong = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        wrong.models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="m", input="x")


def test_the_load_client(router: Router) -> None:
    schedule = np.linspace(0.0, 0.3, 30)
    for api in ("chat", "completions"):
        endpoint = Endpoint(router.url, "m", api, "the-key")
        found = run_load(endpoint, schedule, [Prompt("one two", 2, 4)], timeout_s=20)
        assert found.ok.all()
        assert set(found.output_tokens) == {4}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        ("Basic the-key", 401),
        ("Bearer the-key", 200),
        ("bearer  the-key", 200),
    ],
)
def test_keys(router: Router, given: str | None, status: int) -> None:
    fields = {"Authorization": given} if given else {}
    assert ask(router.url, fields)[0] == status
    assert get(f"{router.url}/v1/models", None, fields)[0] == status
    assert get(f"{router.url}/health")[0] == 200
    assert "the-key" not in router.log
