"""``qplan route serve`` says in one line what is wrong; serving itself is tested in tests/router."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qplan.cli.app import app
from qplan.core.errors import InputError
from tests.router.live import write_policy

REPLICAS = "replicas:\n- {name: a, url: http://127.0.0.1:9}\n"


def refused(policy: Path, replicas: str, *options: str) -> str:
    path = policy.with_name("replicas.yaml")
    path.write_text(replicas)
    result = CliRunner().invoke(app, ["route", "serve", str(policy), "--replicas", str(path), *options])
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_a_policy_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text("[]")
    assert "expected a policy of qplan route solve" in refused(path, REPLICAS)
    path.write_text("{")
    assert "cannot read it as JSON" in refused(path, REPLICAS)


def test_replicas_that_do_not_fit_the_policy(tmp_path: Path) -> None:
    said = refused(write_policy(tmp_path), "replicas:\n- {name: a, url: h, group: other}\n")
    assert "unknown group 'other'; expected one of the policy's: g" in said


def test_files_for_litellm_go_into_a_folder(tmp_path: Path) -> None:
    policy, replicas = write_policy(tmp_path), tmp_path / "replicas.yaml"
    replicas.write_text("replicas:\n- {name: a, url: h, group: g}\n")
    command = ["route", "litellm", str(policy), "--replicas", str(replicas), "-o"]
    result = CliRunner().invoke(app, [*command, str(replicas)])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == f"--out: cannot write into {replicas}: File exists; expected a folder"
    assert CliRunner().invoke(app, [*command, str(tmp_path / "gateway")]).exit_code == 0
    assert (tmp_path / "gateway" / "config.yaml").is_file()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_port_that_is_taken(tmp_path: Path, processes: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(write_policy(tmp_path), REPLICAS, "--port", port, "--processes", processes)
    assert said.startswith(f"cannot serve on 127.0.0.1:{port}: ")
    assert "in use" in said
