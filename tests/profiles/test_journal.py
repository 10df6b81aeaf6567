from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from qplan.core.errors import StoreError
from qplan.profiles.journal import Journal, Standing
from qplan.profiles.lease import LEASE_S
from qplan.profiles.store import ProfileStore

POINTS = {"a": lambda: {"qps": 1}, "b": lambda: {"qps": 2}, "c": lambda: {"qps": 3}}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is not made yet, of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    found: str = request.getfixturevalue("postgres_url")
    return found


class TestJournal:
    """What a journal keeps, in a store of either kind."""

    def test_points_go_from_pending_to_done_with_their_observations(
        self, url: str, serving_row: dict[str, Any]
    ) -> None:
        with ProfileStore(url) as store, Journal(store, "one") as journal:
            journal.open("plan text", POINTS)
            attempt = journal.start("a")
            assert journal.standings()["a"].state == "running"
            journal.finish(
                "a", attempt, state="done", rows=[serving_row], raw=b"\x00\xff", metrics={"x": [1, 2]}, seconds=2.5
            )
            assert journal.standings()["a"] == Standing("done", 1, None, 2.5)
            assert journal.standings()["b"].state == "pending"
            assert journal.raw("a") == b"\x00\xff"
            assert journal.metrics("a") == {"x": [1, 2]}
            assert journal.raw("b") is None
            assert store.read(["offered_qps"]).to_pylist() == [{"offered_qps": 4.0}]

    def test_a_point_and_its_observations_are_finished_together_or_not_at_all(
        self, url: str, serving_row: dict[str, Any]
    ) -> None:
        bad = {**serving_row, "offered_qps": -1.0}
        with ProfileStore(url) as store, Journal(store, "one") as journal:
            journal.open("", POINTS)
            attempt = journal.start("a")
            with pytest.raises(Exception, match="offered_qps is -1"):
                journal.finish("a", attempt, state="done", rows=[serving_row, bad], raw=b"raw")
            assert journal.standings()["a"].state == "running"
            assert journal.raw("a") is None
            assert store.read(["status"]).num_rows == 0

    def test_failed_attempts_are_counted_and_keep_the_last_lines(self, url: str) -> None:
        with ProfileStore(url) as store, Journal(store, "one") as journal:
            journal.open("", POINTS)
            journal.retry("a", journal.start("a"), reason="it died", last_lines=["one", "two"])
            assert journal.standings()["a"] == Standing("pending", 1, None, None)
            journal.put_back("a", journal.start("a"))
            assert journal.standings()["a"].attempts == 1, "what a user stopped is no failure"
            journal.finish("a", journal.start("a"), state="failed", rows=[], reason="it died again")
            assert journal.standings()["a"] == Standing("failed", 2, "it died again", None)
            assert [found["state"] for found in journal.attempts("a")] == ["failed", "interrupted", "failed"]
            assert journal.attempts("a")[0]["last_lines"] == ["one", "two"]
            assert journal.reopen(["failed"]) == 1
            assert journal.standings()["a"] == Standing("pending", 0, None, None)

    def test_probes_come_back_in_order(self, url: str) -> None:
        with ProfileStore(url) as store, Journal(store, "one") as journal:
            journal.open("", POINTS)
            for rate in (1.0, 2.0, 1.4):
                journal.add_probe("a", {"rate_qps": rate}, b"raw")
            assert [probe["rate_qps"] for probe in journal.probes("a")] == [1.0, 2.0, 1.4]
            assert journal.probes("b") == []

    def test_one_identity_from_two_campaigns_is_kept_twice_and_from_one_replaced(
        self, url: str, serving_row: dict[str, Any]
    ) -> None:
        with ProfileStore(url) as store:
            for campaign, ttft in (("one", 0.1), ("two", 0.2), ("two", 0.15)):
                with Journal(store, campaign) as journal:
                    journal.open("", POINTS)
                    journal.reopen(["done"])
                    row = {**serving_row, "ttft_p50_s": ttft, "source": campaign}
                    journal.finish("a", journal.start("a"), state="done", rows=[row])
            rows = sorted(store.read(["repeat", "source", "ttft_p50_s"]).to_pylist(), key=str)
        assert rows == [
            {"repeat": 0, "source": "one", "ttft_p50_s": 0.1},
            {"repeat": 1, "source": "two", "ttft_p50_s": 0.15},
        ]

    def test_a_live_lease_is_respected_and_one_given_back_is_free(self, url: str) -> None:
        with ProfileStore(url) as store:
            first, second = Journal(store, "one"), Journal(store, "one")
            first.open("", POINTS)
            with pytest.raises(StoreError, match=r"campaign 'one' is being measured by process \d+"):
                second.open("", POINTS)
            other = Journal(store, "another")
            other.open("", POINTS)
            other.close()
            first.close()
            second.open("", POINTS)
            with pytest.raises(StoreError, match="another process took campaign 'one' over"):
                first.start("a")
            second.close()
            second.close()

    def test_the_lease_of_another_host_ends_when_it_shows_no_sign_of_life(self, url: str) -> None:
        with ProfileStore(url) as store:
            Journal(store, "one").open("", POINTS)
            for age_s, free in ((1.0, False), (LEASE_S + 1, True)):
                with store.transaction(write=True) as connection:
                    connection.execute(
                        sa.text("UPDATE campaigns SET host = 'elsewhere', beat = :beat"), {"beat": time.time() - age_s}
                    )
                journal = Journal(store, "one")
                if free:
                    journal.open("", POINTS)
                    journal.close()
                else:
                    with pytest.raises(StoreError, match="on elsewhere"):
                        journal.open("", POINTS)

    def test_a_killed_process_leaves_points_open_and_its_lease_is_taken_over(
        self, url: str, serving_row: dict[str, Any]
    ) -> None:
        script = textwrap.dedent("""
            import json, os, signal, sys
            from qplan.profiles.journal import Journal
            from qplan.profiles.store import ProfileStore
            url, row = sys.argv[1], json.loads(sys.argv[2])
            journal = Journal(ProfileStore(url), "one")
            journal.open("", {"a": dict, "b": dict})
            journal.finish("a", journal.start("a"), state="done", rows=[row])
            journal.start("b")
            os.kill(os.getpid(), signal.SIGKILL)
        """)
        child = subprocess.run([sys.executable, "-c", script, url, json.dumps(serving_row)], check=False)
        assert child.returncode == -signal.SIGKILL
        with ProfileStore(url) as store, Journal(store, "one") as journal:
            journal.open("", {"a": dict, "b": dict})
            assert {key: found.state for key, found in journal.standings().items()} == {"a": "done", "b": "pending"}
            assert [found["state"] for found in journal.attempts("b")] == ["interrupted"]
            assert store.read(["status"]).num_rows == 1

    def test_a_store_without_journal_has_no_standings(self, url: str, serving_row: dict[str, Any]) -> None:
        with ProfileStore(url) as store:
            assert Journal(store, "one").standings() == {}
            with store.transaction(write=True) as connection:
                store.put(connection, [serving_row], where="here")
            assert Journal(store, "one").standings() == {}
            with Journal(store, "one") as journal:
                journal.open("", POINTS)
                assert len(journal.standings()) == 3
            assert store.read(["status"]).num_rows == 1


def test_asking_for_standings_makes_no_store(tmp_path: Path) -> None:
    with ProfileStore(str(tmp_path / "none.db")) as store:
        assert Journal(store, "one").standings() == {}
    assert not (tmp_path / "none.db").exists()


def test_a_journal_of_a_newer_qplan_is_refused(tmp_path: Path) -> None:
    with ProfileStore(str(tmp_path / "store.db")) as store:
        with Journal(store, "one") as journal:
            journal.open("", POINTS)
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("UPDATE qplan_meta SET value = '99' WHERE key = 'journal_version'")
        connection.close()
        with pytest.raises(StoreError, match="journal version 99 is newer"):
            Journal(store, "one").open("", POINTS)
