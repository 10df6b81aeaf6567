"""The router's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.router.settings import VLLM, ApiKeys, Settings, SleepOrders, read_settings
from tests.router.live import make_policy


def read(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "replicas.yaml"
    path.write_text(text)
    return read_settings(path, make_policy())


def test_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    (tmp_path / "keys").write_text("one\n\n# two\nthree\n")
    found = read(
        tmp_path,
        "replicas:\n- {name: a, url: http://h:1/v1, group: g, model: x, api_key_env: KEY, in_flight: 3}\n"
        "- {name: b, url: h:2}\napi_keys_file: keys\nlimits: {body: 2MiB, queue: 5, first_token: 2min}\n",
    )
    first, second = found.replicas
    assert (first.url, first.model, first.api_key, first.in_flight) == ("http://h:1", "x", "secret", 3)
    assert (second.url, second.group, second.api_key) == ("http://h:2", "g", None)
    assert second.in_flight == 2 * make_policy().groups[0].max_sequences
    assert (found.limits.body, found.limits.queue, found.limits.first_token) == (2 * 2**20, 5, 120.0)
    assert found.keys.admit("Bearer three")
    assert not found.keys.admit("Bearer # two")
    assert "secret" not in repr(found)
    assert "one" not in repr(found.keys)


def test_gpus_and_orders_to_sleep(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "replicas:\n- {name: a, url: h, gpus: [0, GPU-ab], sleep: vllm}\n"
        "- {name: b, url: h, gpus: 1, sleep: 'ssh h stop', wake: 'http://h/start?x=1'}\n- {name: c, url: h}\n",
    ).replicas
    assert [one.gpus for one in found] == [("0", "GPU-ab"), ("1",), ()]
    assert found[0].sleep is VLLM
    assert found[1].sleep == SleepOrders("ssh h stop", "http://h/start?x=1")
    assert found[2].sleep is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limits: {}", "no replicas"),
        ("replicas:\n- {name: a}", ":2: replicas\\[0\\]: a replica without url"),
        ("replicas:\n- {name: a, url: 'h t'}", "cannot read 'h t'"),
        ("replicas:\n- {name: a, url: 'http://key@h'}", "a key belongs in the environment"),
        ("replicas:\n- {name: a, url: h, group: gg}", "unknown group 'gg'.*did you mean 'g'"),
        ("replicas:\n- {name: a, url: h, api_key_env: NOT_THERE}", "no such key in NOT_THERE"),
        ("replicas:\n- {name: a, url: h}\n- {name: a, url: i}", "two replicas are named 'a'"),
        ("replicas:\n- {name: a, url: h, gpus: [MIG-1]}", "found 'MIG-1'; expected a GPU's index"),
        ("replicas:\n- {name: a, url: h, sleep: stop}", ":2: replicas\\[0\\]: sleep alone; expected both"),
        ("replicas:\n- {name: a, url: h, wake: start}", "wake alone; expected both"),
        ("replicas:\n- {name: a, url: h, sleep: 'a \"b', wake: c}", "whose quotes are closed"),
        ("replicas:\n- {name: a, url: h, weight: 3}", "unknown key 'weight'"),
        ("replicas:\n- {name: a, url: h}\nlimits: {body: 4mb}", "expected a size such as 4MiB"),
        ("replicas:\n- {name: a, url: h}\nlimits: {wait: 0s}", "more than 0"),
        ("replicas:\n- {name: a, url: h}\napi_keys_file: nowhere", "cannot read the keys"),
        ("replicas:\n- {name: a, url: h}\napi_keys_file: empty", "holds no key"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(InputError, match=said):
        read(tmp_path, text)


def test_without_keys_everyone_may_ask() -> None:
    assert ApiKeys().admit(None)
