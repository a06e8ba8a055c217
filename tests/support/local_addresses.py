"""Prints is_local() of addresses, in a network namespace: `python -m tests.support.local_addresses ADDRESS…`.

For test_own_addresses.py.
"""

from __future__ import annotations

import sys

from relay.own_addresses import is_local

if __name__ == "__main__":
    sys.stdout.write(" ".join(str(is_local(address)) for address in sys.argv[1:]))
