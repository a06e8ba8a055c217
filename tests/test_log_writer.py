"""Log lines: in order, whole, and never in the way of the one who writes them."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import logging
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.log_writer import CHUNK, ERROR, QUEUE, WARNING, LogWriter, _Prefixing, is_journal
from relay.supervisor import service_log
from tests.support.observe import PATIENCE, wait_until
from tests.support.programs import ROOT


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    # A writer's thread lives on and may have lines left. So the descriptor stays its own, and leads nowhere.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, writing)
    os.close(nowhere)
    os.close(reading)


def read_lines(descriptor: int, count: int) -> list[str]:
    """That many lines; what follows the last of them must not be half a line."""
    text = b""
    while text.count(b"\n") < count:
        text += os.read(descriptor, 1 << 16)
    assert text.endswith(b"\n")
    return text.decode().splitlines()


def test_lines_come_out_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    lines = [f"line {number}" for number in range(2000)]
    for line in lines[:1500]:
        writer.write(line + "\n")
    assert read_lines(reading, 1500) == lines[:1500]
    for line in lines[1500:]:
        writer.write(line + "\n")
    assert read_lines(reading, 500) == lines[1500:]
    assert writer.dropped == 0


def test_lines_that_are_not_utf8_are_escaped(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    writer.write("grüße \udcff\n")
    assert read_lines(pipe[0], 1) == ["grüße \\udcff"]


def test_a_descriptor_that_somebody_made_non_blocking_and_that_select_cannot_take(pipe: tuple[int, int]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"needs 2048 descriptors; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    high = fcntl.fcntl(pipe[1], fcntl.F_DUPFD_CLOEXEC, 1024)
    try:
        os.set_blocking(high, False)
        writer = LogWriter(high)
        lines = [f"{number:07} {'x' * 100}" for number in range(2000)]  # three times what a pipe has room for
        for line in lines:
            writer.write(line + "\n")
        full = select.poll()
        full.register(high, select.POLLOUT)
        wait_until(lambda: not full.poll(0), what="the pipe full")
        assert read_lines(pipe[0], len(lines)) == lines
        assert writer.dropped == 0
    finally:
        os.dup2(pipe[1], high)  # the thread lives on
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_defect_while_a_line_is_written_costs_that_line_alone(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_writer: LogWriter, _data: bytes) -> bool:
        raise MemoryError("a defect")

    writer = LogWriter(pipe[1])
    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "_write_all", fail)
        writer.write("lost\n")
        wait_until(lambda: writer.dropped == 1, what="the loss counted")
        writer.flush(PATIENCE)
    writer.write("written\n")
    assert read_lines(pipe[0], 1) == ["written"]
    assert "MemoryError: a defect" in capfd.readouterr().err


def test_what_a_callback_raises_is_in_the_service_log(pipe: tuple[int, int]) -> None:
    """asyncio's loop hands it to the module logging, whose records take the same way as the relay's own lines."""

    def fail() -> None:
        raise RuntimeError("a defect")

    async def main() -> None:
        asyncio.get_running_loop().call_soon(fail)
        bridge.handle(logging.LogRecord("relay", logging.ERROR, "", 0, "too few arguments: %s", (1, 2), None))
        logging.getLogger("relay").warning("and life goes on")
        await asyncio.sleep(0)

    root = logging.getLogger()
    before = list(root.handlers)
    service_log.configure(LogWriter(pipe[1]), "json", "info")
    (bridge,) = [handler for handler in root.handlers if handler not in before]
    try:
        asyncio.run(main())
    finally:
        root.handlers[:] = before
    told, raised = map(json.loads, read_lines(pipe[0], 2))
    assert told["event"] == "and life goes on"
    assert (raised["level"], raised["logger"]) == ("error", "asyncio")
    assert "RuntimeError: a defect" in raised["exception"]


def test_when_nobody_reads_lines_are_dropped_and_counted_and_nobody_waits(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    written = 0
    started = time.monotonic()
    while writer.dropped < 1000:  # a pipe's 64 KiB and the queue are soon full
        writer.write(f"{written:07} {'x' * 100}\n")
        written += 1
        assert written < 10 * QUEUE
    assert time.monotonic() - started < 10, "nobody waited for a reader"
    kept = written - writer.dropped
    assert kept >= QUEUE
    numbers: list[int] = []
    text = b""
    while len(numbers) < kept:
        *lines, text = (text + os.read(reading, 1 << 16)).split(b"\n")
        assert all(len(line) == 108 for line in lines), "every line is whole"
        numbers += [int(line[:7]) for line in lines]
    assert text == b""
    assert numbers == sorted(set(numbers)), "in order, none twice"
    assert writer.dropped + len(numbers) == written
    writer.write("after the jam\n")
    assert read_lines(reading, 1) == ["after the jam"]


def test_a_full_disk_loses_lines_and_counts_them() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(descriptor)
    for number in range(100):
        writer.write(f"{number}\n")
    wait_until(lambda: writer.dropped == 100)
    os.close(descriptor)


def test_a_descriptor_that_is_closed_loses_lines_and_counts_them() -> None:
    """A service started with `>&-` has no standard output; its traffic goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    writer = LogWriter(writing)
    writer.write("line\n")
    wait_until(lambda: writer.dropped == 1)


def test_a_reader_that_is_gone_loses_lines_and_counts_them() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    os.close(reading)
    writer.write("to nobody\n")
    wait_until(lambda: writer.dropped == 1)
    os.close(writing)


def test_a_descriptor_that_somebody_made_non_blocking(pipe: tuple[int, int]) -> None:
    """O_NONBLOCK belongs to the open file, which is shared with whoever has it: a terminal, another process."""
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    for number in range(5000):
        writer.write(f"{number:05} {'x' * 100}\n")
    lines = read_lines(reading, 5000)
    assert [int(line[:5]) for line in lines] == list(range(5000))
    assert writer.dropped == 0


def test_writes_are_small_enough_to_be_whole_and_large_enough_to_be_few(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real_write = os.write

    def write(descriptor: int, data: memoryview) -> int:
        sizes.append(len(data))
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(pipe[1])
    for _ in range(1000):
        writer.write("x" * 99 + "\n")
    read_lines(pipe[0], 1000)
    writer.flush(10)
    assert sum(sizes) == 100_000
    assert max(sizes) <= CHUNK
    assert len(sizes) < 100


def test_several_processes_on_one_pipe_do_not_mix_their_lines(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    count = 2000
    processes = [
        subprocess.Popen([sys.executable, "-m", "tests.support.log_talker", name, str(count)], cwd=ROOT, stdout=writing)
        for name in "abc"
    ]
    try:
        numbers: dict[str, int] = dict.fromkeys("abc", 0)
        for line in read_lines(reading, 3 * count):
            name, number, body = line.split(" ")
            assert int(number) == numbers[name], "in order"
            assert body == name * (int(number) % 500), "whole"
            numbers[name] += 1
        assert set(numbers.values()) == {count}
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_flush_waits_for_what_is_queued_but_not_for_ever(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    writer.flush(10)
    writer.write("last words\n")
    writer.flush(10)
    os.set_blocking(reading, False)
    assert os.read(reading, 100) == b"last words\n", "it was there when flush returned"
    os.set_blocking(reading, True)
    for _ in range(2000):
        writer.write("x" * 99 + "\n")
    started = time.monotonic()
    writer.flush(0.1)
    assert 0.1 <= time.monotonic() - started < 5


# --- priorities ------------------------------------------------------------------------------------------------------


def marked(text: str, priority: int) -> str:
    """What the journal should get: a mark at the beginning of each line, and nowhere else."""
    lines = text.split("\n")
    return "\n".join([f"<{priority}>{line}" for line in lines[:-1]] + [f"<{priority}>{lines[-1]}" if lines[-1] else ""])


# Characters that end a line for Python and for no journal are among them.
PIECES = st.lists(st.text(st.sampled_from("ab<>6\n\r\x0b\x0c\x1c\x85\u2028"), max_size=8), max_size=8)


@given(PIECES)
def test_printed_text_has_a_mark_at_each_line_however_it_is_written(pieces: list[str]) -> None:
    output = io.StringIO(newline="")
    stream = _Prefixing(output, ERROR)
    for piece in pieces:
        assert stream.write(piece) == len(piece)
    assert output.getvalue() == marked("".join(pieces), ERROR)


def test_each_line_of_a_traceback_has_a_mark_and_the_journal_s_descriptor_is_told_by_device_and_inode(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    writer = LogWriter(pipe[1])
    writer.write("first\n  second\n", WARNING)
    writer.write("third\n")
    assert read_lines(pipe[0], 3) == ["<4>first", "<4>  second", "<6>third"]


@pytest.mark.parametrize("value", ["", ":", "1", "1:2:3", "x:y", "0x10:3", "-1:-1"])
def test_what_is_no_journal_s_name_is_none(pipe: tuple[int, int], value: str) -> None:
    assert not is_journal(pipe[1], {"JOURNAL_STREAM": value})
    assert not is_journal(999_999, {"JOURNAL_STREAM": "1:2"})
