"""The command line: what a person or a unit file starts. Each command does its work elsewhere.

Exit status: 0 well; 1 it ran and failed, or this machine lacks something at this moment (an address, a port,
descriptors, the settings file); 2 the command line or the settings are wrong on every machine. A line per mistake on
standard error.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import relay
from relay import process

if TYPE_CHECKING:  # `main` imports what it needs once signals are held
    import argparse
    from collections.abc import Callable, Sequence

DESCRIPTION = "TCP passthrough relay: accepts TCP, passes the bytes to an upstream, never terminates TLS."
EPILOG = """\
examples:
  RELAY_UPSTREAM=myhub.azure-devices.net relay check --connect
  relay run --config /etc/relay/relay.toml
  relay status --admin http://127.0.0.1:8414
  relay drain && relay undrain

Settings come from the defaults, then the TOML file, then the environment (RELAY_LIMITS__MAX_CONNECTIONS=20000);
`relay config` prints all of them with their meaning. Exit status: 0 well, 1 ran and failed, or this machine
lacks something now (a port, an address, descriptors), 2 wrong command or settings.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    missing = process.begin()  # first of all: imports take time, and open files
    try:
        from relay.log_writer import mark_output

        mark_output()
        parser = _parser()
        options = parser.parse_args(arguments)
        options.missing = missing
        if options.command != "run":  # which releases signals when it has handlers for them
            process.release()
        if options.command is None:
            parser.print_help()
            return 2
        return COMMANDS[options.command](options)
    except BrokenPipeError:
        # `relay config | head`: nobody reads the rest. Keep the interpreter from trying again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(
        prog="relay", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"relay {relay.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, *, config: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if config:
            command.add_argument(
                "--config", type=Path, metavar="FILE", help="TOML file with settings (none: the environment only)"
            )
        return command

    add("run", "start in the foreground; SIGTERM drains and ends, SIGINT ends at once", config=True)
    check = add("check", "whether a start with these settings would succeed here, and warnings; can be run beside a "
                "relay that serves", config=True)  # fmt: skip
    check.add_argument("--connect", action="store_true", help="also resolve and dial every upstream")
    check.add_argument("--running", type=_pid, metavar="PID", help="fail as well if a reload of the relay with this "
                       "process number would not bring these settings, because only a restart applies a variable or "
                       "setting that has changed; for ExecReload= of a unit: --running $MAINPID")  # fmt: skip
    add("config", "print the effective settings as TOML, defaults included", config=True)
    demo = add("demo", "stand-in hub, relay and devices on loopback; no privileges, nothing to configure")
    demo.add_argument("--once", action="store_true", help="send a fixed amount, verify that all arrived, then end")
    status = add("status", "one look at a running relay")
    status.add_argument("--json", action="store_true", help="print the numbers as JSON")
    drain = add("drain", "take a running relay out of service: not ready, then no new connections, then it closes what "
                "is established evenly over drain.window; it goes on running")  # fmt: skip
    drain.add_argument("--wait", action="store_true", help="until it is drained; the number of connections is shown")
    undrain = add("undrain", "put a relay that drains, or has drained, back into service")
    reload = add("reload", "let a running relay read its settings again; 1 if they are not put into effect, and why")
    for command in (status, drain, undrain, reload):
        command.add_argument("--admin", metavar="URL", help="its admin port, for instance http://127.0.0.1:8414")
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="its settings, which say where its admin port is (neither: RELAY_ADMIN__BIND, else the default)",
        )
    return parser


def _pid(text: str) -> int:
    """A process number. Raises ValueError."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise ValueError(text)
    return int(text)


_pid.__name__ = "process number"  # what argparse calls it in its message


def _run(options: argparse.Namespace) -> int:
    from relay.settings import model
    from relay.settings.file_reader import read_apart
    from relay.supervisor import start
    from relay.supervisor.instance import StartError

    def load(before: model.Settings | None) -> model.Settings:
        return model.load(options.config, os.environ, before=before, read=read_apart)

    try:
        return start.run(load, options.missing)
    except model.SettingsError as error:
        return _complain(error.problems, 1 if error.absent else 2)
    except StartError as error:
        return _complain(error.problems, 1)


def _check(options: argparse.Namespace) -> int:
    from relay.commands import check
    from relay.settings import model
    from relay.settings.file_reader import read_apart

    try:
        return check.run(
            lambda environ: model.load(options.config, environ, read=read_apart),
            connect=options.connect,
            pid=options.running,
        )
    except model.SettingsError as error:
        return _complain(error.problems, 1 if error.absent else 2)


def _config(options: argparse.Namespace) -> int:
    from relay.settings import model
    from relay.settings.file_reader import read_apart

    try:
        loaded = model.load(options.config, os.environ, require_listeners=False, read=read_apart)
        print(model.render(loaded), end="")
    except model.SettingsError as error:
        return _complain(error.problems, 1 if error.absent else 2)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from relay.demo.run import main as run_demo

    return run_demo(options.once)


def _status(options: argparse.Namespace) -> int:
    from relay.commands import status

    return _ask(options, lambda admin: status.run(admin, as_json=options.json))


def _drain(options: argparse.Namespace) -> int:
    from relay.commands import operate

    return _ask(options, lambda admin: operate.drain(admin, wait=options.wait))


def _undrain(options: argparse.Namespace) -> int:
    from relay.commands import operate

    return _ask(options, operate.undrain)


def _reload(options: argparse.Namespace) -> int:
    from relay.commands import operate

    return _ask(options, operate.reload)


def _ask(options: argparse.Namespace, command: Callable[[str], int]) -> int:
    """Run a command with the URL of the admin port of the relay that the options mean."""
    from relay.commands.admin_client import DEFAULT, NoAdminPort, at_bind

    try:
        if options.admin is not None:
            return command(options.admin)
        if options.config is None and "RELAY_ADMIN__BIND" not in os.environ:
            return command(DEFAULT)  # without the settings' models, which take longer to import than to ask

        from relay.settings import model
        from relay.settings.file_reader import read_apart

        try:
            bind = model.admin_bind(options.config, os.environ, read=read_apart)
        except model.SettingsError as error:
            return _complain(error.problems, 1 if error.absent else 2)
        return command(at_bind(bind))
    except NoAdminPort as error:
        return _complain([str(error)], 2)


def _complain(problems: Sequence[str], status: int) -> int:
    for problem in problems:
        print(f"relay: {problem}", file=sys.stderr)
    return status


COMMANDS = {
    "run": _run,
    "check": _check,
    "config": _config,
    "demo": _demo,
    "status": _status,
    "drain": _drain,
    "undrain": _undrain,
    "reload": _reload,
}
