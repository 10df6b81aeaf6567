"""The text of ``--help``: prose is left to the width of the terminal, examples keep their lines."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from qplan.cli.app import app


def text_of(group: str, command: str) -> str:
    groups: Any = get_command(app)
    return str(groups.commands[group].commands[command].help)


@pytest.mark.parametrize(
    ("group", "command", "prose"),
    [
        ("tune", "run", "Started several times on one storage, also on other machines, workers share the study"),
        ("route", "serve", "One that drains or sleeps gets no requests; it serves again once its health check is good"),
    ],
)
def test_a_sentence_is_broken_by_the_terminal_alone(group: str, command: str, prose: str) -> None:
    assert prose in text_of(group, command)


def test_an_example_keeps_its_lines() -> None:
    lines = text_of("route", "serve").splitlines()
    assert '  - {name: local, url: "http://127.0.0.1:8000", group: h100-fp8, gpus: [0, 1]}' in lines
    assert max(len(line) for line in lines if line.startswith("  - ")) <= 78  # none is broken on 80 columns
