import os
import sys
import threading
from pathlib import Path

import pytest

from qplan.measure.quality import sandbox
from qplan.measure.quality.sandbox import run

GUARDS = ["audit"] if sandbox.guard() == "audit" else ["seccomp", "audit"]


@pytest.fixture(params=GUARDS)
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_right_code_passes(by: str) -> None:
    assert run("import math, re, collections\nassert math.gcd(4, 6) == 2", by=by).passed


def test_threads_are_allowed(by: str) -> None:
    source = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run(source, by=by).passed


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended the process before its last line, with code 0"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_wrong_code_and_code_that_leaves_fail(source: str, reason: str, by: str) -> None:
    outcome = run(source, by=by)
    assert not outcome.passed
    assert outcome.reason.startswith(reason)


def test_an_endless_loop_is_ended(by: str) -> None:
    outcome = run("while True: pass", timeout_s=0.5, by=by)
    assert outcome == sandbox.Outcome(False, "timed out after 0.5 s")


def test_cpu_time_is_bounded_by_the_kernel_too() -> None:
    # The deadline on the clock is ignored by making it long; int(timeout) + 1 seconds of CPU time remain.
    source = "import time\nwhile time.process_time() < 60: pass"
    assert not run(source, timeout_s=1.0).passed


@pytest.mark.parametrize("source", ["x = b'a' * (1 << 31)", "x = list(range(10**9))"])
def test_memory_is_bounded(source: str, by: str) -> None:
    if sys.platform == "darwin":
        pytest.skip("macOS does not bound address space")
    assert run(source, by=by, memory_bytes=1 << 28).reason == "MemoryError"


def test_a_fork_bomb_does_not_start(by: str) -> None:
    outcome = run("import os\nwhile True: os.fork()", by=by)
    assert outcome.reason.startswith("PermissionError")


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess; subprocess.run(['touch', {path!r}])",
        "import os; assert os.system('touch ' + {path!r}) == 0",
        "import os; os.execv('/usr/bin/touch', ['touch', {path!r}])",
        "open({path!r}, 'w').write('x')",
        "import os; os.close(os.open({path!r}, os.O_CREAT | os.O_WRONLY))",
        "import pathlib; pathlib.Path({path!r}).mkdir()",
        "import os; os.symlink('/etc/passwd', {path!r})",
    ],
)
def test_nothing_outside_is_made(source: str, by: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    assert not run(source.format(path=str(path)), by=by).passed
    assert not path.is_symlink()
    assert not path.exists()


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.remove({path!r})",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.rename({path!r}, {path!r} + '2')",
        "import shutil, os; shutil.rmtree(os.path.dirname({path!r}))",
        "open({path!r}, 'r+').write('changed')",
    ],
)
def test_nothing_outside_is_changed(source: str, by: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    assert not run(source.format(path=str(path)), by=by).passed
    assert path.read_text() == "kept"


def test_no_network(by: str) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        source = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert not run(source, by=by).passed
        with pytest.raises(TimeoutError):
            listener.accept()


def test_other_processes_are_out_of_reach(by: str) -> None:
    outcome = run(f"import os; os.kill({os.getpid()}, 9)", by=by)
    assert outcome.reason.startswith("PermissionError")


@pytest.mark.skipif("seccomp" not in GUARDS, reason="needs the filter")
def test_the_filter_holds_below_python() -> None:
    source = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "assert libc.socket(2, 1, 0) == -1\nassert libc.fork() == -1\nassert libc.creat(b'x', 0o600) == -1\n"
        "assert libc.kill(1, 0) == -1\nassert libc.unlink(b'/nothing') == -1"
    )
    assert run(source, by="seccomp").passed


def test_megabytes_of_output_go_nowhere(by: str) -> None:
    source = "import sys\nfor _ in range(200):\n    print('x' * 100_000)\n    print('y' * 100_000, file=sys.stderr)"
    assert run(source, by=by).passed


def test_the_verdict_cannot_be_written_by_guessing(by: str) -> None:
    source = "import os\nfor d in range(3, 64):\n    try: os.write(d, b'passed')\n    except OSError: pass\nos._exit(0)"
    assert not run(source, by=by).passed


def test_a_crash_of_the_interpreter_is_a_failure() -> None:
    if GUARDS == ["audit"]:
        pytest.skip("ctypes is denied")
    assert run("import ctypes; ctypes.string_at(0)", by="seccomp").reason == "killed by SIGSEGV"


def test_secrets_of_the_environment_are_not_there(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_SECRET", "s")
    assert run("import os\nassert not any('QPLAN' in name for name in os.environ)", by=by).passed


def test_runs_side_by_side_from_threads() -> None:
    outcomes: dict[int, bool] = {}

    def one(number: int) -> None:
        outcomes[number] = run(f"assert {number} % 2 == 0").passed

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: number % 2 == 0 for number in range(6)}


def test_descriptors_are_not_leaked() -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    run("pass")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run("pass")
    assert len(os.listdir("/proc/self/fd")) == before
