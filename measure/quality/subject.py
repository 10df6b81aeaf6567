"""The server whose quality is judged: it is asked, and its scores of given texts are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, TypeVar

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.blocking_http import fetch_json
from qplan.measure.engines.contract import Server
from qplan.measure.quality.results import Item
from qplan.measure.quality.scoring import Scorer, open_scorer

REQUEST_TIMEOUT_S = 180.0
_HEARTBEAT_S = 0.5

Work = TypeVar("Work")


class Progress(Protocol):
    """Told how far a task is; what it raises ends the task."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """`done` of `total` items of `task` are finished."""


class Subject:
    """A server being judged; a context manager that ends its scorer.

    Parameters
    ----------
    served
        The server, or where one answers.
    api
        How it is asked, whatever the endpoint's own API: ``chat`` for a model tuned to follow instructions,
        ``completions`` for any other.
    keep
        Folder for the whole distributions of a baseline, so that KL divergence from it can be had later.
    concurrency
        Requests in flight.
    seed
        Seed of every request.
    progress
        Called after each item, and now and then before it.
    """

    def __init__(
        self,
        served: Server | Endpoint,
        *,
        api: str = "chat",
        keep: Path | None = None,
        concurrency: int = 4,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.endpoint = replace(served if isinstance(served, Endpoint) else served.endpoint, api=api)
        self.keep = keep
        self.seed = seed
        self._served = served
        self._concurrency = concurrency
        self._progress = progress
        self._scorer: Scorer | str | None = None

    def __enter__(self) -> Subject:
        """Return the subject."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the scorer."""
        if self._scorer is not None and not isinstance(self._scorer, str):
            self._scorer.close()
            self._scorer = None

    def scorer(self) -> Scorer | str:
        """Return what scores given texts, or the reason why nothing does; found out once."""
        if self._scorer is None:
            self._scorer = open_scorer(self._served)
        return self._scorer

    def ask(
        self, prompt: str, max_tokens: int, *, temperature: float = 0.0, seed: int = 0, stop: Sequence[str] = ()
    ) -> str:
        """Return what the model writes after `prompt`.

        Raises
        ------
        MeasurementError
            The server did not answer, or not with text.
        """
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": self.seed + seed,
        }
        if stop:
            body["stop"] = list(stop)
        if self.endpoint.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        route = self.endpoint.route.removeprefix(self.endpoint.url)
        answer = fetch_json(self.endpoint, route, timeout_s=REQUEST_TIMEOUT_S, body=body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.endpoint.api == "chat" else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise MeasurementError(f"{self.endpoint.route} answered without a choice") from None
        if not isinstance(text, str):
            raise MeasurementError(f"{self.endpoint.route} answered without text")
        return text

    def judge(self, task: str, work: Sequence[Work], judge: Callable[[Work], Item]) -> tuple[Item, ...]:
        """Judge items side by side, in order.

        Progress is told twice a second even where nothing is finished; what it raises ends this at once, without
        asking the rest and without waiting for a server that keeps silent.
        """
        futures = [Future[Item]() for _ in work]
        waiting = deque(zip(work, futures, strict=True))
        for _ in range(min(self._concurrency, len(futures))):
            Thread(target=_judge_waiting, args=(waiting, judge), name="qplan-judge", daemon=True).start()
        try:
            return tuple(self._result(task, place, futures) for place in range(len(futures)))
        finally:
            waiting.clear()

    def _result(self, task: str, place: int, futures: Sequence[Future[Item]]) -> Item:
        while not wait(futures[place : place + 1], _HEARTBEAT_S).done:
            self.tell(task, place, len(futures))
        item = futures[place].result()
        self.tell(task, place + 1, len(futures))
        return item

    def follow(self, task: str, work: Sequence[Work]) -> Iterator[Work]:
        """Yield each of `work`, telling progress when the next is asked for."""
        for done, one in enumerate(work, 1):
            yield one
            self.tell(task, done, len(work))

    def tell(self, task: str, done: int, total: int) -> None:
        """Tell progress."""
        if self._progress is not None:
            self._progress(task, done, total)


def _judge_waiting(waiting: deque[tuple[Work, Future[Item]]], judge: Callable[[Work], Item]) -> None:
    """Judge what waits until nothing does; an error is the result of its item."""
    while True:
        try:
            one, future = waiting.popleft()
        except IndexError:
            return
        try:
            future.set_result(judge(one))
        except BaseException as error:
            future.set_exception(error)
