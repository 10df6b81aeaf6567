"""`qplan profiles findings`, `heldout` and `requests`: what they refuse, each in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qplan.cli import main

Fails = Callable[..., str]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that is to end with 2; returns the one line that it says."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["qplan", "profiles", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        line = capsys.readouterr().err.strip()
        assert len(line.splitlines()) == 1, line
        return line

    return run


def test_findings_refuse_a_figure_of_an_unknown_kind(fails: Fails, tmp_path: Path) -> None:
    assert "expected a name that ends in .png or .html" in fails(
        "findings", "llamacpp-cpu", "--plot", str(tmp_path / "found.pdf")
    )


def test_requests_say_how_a_pack_gets_them(fails: Fails) -> None:
    line = fails("requests", "llamacpp-cpu")
    assert "llamacpp-cpu has no timestamps of requests" in line
    assert "export --requests" in line


def test_heldout_refuses_what_makes_no_test(fails: Fails, tmp_path: Path) -> None:
    assert "leave out --from" in fails("heldout", "llamacpp-cpu", "--fitted", "a.qplan", "--from", "vllm-cpu")
    assert "nothing but rows of vllm-cpu" in fails("heldout", "vllm-cpu", "--from", "vllm-cpu")


def test_requests_cannot_be_exported_from_a_store_without_campaigns(fails: Fails, tmp_path: Path) -> None:
    from qplan.profiles.packs import read_pack
    from qplan.profiles.store import ProfileStore

    store = str(tmp_path / "ours.db")
    with ProfileStore(store) as opened:
        opened.add(read_pack("vllm-cpu").table.slice(0, 3))
    out = tmp_path / "out.parquet"
    assert "no load that a campaign measured" in fails("export", str(out), "--store", store, "--requests")
    assert not out.exists()
