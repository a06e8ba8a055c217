"""Writes deploy/docker/seccomp.json: the system calls that deploy/systemd/relay.service allows, for a container.

    python scripts/seccomp_profile.py [--check]

Docker's, Podman's and containerd's default profiles refuse io_uring; with this one relay runs on it. The unit's
SystemCallFilter= is resolved with `systemd-analyze syscall-filter`, whose groups grow with systemd: the profile in the
repository is that of systemd 252 (Debian 12). With --check nothing is written; exit status 1 if the file would change.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "deploy/systemd/relay.service"
PROFILE = ROOT / "deploy/docker/seccomp.json"

EPERM, ENOSYS = 1, 38
NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
# RestrictNamespaces= and RestrictAddressFamilies= of the unit are not lists of calls: written by hand below.
BY_HAND = frozenset({"clone", "clone3", "setns", "unshare", "socket"})
# systemd sets limits, user and groups before its filter is in place. A container's runtime does so after it, unless
# no-new-privileges is set; a process without capabilities gains nothing from these calls.
RUNTIME = ("capset", "setgid", "setgroups", "setresgid", "setresuid", "setuid")
# Not needed, and more than Docker's own profile gives: keys belong to no container but to the machine.
NOT_IN_CONTAINERS = ["@keyring", "userfaultfd"]


def groups() -> dict[str, list[str]]:
    """systemd's groups of system calls: name, members; a member may be a group."""
    line = ["systemd-analyze", "syscall-filter"]
    found: dict[str, list[str]] = {}
    name = ""
    for text in subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines():
        word = text.strip()
        if not word or word.startswith("#"):
            continue
        if not text.startswith(" "):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    return found


def resolve(names: list[str], known: dict[str, list[str]]) -> set[str]:
    """The system calls that these names and groups stand for."""
    calls: set[str] = set()
    for name in names:
        calls |= resolve(known[name], known) if name.startswith("@") else {name}
    return calls


def allowed(unit: str, known: dict[str, list[str]]) -> set[str]:
    """What the unit's SystemCallFilter= lines allow."""
    calls: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        if value.startswith("~"):
            calls -= resolve(value[1:].split(), known)
        else:
            calls |= resolve(value.split(), known)
    return calls - resolve(NOT_IN_CONTAINERS, known)


def rule(names: list[str], comment: str, action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    """One entry of a profile."""
    return {"names": names, "action": action, **more, "comment": comment}


def argument(value: int, compare: str = "SCMP_CMP_EQ") -> dict[str, Any]:
    """What the first argument of a call has to be."""
    return {"index": 0, "value": value, "op": compare}


def profile(calls: set[str]) -> dict[str, Any]:
    """The profile that allows these calls, but no namespaces and no other sockets than the unit."""
    families = [
        rule(["socket"], f"{name}, as RestrictAddressFamilies=", args=[argument(value)])
        for name, value in (("AF_UNIX", AF_UNIX), ("AF_INET", AF_INET), ("AF_INET6", AF_INET6))
    ]
    no_namespaces = [argument(NAMESPACES, "SCMP_CMP_MASKED_EQ") | {"valueTwo": 0}]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [
            {"architecture": name, "subArchitectures": []} for name in ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
        ],
        "syscalls": [
            rule(sorted(calls - BY_HAND), "SystemCallFilter= of relay.service, io_uring among them"),
            rule(sorted(set(RUNTIME) - calls), "the runtime, before it starts relay; without capabilities no gain"),
            *families,
            rule(["clone"], "processes and threads, no namespaces, as RestrictNamespaces=", args=no_namespaces),
            rule(["clone3"], "its flags are behind a pointer: the C library then takes clone",
                 "SCMP_ACT_ERRNO", errnoRet=ENOSYS),
        ],
    }  # fmt: skip


def main() -> int:
    """0 if the file is, or has become, what the unit says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the file would change")
    options = parser.parse_args()
    try:
        text = json.dumps(profile(allowed(UNIT.read_text(), groups())), indent=2) + "\n"
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: systemd-analyze syscall-filter: {error}", file=sys.stderr)
        return 1
    if options.check:
        if PROFILE.exists() and PROFILE.read_text() == text:
            return 0
        print(
            f"{PROFILE.relative_to(ROOT)} is not what {UNIT.relative_to(ROOT)} and this systemd say: run {sys.argv[0]}"
        )
        return 1
    PROFILE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
