"""Log-probabilities of given text, from whoever can give them.

Three ways, tried in this order:

- a llama.cpp server of ours: its weights file and KV-cache types are loaded once more in a child process
  (:mod:`qplan.measure.quality.llamacpp_scores`); every token's whole distribution, hence exact KL divergence;
- a server that scores prompts: ``prompt_logprobs`` (vLLM) or ``echo`` with ``logprobs`` (SGLang); the log-probability
  of every token is exact, of its alternatives the :data:`TOP` most likely are known, which bounds KL divergence from
  below;
- else nobody: :func:`open_scorer` says why.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.blocking_http import fetch, fetch_json
from qplan.measure.engines.contract import Server

TOP = 20
"""Alternatives asked of a server: as many as vLLM gives unless its command has a higher ``--max-logprobs``."""

REQUEST_TIMEOUT_S = 300.0

_LLAMACPP_SERVER = "qplan.measure.engines.llamacpp_server"
_LLAMACPP_FLAGS = ("--cache-type-k", "--cache-type-v", "--flash-attn")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model thinks of a text, token by token; the first token has no score.

    Attributes
    ----------
    tokens
        Scored tokens, by id or by spelling, whichever the server gives.
    logprobs
        Log-probability of each given all tokens before it, nats.
    top1
        Most probable token in the place of each.
    top
        Log-probability of the most probable tokens in the place of each, by token; ``None`` where `distributions` has
        them all.
    distributions
        NumPy file with the whole distributions, where they were asked for: ``(tokens, vocabulary)``, ``float16``.
    """

    tokens: tuple[int | str, ...]
    logprobs: tuple[float, ...]
    top1: tuple[int | str, ...]
    top: tuple[Mapping[str, float], ...] | None = None
    distributions: Path | None = None


class Scorer(Protocol):
    """Gives log-probabilities of given text."""

    whole: bool
    """Whether it can save whole distributions."""

    def score(self, text: str, save: Path | None = None) -> TokenScores:
        """Score the tokens of `text`; `save` names the file that whole distributions go to.

        Raises
        ------
        MeasurementError
            The text is too long, or who answers has died.
        """

    def close(self) -> None:
        """End what was started."""


def open_scorer(served: Server | Endpoint) -> Scorer | str:
    """Return what scores texts as `served` would, or the reason why nothing does.

    Raises
    ------
    MeasurementError
        Nobody answers at that address.
    """
    endpoint = served if isinstance(served, Endpoint) else served.endpoint
    command = () if isinstance(served, Endpoint) else served.command
    if _LLAMACPP_SERVER in command:
        return LlamaCppScorer.of(command)
    fetch(endpoint, "/v1/models", timeout_s=REQUEST_TIMEOUT_S)  # a dead server is an error, not a reason
    top = int(dict(pairwise(command)).get("--max-logprobs", TOP))
    why = ""
    for scorer in (PromptLogprobs(endpoint, top), Echo(endpoint)):
        try:
            scorer.score("One, two, three.")
        except MeasurementError as error:
            why = str(error)
            continue
        return scorer
    return f"the server gives no log-probabilities of given tokens, neither by prompt_logprobs nor by echo: {why}"


class LlamaCppScorer:
    """A child process that loads what a llama.cpp server loads; started at the first text.

    Parameters
    ----------
    gguf
        Weights file.
    flags
        Flags of the server that change what it computes: ``--cache-type-k``, ``--cache-type-v``, ``--flash-attn``.
    """

    whole = True

    def __init__(self, gguf: str, flags: tuple[str, ...] = ()) -> None:
        self._command = [sys.executable, "-m", "qplan.measure.quality.llamacpp_scores", "--model", gguf, *flags]
        self._command += ["--threads", str(max(1, (os.cpu_count() or 2) // 2))]  # threads that wait for a core spin
        self._child: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    @classmethod
    def of(cls, command: tuple[str, ...]) -> LlamaCppScorer:
        """Read weights and flags from the command that started a server."""
        given = dict(pairwise(command))
        flags = [word for flag in _LLAMACPP_FLAGS if flag in given for word in (flag, given[flag])]
        return cls(given["--model"], tuple(flags))

    def score(self, text: str, save: Path | None = None) -> TokenScores:
        """Score the tokens of `text`."""
        answer = self._request({"text": text, "save": str(save) if save else None})
        return TokenScores(tuple(answer["tokens"]), tuple(answer["logprobs"]), tuple(answer["top1"]), None, save)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._child is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the child
            self._child = subprocess.Popen(  # noqa: S603 - arguments of our own
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
            try:
                self._read()
            except MeasurementError:
                self.close()
                raise
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return answer

    def _death(self) -> MeasurementError:
        assert self._child is not None
        assert self._errors is not None
        code = self._child.wait()
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        self.close()
        return MeasurementError(f"scoring by llama.cpp ended with code {code}: {' / '.join(lines[-4:-1])}")


class PromptLogprobs:
    """A server that answers ``prompt_logprobs``, as vLLM does, with the `top` most probable tokens."""

    whole = False

    def __init__(self, endpoint: Endpoint, top: int = TOP) -> None:
        self._endpoint = endpoint
        self._top = top

    def score(self, text: str, save: Path | None = None) -> TokenScores:  # noqa: ARG002 - never asked to save
        """Score the tokens of `text`."""
        request = {"prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": self._top}
        request["return_token_ids"] = True
        choice = _complete(self._endpoint, request)
        with _known_form(self._endpoint):
            places, tokens = choice.get("prompt_logprobs"), choice.get("prompt_token_ids")
            if not places or not all(places[1:]):
                raise MeasurementError(f"{self._endpoint.url} gave no prompt_logprobs")
            places = [{key: float(entry["logprob"]) for key, entry in place.items()} for place in places[1:]]
            # vLLM puts the prompt's own token first; ids are given by version 0.10.2 and later.
            own = [str(token) for token in tokens[1:]] if tokens else [next(iter(place)) for place in places]
            return _ranked(tuple(own), places)

    def close(self) -> None:
        """Nothing was started."""


class Echo:
    """A server that repeats the prompt with log-probabilities: ``echo`` and ``logprobs`` of the completions API."""

    whole = False

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def score(self, text: str, save: Path | None = None) -> TokenScores:  # noqa: ARG002 - never asked to save
        """Score the tokens of `text`."""
        request = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": TOP}
        choice = _complete(self._endpoint, request)
        with _known_form(self._endpoint):
            given = choice.get("logprobs") or {}
            tokens, logprobs, top = (given.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
            # One token is generated behind the prompt. A server that ignores `echo` gives that one alone.
            if len(tokens) < 3 or not "".join(tokens[:-1]).endswith(text[-1:]) or None in logprobs[1:]:
                raise MeasurementError(f"{self._endpoint.url} gave no log-probabilities of the prompt")
            places = [dict(place or {}) for place in top[1:-1]]
            for token, logprob, place in zip(tokens[1:-1], logprobs[1:-1], places, strict=True):
                place[token] = logprob
            return _ranked(tuple(tokens[1:-1]), places)

    def close(self) -> None:
        """Nothing was started."""


@contextmanager
def _known_form(endpoint: Endpoint) -> Iterator[None]:
    """Turn what goes wrong in reading an answer of another form into an error that says so."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
        raise MeasurementError(f"{endpoint.url} answered log-probabilities in an unknown form") from None


def _complete(endpoint: Endpoint, request: dict[str, Any]) -> dict[str, Any]:
    """Post to the completions route, whatever the API of the endpoint, and return the first choice."""
    answer = fetch_json(
        endpoint, "/v1/completions", timeout_s=REQUEST_TIMEOUT_S, body={"model": endpoint.model, **request}
    )
    try:
        choice: dict[str, Any] = answer["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise MeasurementError(f"{endpoint.url}/v1/completions answered without choices") from None
    return choice


def _ranked(tokens: tuple[str, ...], places: list[dict[str, float]]) -> TokenScores:
    return TokenScores(
        tokens=tokens,
        logprobs=tuple(place[token] for token, place in zip(tokens, places, strict=True)),
        top1=tuple(max(place, key=lambda token: place[token]) for place in places),
        top=tuple({token: round(logprob, 5) for token, logprob in place.items()} for place in places),
    )
