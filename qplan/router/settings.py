"""The router's file: which replicas there are, how they belong to the policy's groups, and what clients may ask.

::

    replicas:
      - {name: h100-0, url: "http://10.0.0.1:8000", group: h100-fp8}
      - name: a100-0
        url: https://gpu7.example:8443
        group: a100-bf16
        model: llama-3.1-8b-instruct       # its name for the model, where that is not the one clients ask for
        api_key_env: A100_KEY              # environment variable with the key that it asks for
        in_flight: 64                      # most requests at once
        gpus: [0, 1]                       # by index or UUID, of a replica on this machine: its energy is measured
        sleep: vllm                        # let the policy put it to sleep (vllm serve --enable-sleep-mode)
      - name: a100-1
        url: https://gpu8.example:8443
        group: a100-bf16
        sleep: ssh gpu8 systemctl stop vllm               # or by a command, or by a URL to post to
        wake: ssh gpu8 systemctl start vllm
    api_keys_file: keys.txt                # one key a line; without it the router asks for none
    limits: {body: 4MiB, queue: 1000, first_token: 60s}

Read anew whenever it changes; keys are never printed.
"""

from __future__ import annotations

import hmac
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path

from qplan.core.errors import InputError, nearest
from qplan.core.policy import Policy, PolicyGroup
from qplan.measure.endpoint import Endpoint
from qplan.profiles.yamlfile import Entry, read_yaml_file

_REPLICA_KEYS = ("name", "url", "group", "model", "api_key_env", "in_flight", "gpus", "sleep", "wake")
_KEYS = ("replicas", "api_keys_file", "limits")
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class SleepOrders:
    """How a replica is put to sleep and woken.

    Attributes
    ----------
    sleep, wake
        A path of the replica or a whole URL, which are posted to, else a command.
    asleep
        Path of the replica that says whether it sleeps; empty where only its health check can tell.
    """

    sleep: str
    wake: str
    asleep: str = ""


VLLM = SleepOrders("/sleep?level=1", "/wake_up", "/is_sleeping")
"""Of vLLM with ``--enable-sleep-mode`` and ``VLLM_SERVER_DEV_MODE=1``: weights in the host's memory, no KV cache."""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where one replica is, and what it is in the policy.

    Attributes
    ----------
    url
        Base address without ``/v1``.
    group
        Name of the policy's group.
    model
        Its name for the model; empty for the name that clients ask for.
    api_key, api_key_env
        Bearer token that it asks for, and the environment variable that holds it.
    in_flight
        Most requests under way there at once.
    gpus
        Its GPUs by NVML index or UUID; empty where they are unknown.
    sleep
        How it is put to sleep; ``None`` where it is not to be.
    """

    name: str
    url: str
    group: str
    in_flight: int
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str = ""
    gpus: tuple[str, ...] = ()
    sleep: SleepOrders | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process of the router takes upon itself; times in seconds, sizes in bytes.

    `connections` and `head` are those at the start; the others follow a reload.

    Attributes
    ----------
    body
        Largest body of a request.
    bodies
        All bodies that are held at once.
    connections
        Connections of clients; more are refused.
    queue
        Requests that wait for a replica; more are answered 429.
    wait
        Longest wait for a replica.
    head
        Longest time in which a client sends the head of a request, and a connection may idle.
    upload
        Longest time in which a client sends a body.
    connect
        Longest time in which a replica takes a connection.
    first_token
        Longest time from sending to the first event of a stream; afterwards another replica is asked.
    answer
        The same for the whole of an answer that is not streamed.
    stall
        Longest silence inside a stream, and longest time in which a client reads nothing of one.
    attempts
        Replicas that are asked in turn, while nothing of an answer was sent to the client.
    health
        Time between checks of a replica.
    drain
        Longest time that requests under way are given after SIGTERM.
    """

    body: int = 4 * 2**20
    bodies: int = 256 * 2**20
    connections: int = 10_000
    queue: int = 1_000
    wait: float = 30.0
    head: float = 20.0
    upload: float = 30.0
    connect: float = 2.0
    first_token: float = 60.0
    answer: float = 600.0
    stall: float = 60.0
    attempts: int = 3
    health: float = 1.0
    drain: float = 60.0


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Keys of clients, kept as digests; without any, everyone may ask.

    Attributes
    ----------
    digests
        SHA-256 of each key.
    """

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    def admit(self, authorization: str | None) -> bool:
        """Whether this ``Authorization`` field holds one of the keys; a wrong one takes as long."""
        if not self.digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        known = False
        for digest in self.digests:
            known |= hmac.compare_digest(given, digest)
        return known and scheme.casefold() == "bearer"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the router's file says."""

    replicas: tuple[ReplicaAddress, ...]
    keys: ApiKeys = ApiKeys()
    limits: Limits = Limits()


def read_settings(path: Path, policy: Policy) -> Settings:
    """Read the router's file; groups are checked against `policy`.

    Raises
    ------
    InputError
        It cannot be read, or does not fit the policy; with the line.
    """
    root, _ = read_yaml_file(path)
    entries = root.mapping(_KEYS)
    if "replicas" not in entries:
        raise InputError(f"{path}: no replicas; expected a list of them, each with a name and a url")
    replicas = tuple(_replica(entry, policy) for entry in entries["replicas"].listed())
    _check_names(replicas, path)
    keys = _keys(entries["api_keys_file"], path.parent) if "api_keys_file" in entries else ApiKeys()
    return Settings(replicas, keys, _limits(entries["limits"]) if "limits" in entries else Limits())


def _check_names(replicas: tuple[ReplicaAddress, ...], path: Path) -> None:
    names = [replica.name for replica in replicas]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two replicas are named '{name}'")


def _replica(entry: Entry, policy: Policy) -> ReplicaAddress:
    known = entry.mapping(_REPLICA_KEYS)
    if missing := [name for name in ("name", "url") if name not in known]:
        raise InputError(f"{entry.where}: a replica without {' and '.join(missing)}")
    key, variable = None, ""
    if "api_key_env" in known:
        variable = known["api_key_env"].string()
        key = os.environ.get(variable)
        if key is None or not key.isprintable():
            raise InputError(f"{known['api_key_env'].where}: the environment has no such key in {variable}")
    group = _group(known.get("group"), entry, policy)
    url = known["url"].read(lambda text, where: Endpoint.parse(text, "", where=where).url)
    model = known["model"].string() if "model" in known else ""
    # What the engine runs at once, and as much again that waits there: the policy counts both.
    most = known["in_flight"].count(1, 100_000) if "in_flight" in known else 2 * group.max_sequences
    gpus = tuple(map(_gpu, known["gpus"].listed())) if "gpus" in known else ()
    name, sleep = known["name"].string(), _sleep(known, entry)
    return ReplicaAddress(name, url, group.name, most, model, key, variable, gpus, sleep)


def _gpu(entry: Entry) -> str:
    text = entry.string()
    if not text.isdecimal() and not text.startswith("GPU-"):
        raise entry.wrong("a GPU's index, or its UUID that begins with GPU-")
    return text


def _sleep(known: Mapping[str, Entry], entry: Entry) -> SleepOrders | None:
    if "sleep" not in known and "wake" not in known:
        return None
    orders = {name: _order(known[name]) for name in ("sleep", "wake") if name in known}
    if orders == {"sleep": "vllm"}:
        return VLLM
    if len(orders) < 2:
        raise InputError(f"{entry.where}: {next(iter(orders))} alone; expected both sleep and wake, or sleep: vllm")
    return SleepOrders(**orders)


def _order(entry: Entry) -> str:
    """Return a URL to post to, or a command that can be run."""
    text = entry.string("vllm, a URL or a command")
    if text.startswith(("http://", "https://")):
        return text
    try:
        shlex.split(text)
    except ValueError:
        raise entry.wrong("a command whose quotes are closed") from None
    return text


def _group(named: Entry | None, entry: Entry, policy: Policy) -> PolicyGroup:
    names = [group.name for group in policy.groups]
    if named is None and len(names) == 1:
        return policy.groups[0]
    name = named.string() if named is not None else ""
    if name not in names:
        said = f"the unknown group '{name}'" if name else "no group"
        where = (named or entry).where
        raise InputError(f"{where}: {said}; expected one of the policy's: {', '.join(names)}{nearest(name, names)}")
    return policy.groups[names.index(name)]


def _keys(entry: Entry, folder: Path) -> ApiKeys:
    path = folder / entry.string()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{entry.where}: cannot read the keys in {path}: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"{entry.where}: {path} holds no key; expected one a line")
    return ApiKeys(tuple(sha256(key.encode()).digest() for key in keys))


def _limits(entry: Entry) -> Limits:
    kinds = {one.name: one.type for one in fields(Limits)}
    given: dict[str, int | float] = {}
    for name, value in entry.mapping(kinds).items():
        if kinds[name] == "float":
            given[name] = value.duration()
        elif name in ("body", "bodies"):
            given[name] = _size(value)
        else:
            given[name] = value.count(1, 1_000_000)
    return Limits(**given)  # type: ignore[arg-type]


def _size(entry: Entry) -> int:
    text = entry.string()
    for unit in sorted(_SIZES, key=len, reverse=True):
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.isdecimal() and int(number):
            return int(number) * _SIZES[unit]
    if text.isdecimal() and int(text):
        return int(text)
    raise entry.wrong("a size such as 4MiB")
