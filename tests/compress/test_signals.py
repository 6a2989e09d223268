"""Commands that are told to end, and their children: real processes, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import onnx
import psutil
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds: a loaded machine is slow, and a test that fails need not be quick
STOPPED = "stopped; asking again goes on from here\n"
COMMANDS = ["compress"] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "__main__" in path.read_text() and path.stem not in ("worker", "guest", "arm_guest")
]

Start = Callable[..., subprocess.Popen[str]]


def hearing() -> None:
    """As at a terminal, also where the tests run in the background and SIGINT is ignored or blocked."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python in a process group of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, start_new_session=True, preexec_fn=hearing, bufsize=1, **pipes
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(stream: IO[str] | None, words: str) -> None:
    """Read lines until one holds ``words``."""
    assert stream is not None
    read = ""
    for line in stream:
        read += line
        if words in line:
            return
    raise AssertionError(f"the process has ended and said {read}")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what is left to read of standard error."""
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def children(process: subprocess.Popen[str], count: int, kind: str = "spawn_main") -> list[psutil.Process]:
    """The process's descendants, once there are ``count`` with ``kind`` in their command: that run an engine."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        found = psutil.Process(process.pid).children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            if sum(kind in " ".join(one.cmdline()) for one in found) >= count:
                return found
        time.sleep(0.01)
    raise AssertionError(f"the process has no {count} children: {process.communicate()}")


def gone(processes: Sequence[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=PATIENCE)[1]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that does nothing."""
    one, two = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [one], [two])
    path = tmp_path_factory.mktemp("onnx") / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("command", "number"),
    [*((command, signal.SIGINT) for command in COMMANDS), *((command, signal.SIGTERM) for command in COMMANDS[:2])],
)
def test_a_signal_while_modules_are_imported(start: Start, command: str, number: signal.Signals) -> None:
    process = start("-X", "importtime", "-m", command, "--help")
    wait_for(process.stderr, f" {command.partition('.')[0]}\n")  # the package is there, its modules come next
    process.send_signal(number)
    code, said = end(process)
    assert code == 128 + number
    assert "Traceback" not in said
    assert said.count(STOPPED) == 1


def test_a_library_keeps_its_callers_handlers(start: Start) -> None:
    program = (
        "import signal, compress, benchmarks, compress.commands\n"
        "before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]\n"
        "assert before == [signal.default_int_handler, signal.SIG_DFL], before\n"
        "assert compress.commands.run_command(lambda: signal.getsignal(signal.SIGTERM) == signal.SIG_DFL) == 0\n"
        "assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]\n"
    )
    assert end(start("-c", program)) == (0, "")


def test_an_ignored_signal_stays_ignored(start: Start) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from compress.commands import run_command\n"
        "sys.exit(run_command(lambda: os.kill(os.getpid(), signal.SIGINT) or 7))\n"
    )
    assert end(start("-c", program)) == (7, "")


CLEANING = """
import signal, sys, time
from compress.commands import run_command

def command():
    try:
        print("ready", flush=True)
        while True:
            time.sleep(600)
    finally:
        print("cleaning", flush=True)
        sys.stdin.read(1)
        print("clean", flush=True)

sys.exit(run_command(command))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_when_it_has_cleaned_up(start: Start, number: signal.Signals) -> None:
    process = start("-c", CLEANING)
    wait_for(process.stdout, "ready")
    process.send_signal(number)
    wait_for(process.stdout, "cleaning")
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()
    wait_for(process.stdout, "clean")
    assert end(process) == (128 + number, STOPPED)


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT,) * 2, (signal.SIGTERM,) * 2, (signal.SIGTERM, signal.SIGINT)]
)
def test_a_second_signal_ends_it_at_once(start: Start, first: signal.Signals, second: signal.Signals) -> None:
    process = start("-c", CLEANING)
    wait_for(process.stdout, "ready")
    process.send_signal(first)
    wait_for(process.stdout, "cleaning")
    process.send_signal(second)
    assert end(process) == (128 + first, STOPPED)


def test_an_error_that_a_signal_has_caused_is_not_told(start: Start) -> None:
    program = (
        "import os, signal, sys\n"
        "from compress.commands import run_command\n"
        "from compress.errors import EngineError\n"
        "def command():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        "        raise EngineError('the child was stopped') from None\n"
        "sys.exit(run_command(command))\n"
    )
    assert end(start("-c", program)) == (143, STOPPED)


def measuring(start: Start, network: Path) -> subprocess.Popen[str]:
    return start("-m", "benchmarks.latency", "--engine", network, network, "--duration", "3600", "--timeout", "3600")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_measuring_children_end_with_the_command(start: Start, network: Path, number: signal.Signals) -> None:
    process = measuring(start, network)
    found = children(process, 3)  # reference networks and engines
    process.send_signal(number)
    assert end(process) == (128 + number, STOPPED)
    assert gone(found)


def test_ctrl_c_at_a_terminal_goes_to_children_too_which_say_nothing(start: Start, network: Path) -> None:
    process = measuring(start, network)
    found = children(process, 1)  # it is importing
    os.killpg(process.pid, signal.SIGINT)
    assert end(process) == (130, STOPPED)
    assert gone(found)


def test_measuring_children_do_not_outlive_a_parent_that_is_killed(start: Start, network: Path) -> None:
    process = measuring(start, network)
    found = children(process, 3)
    process.kill()
    assert gone(found)


ASKING = """
import sys
from compress.commands import run_command
from compress.engines.harness import ask

command = ["--engine", sys.argv[1], "--duration", "3600", "--timeout", "3600"]
sys.exit(run_command(lambda: ask("it", "benchmarks.latency", command, dict)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_harness_ends_with_who_asks_it(start: Start, network: Path, number: signal.Signals) -> None:
    process = start("-c", ASKING, network)
    found = children(process, 1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert end(process) == ((-9, "") if number == signal.SIGKILL else (128 + number, STOPPED))
    assert gone(found)


GUEST = """
import sys
from pathlib import Path
from benchmarks.profiling.kit import run_guest
from compress.commands import run_command

sys.exit(run_command(lambda: len(list(run_guest(Path(sys.argv[1]))))))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_guest_ends_with_who_runs_it(start: Start, network: Path, tmp_path: Path, number: signal.Signals) -> None:
    for name in ("reference", "piece", "probe"):
        shutil.copyfile(network, tmp_path / f"{name}.onnx")
    names = ["reference", "piece"]
    manifest = {"engine": "onnxruntime", "threads": 1, "files": names, "evict": {}, "rounds": 10**6, "round_s": 3600}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    process = start("-c", GUEST, tmp_path)
    found = children(process, 1, "profiling/guest")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert end(process) == ((-9, "") if number == signal.SIGKILL else (128 + number, STOPPED))
    assert gone(found)


def test_workers_that_read_images_say_nothing_at_ctrl_c(start: Start, tmp_path: Path) -> None:
    settings = [f"run.dir={tmp_path / 'run'}", "data.workers=2", "train.epochs=1000"]
    process = start("-m", "compress", "baseline", *(part for one in settings for part in ("--set", one)))
    deadline = time.monotonic() + PATIENCE
    while len(found := psutil.Process(process.pid).children()) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    code, said = end(process)
    assert code == 130
    assert "Traceback" not in said
    assert said.count(STOPPED) == 1
    assert gone(found)
