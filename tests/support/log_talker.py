"""Writes log lines to a pipe shared with other such processes, for test_log_writer.py.

python -m tests.support.log_talker NAME LINES
"""

from __future__ import annotations

import sys

from relay.log_writer import LogWriter


def main() -> None:
    name, lines = sys.argv[1], int(sys.argv[2])
    writer = LogWriter(1)
    for number in range(lines):
        writer.write(f"{name} {number} {name * (number % 500)}\n")
    writer.flush(30)


if __name__ == "__main__":
    main()
