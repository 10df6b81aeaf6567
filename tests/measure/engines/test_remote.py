"""A server that somebody else runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import EngineError, EngineState, Serving
from qplan.measure.engines.process import Launch, ServerProcess, free_port, start_process
from qplan.measure.engines.remote import Remote, RemoteServer
from tests.measure.fake_server import fake_server


@pytest.fixture
def somebodys(scripted: Callable[..., Launch], tmp_path: Path) -> Iterator[ServerProcess]:
    """Start a server outside the adapter."""
    launch = scripted(metrics="sglang:num_running_reqs 2.0\n")
    with start_process(launch, folder=tmp_path / "theirs", deadline_s=30) as server:
        yield server


def serving(url: str, model: str = "tiny", **settings: str) -> Serving:
    return Serving(model, url, Quantization.parse("FP16"), settings=settings)


def start(asked: Serving, folder: Path, deadline_s: float = 10) -> RemoteServer:
    remote = Remote()
    assert remote.refusal(asked) is None
    return remote.start(asked, remote.prepare(asked, folder), folder, deadline_s=deadline_s)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_running_server_is_used_and_left_running(somebodys: ServerProcess, tmp_path: Path, api: str) -> None:
    with start(serving(f"{somebodys.endpoint.url}/v1", api=api), tmp_path) as server:
        assert server.endpoint.url == somebodys.endpoint.url
        assert server.endpoint.api == api
        assert server.version == "1.2.3"
        assert server.state() == EngineState(running=2.0)
        assert (server.pid, server.command, server.cpu_s(), server.last_lines()) == (None, (), None, ())
        server.check()
    somebodys.check()


def test_a_model_that_it_does_not_serve_is_named_with_those_that_it_does(
    somebodys: ServerProcess, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="serves tiny, not 'tinny'; did you mean 'tiny'"):
        start(serving(somebodys.endpoint.url, "tinny"), tmp_path)


def test_its_key_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This server answers completions with a stream only: getting so far takes the right key.
    with fake_server(api_key="secret") as url:
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        monkeypatch.setenv("THEIR_KEY", "secret")
        for settings, says in (({}, "401"), ({"api_key_env": "THEIR_KEY"}, "answered no JSON: data")):
            with pytest.raises(EngineError, match=says):
                start(serving(url, "fake", **settings), tmp_path, deadline_s=0.1)
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        with pytest.raises(EngineError, match="answered no JSON: data"):
            start(serving(url, "fake"), tmp_path, deadline_s=0.1)


def test_its_death_is_noticed(somebodys: ServerProcess, tmp_path: Path) -> None:
    server = start(serving(somebodys.endpoint.url), tmp_path)
    somebodys.stop()
    with pytest.raises(EngineError, match="Connection refused"):
        server.check()
    assert server.state() == EngineState()


def test_nobody_at_the_address_is_an_error_after_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not ready after 0\.1 s.*Connection refused"):
        start(serving(f"127.0.0.1:{free_port()}"), tmp_path, deadline_s=0.1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (serving("http://"), "weights: cannot read 'http://'"),
        (serving("http://host:99999999"), "cannot read"),
        (serving("http://host", apo="chat"), "no setting 'apo'; did you mean 'api'"),
        (serving("http://host", api="chatty"), "api is 'chatty'"),
        (serving("http://host", api_key_env="NO_SUCH_KEY"), "api_key_env is 'NO_SUCH_KEY'"),
    ],
)
def test_what_cannot_be_reached_is_refused_before(asked: Serving, says: str) -> None:
    assert says in (Remote().refusal(asked) or "")
