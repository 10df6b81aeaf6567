#!/usr/bin/env python3
"""A program that behaves like a serving engine, in health and in every sickness that a test asks for.

It takes any engine's command line. What it does is told by the environment variable SCRIPTED_ENGINE, a JSON object:

flags           file that lists the flags of the real engine; others are refused as the real one would
start_s         seconds until it answers at all (0)
health          status of its health routes (200); "hang": accepted and never answered
fail            line to write before it ends with exit status 3 at the start
crash_after_s   seconds after the first completion until it ends with exit status 9
output          "sane" (default), "random", "repeat", "replacement", "empty", "error": what its completions are
ignore_sigterm  whether only SIGKILL ends it
family          file to write the process ids of its children to: a plain one, one in a session of its own, one that
                daemonised, and a zombie
metrics         text of its metrics route

A flag list has one flag a line: `--flag` for a switch, `--flag VALUE` for one that takes a value, `--flag VALUE...` for
one that takes several, `POSITIONAL` for each argument without a flag, `-x, --flag VALUE` for a short form, `#`
comments.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCRIPT = json.loads(os.environ.get("SCRIPTED_ENGINE", "{}"))
OUTPUTS = {
    "random": " Heart ially vest 喜 Cab otten \u0446\u0435 }).( sour lattice",
    "repeat": "!!!!!!!!!!!!",
    "replacement": "\ufffd\ufffd\ufffd \ufffd\ufffd",
    "empty": "",
}


def main() -> None:
    if "flags" in SCRIPT:
        refuse_unknown(sys.argv[1:], SCRIPT["flags"])
    say("scripted engine: starting")
    if "fail" in SCRIPT:
        say(SCRIPT["fail"])
        sys.exit(3)
    if SCRIPT.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "family" in SCRIPT:
        raise_family(SCRIPT["family"])
    time.sleep(SCRIPT.get("start_s", 0))
    server = Listener(("127.0.0.1", int(given("--port", "8000"))), Handler)
    say("scripted engine: listening")
    server.serve_forever()


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/health"):
            health = SCRIPT.get("health", 200)
            if health == "hang":
                time.sleep(3600)
            self.answer(health, "{}")
        elif self.path == "/metrics" and "metrics" in SCRIPT:
            self.answer(200, SCRIPT["metrics"])
        elif self.path == "/v1/models":
            self.answer(200, json.dumps({"data": [{"id": model_name()}]}))
        elif self.path == "/version":
            self.answer(200, json.dumps({"version": "1.2.3"}))
        else:
            self.answer(404, "no such route")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        output = SCRIPT.get("output", "sane")
        if output == "error":
            self.answer(200, json.dumps({"error": {"message": "the worker is gone"}}))
            return
        if asked["model"] != model_name():
            self.answer(404, json.dumps({"error": f"the model {asked['model']} does not exist"}))
            return
        prompt = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
        text = OUTPUTS.get(output, continuation(prompt))
        choice = {"text": text} if "prompt" in asked else {"message": {"content": text}}
        self.answer(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 8}}))
        if "crash_after_s" in SCRIPT:
            threading.Timer(SCRIPT["crash_after_s"], crash).start()

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def continuation(prompt: str) -> str:
    """Count on from the last number of the prompt."""
    numbers = re.findall(r"\d+", prompt)
    return f" {int(numbers[-1]) + 1}, {int(numbers[-1]) + 2}" if numbers else " and so on"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def crash() -> None:
    say("fatal error: CUDA error: an illegal memory access was encountered")
    os._exit(9)


def given(flag: str, default: str) -> str:
    for at, argument in enumerate(sys.argv):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag:
            return sys.argv[at + 1]
    return default


def model_name() -> str:
    named = given("--served-model-name", given("--model-path", given("--model", "")))
    positional = [argument for argument in sys.argv[1:] if not argument.startswith("-") and argument != "serve"]
    return named or (os.path.basename(positional[0]) if positional else "scripted")


def raise_family(path: str) -> None:
    plain = subprocess.Popen(["sleep", "600"])
    own_session = subprocess.Popen(["sleep", "600"], start_new_session=True)
    daemon = subprocess.run(
        ["setsid", "-f", "sh", "-c", "echo $$; exec sleep 600 >&-"], stdout=subprocess.PIPE, check=True
    )
    zombie = os.fork()  # never waited for
    if zombie == 0:
        os._exit(0)
    with open(f"{path}.part", "w") as file:
        json.dump([plain.pid, own_session.pid, int(daemon.stdout), zombie], file)
    os.replace(f"{path}.part", path)


def refuse_unknown(arguments: list[str], path: str) -> None:
    """End with exit status 2, as argparse does, on a flag or a value that the real engine would not take."""
    takes: dict[str, str] = {}
    positionals = 0
    with open(path) as file:
        for line in file:
            names, _, value = line.partition("#")[0].strip().replace(", ", ",").partition(" ")
            if names == "POSITIONAL":
                positionals += 1
            elif names:
                takes.update(dict.fromkeys(names.split(","), value))
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            positionals -= 1
            if positionals < 0:
                refuse(f"unrecognized arguments: {argument}")
            continue
        flag, inline, _ = argument.partition("=")
        if flag not in takes:
            refuse(f"unrecognized arguments: {argument}")
        if not takes[flag]:
            if inline:
                refuse(f"argument {flag}: ignored explicit argument")
            continue
        values = [inline] if inline else []
        while left and not left[0].startswith("--") and (takes[flag].endswith("...") or not values):
            values.append(left.pop(0))
        if not values:
            refuse(f"argument {flag}: expected one argument")


def refuse(why: str) -> None:
    say(f"error: {why}")
    sys.exit(2)


if __name__ == "__main__":
    main()
