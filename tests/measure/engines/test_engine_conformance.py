"""The conformance suite passes an adapter that keeps the contract, and catches those that do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qplan.core.quantization import Quantization
from qplan.measure.engines import process
from qplan.measure.engines.conformance import EngineConformance
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process

SCRIPTED_ENGINE = Path(__file__).with_name("scripted_engine.py")


class Scripted:
    """An adapter as a third party might write it."""

    name = "scripted"

    def version(self) -> str:
        return "1.0"

    def refusal(self, serving: Serving) -> str | None:
        if serving.settings:
            return f"scripted has no settings; {', '.join(serving.settings)}"
        return None if serving.quantization.is_16_bit else f"scripted cannot serve {serving.quantization}"

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        weights = cache / "weights"
        if not weights.exists():
            weights.write_text("weights")
        return Prepared(str(weights), 16.0, "written by hand")

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        return start_process(self.launch(serving, prepared), folder=folder, deadline_s=deadline_s)

    def launch(self, serving: Serving, prepared: Prepared) -> Launch:
        script = {} if Path(prepared.weights).exists() else {"fail": "OSError: no weights"}
        argv = (sys.executable, str(SCRIPTED_ENGINE), "--model", serving.model, "--port", PORT)
        return Launch(argv, serving.model, "1.0", {"SCRIPTED_ENGINE": json.dumps(script)})


class Writing(Scripted):
    """Makes the weights again each time."""

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        (cache / "weights").unlink(missing_ok=True)
        (cache / "another").write_text("weights")
        (cache / "another").rename(cache / "weights")
        return Prepared(str(cache / "weights"), 16.0, "written by hand")


class Careless(Scripted):
    """Takes any setting and leaves it out."""

    def refusal(self, serving: Serving) -> str | None:
        return None


class Absent(ServerProcess):
    """Does not look whether the engine is there."""

    def check(self) -> None:
        pass


SERVING = Serving("tiny", "anything", Quantization.parse("FP16"))


class TestScripted(EngineConformance):
    name = "scripted"
    serving = SERVING
    refused = Serving("tiny", "anything", Quantization.parse("W4A8"))

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Scripted:
        return Scripted()


def test_an_adapter_that_makes_its_weights_again_is_caught(tmp_path: Path) -> None:
    engine = Writing()
    prepared = engine.prepare(SERVING, tmp_path)
    with pytest.raises(AssertionError):
        TestScripted().test_prepared_weights_are_found_again(engine, prepared, tmp_path)


def test_an_adapter_that_ignores_settings_is_caught(tmp_path: Path) -> None:
    engine = Careless()
    with pytest.raises(pytest.fail.Exception):
        TestScripted().test_a_setting_that_it_does_not_know_is_not_ignored(
            engine, engine.prepare(SERVING, tmp_path), tmp_path
        )


def test_a_server_that_does_not_notice_its_death_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ServerProcess", Absent)
    monkeypatch.setattr("qplan.measure.engines.conformance._NOTICE_S", 0.5)
    engine = Scripted()
    with pytest.raises(pytest.fail.Exception):
        TestScripted().test_a_killed_server_is_noticed_and_leaves_no_process(
            engine, engine.prepare(SERVING, tmp_path), tmp_path
        )
