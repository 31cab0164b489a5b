"""What the GPU benchmark keeps of a run that fails or is cut off, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are in no package

from benchmarks import report
from benchmarks.engines import OURS, STOCK
from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import guard
from benchmarks.gpu.patterns import PATTERNS
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.store import Store, write_atomically


def test_what_says_most_is_measured_first(tmp_path: Path) -> None:
    setting, store = Setting("cpu", "tiny"), Store(tmp_path)
    patterns = [PATTERNS[tpf] for tpf in driver.PATTERN_ORDER]
    every = [driver.section(name, setting, store, patterns, lambda: None) for name in driver.ORDER]
    assert [one.name for one in every] == [
        f"steps-{OURS}",
        "exact",
        f"steps-{STOCK}",
        f"serving-{STOCK}",
        f"serving-{OURS}",
    ]
    assert every[0].units == (f"steps-{OURS}-1", f"steps-{OURS}-2")
    units = every[4].units
    assert [unit.removeprefix(f"serving-{OURS}-") for unit in units[:4]] == [
        "3-first",
        "3-1",
        "3-2",
        "8-first",
    ]
    assert len(units) == len(set(units)) == 12


def test_the_bandwidth_is_measured_before_the_steps_it_is_the_floor_of(tmp_path: Path) -> None:
    asked = driver.section(f"steps-{OURS}", Setting("cuda", "mini"), Store(tmp_path), [], print)
    assert asked.units == ("bandwidth", *(f"steps-{OURS}-{rows}" for rows in (1, 8, 32, 128)))
    asked = driver.section(f"steps-{STOCK}", Setting("cuda", "mini"), Store(tmp_path), [], print)
    assert asked.units == tuple(f"steps-{STOCK}-{rows}" for rows in (1, 8, 32, 128))


def test_a_unit_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unit-a.json"
    write_atomically(path, "old")

    def cut_off(self: Path, text: str) -> None:
        self.write_bytes(text.encode()[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new and longer")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.glob("unit-*.json")] == ["unit-a.json"]


@pytest.mark.parametrize("content", ["", '{"seconds": [1', "[]", "\udcff"])
def test_a_broken_unit_is_reported_and_measured_again(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    store.save("a", {"x": 1})
    (tmp_path / "unit-b.json").write_bytes(content.encode(errors="surrogateescape"))
    asked: list[Sequence[str]] = []

    def take(missing: Sequence[str]) -> None:
        asked.append(list(missing))
        store.save("b", {"x": 2})

    assert driver.measure(driver.Section("s", ("a", "b"), take), store) == []
    assert asked == [["b"]]
    assert "b is unreadable" in capsys.readouterr().err
    assert {name: unit["x"] for name, unit in store.read().items()} == {"a": 1, "b": 2}
    assert (tmp_path / "unit-b.broken").is_file()


def test_what_fails_does_not_take_the_rest_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = []

    def take(missing: Sequence[str]) -> None:
        asked.append(list(missing))
        for unit in missing:
            if unit == "c":
                raise ValueError("no")
            store.save(unit, {})

    failed = driver.measure(driver.Section("s", ("a", "b", "c", "d"), take), store)
    assert failed == ["c: ValueError: no"]
    assert asked == [["a", "b", "c", "d"], ["d"]]
    assert set(store.read()) == {"a", "b", "d"}


def test_a_section_that_measures_nothing_is_not_tried_again(tmp_path: Path) -> None:
    asked = []

    def take(missing: Sequence[str]) -> None:
        asked.append(list(missing))
        raise RuntimeError("does not start")

    failed = driver.measure(driver.Section("s", ("a", "b"), take), Store(tmp_path))
    assert failed == ["a: RuntimeError: does not start"]
    assert len(asked) == 1


def test_when_the_time_is_spent_nothing_more_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("cpu", "tiny")
    monkeypatch.setitem(setting.__dict__, "work", tmp_path)
    failed = driver.run(setting, ["exact", f"steps-{OURS}"], [], minutes=-1)
    assert [one.split(":")[0] for one in failed] == [f"steps-{OURS}-1", f"steps-{OURS}-2", "exact"]
    assert (tmp_path / "report.md").is_file()


def test_without_git_a_unit_is_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.commit() == "unknown"
    Store(tmp_path).save("a", {"x": 1})
    assert Store(tmp_path).read()["a"]["measured"].endswith("unknown")


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(RuntimeError, match="nothing within 5 s"):
        guard.run(
            ["sh", "-c", script],
            log=tmp_path / "log",
            cwd=tmp_path,
            environment=os.environ,
            seconds=5,
        )
    assert ended(int((tmp_path / "child").read_text()))


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\nthe reason"):
        guard.run(
            ["sh", "-c", "echo the reason; exit 3"],
            log=tmp_path / "log",
            cwd=tmp_path,
            environment=os.environ,
            seconds=60,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="bound to the parent on Linux only")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_command_ends_with_the_process_that_started_it(number: int, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    script = (
        "import os; from pathlib import Path; from benchmarks.gpu import guard\n"
        "guard.leave_on_signals()\n"
        "guard.run(['sh', '-c', 'echo $$ > child.new; mv child.new child; exec sleep 600'],\n"
        "    log=Path('log'), cwd=Path('.'), environment=os.environ, seconds=600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    driving = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    while not (tmp_path / "child").is_file():
        assert driving.poll() is None
        time.sleep(0.05)
    driving.send_signal(number)
    status = driving.wait(timeout=60)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert ended(int((tmp_path / "child").read_text()))


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for somebody to read its status."""
    try:
        process = psutil.Process(pid)
        process.wait(timeout=30)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True
