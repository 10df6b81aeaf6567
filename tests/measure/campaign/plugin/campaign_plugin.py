"""An engine that campaigns' tests install as a plug-in: a real process that streams, and fails as it is told.

Settings: ``fail`` is what it writes before it ends at the start; ``crash-after`` ends it with its n-th streamed
request, once for each file that ``crash-marker`` names; ``token-s`` is the time of one token and ``slots``
how many requests are served at once; ``mute`` refuses; ``work`` is a file that gets the joules used so far, as a
double, of which a prompt's token takes ``prefill-j`` and a generated one, after the first, ``decode-j``.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process


class Scripted:
    name = "scripted"

    def version(self) -> str:
        return "1.0"

    def refusal(self, serving: Serving) -> str | None:
        return "it was told to" if serving.settings.get("mute") else None

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        return Prepared("made-up", 8.5, "made up")

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, serving.devices))}
        script = json.dumps(dict(serving.settings))
        launch = Launch((sys.executable, __file__, PORT, script), serving.model, "1.0", devices, metrics=None)
        return start_process(launch, folder=folder, deadline_s=deadline_s)


class Handler(BaseHTTPRequestHandler):
    streamed = 0
    script: dict[str, Any]
    slots: threading.Semaphore
    used_j = 0.0
    using = threading.Lock()

    def do_GET(self) -> None:
        self.reply("application/json", json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        usage = {"prompt_tokens": len(asked["prompt"].split()), "completion_tokens": asked["max_tokens"]}
        if not asked.get("stream"):
            last = int((re.findall(r"\d+", asked["prompt"]) or ["1"])[-1])
            self.reply(
                "application/json", json.dumps({"choices": [{"text": f" {last + 1}, {last + 2},"}], "usage": usage})
            )
            return
        if asked["max_tokens"] > 1:
            self.maybe_crash()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with self.slots:
            for token in range(asked["max_tokens"]):
                time.sleep(self.script.get("token-s", 0.002))
                self.use(
                    self.script.get("decode-j", 0)
                    if token
                    else usage["prompt_tokens"] * self.script.get("prefill-j", 0)
                )
                reason = "length" if token == asked["max_tokens"] - 1 else None
                self.event({"choices": [{"text": f" {token}", "finish_reason": reason}]})
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def maybe_crash(self) -> None:
        Handler.streamed += 1
        marker = self.script.get("crash-marker")
        if Handler.streamed == self.script.get("crash-after") and not (marker and Path(marker).exists()):
            if marker:
                Path(marker).touch()
            say("fatal error: an illegal memory access was encountered")
            os._exit(9)

    def use(self, joules: float) -> None:
        if "work" in self.script:
            with self.using, Path(self.script["work"]).open("r+b") as file:
                Handler.used_j += joules
                file.write(struct.pack("d", Handler.used_j))

    def event(self, document: object) -> None:
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())

    def reply(self, kind: str, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    Handler.script = json.loads(sys.argv[2])
    if "fail" in Handler.script:
        say(Handler.script["fail"])
        sys.exit(3)
    Handler.slots = threading.Semaphore(Handler.script.get("slots", 100))
    Listener(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
