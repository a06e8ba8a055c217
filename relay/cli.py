"""The command line: parses it and calls the command, whose work is done in `relay.commands` and `relay.supervisor`.

Exit status: 0 success; 1 the command ran and failed, or this machine lacks something now (an address, a port,
descriptors, the settings file); 2 the command line or the settings are wrong on every machine. Standard error has one
line per mistake.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import relay
from relay import process

if TYPE_CHECKING:  # `main` imports the rest after it has blocked the signals
    import argparse
    from collections.abc import Callable, Sequence

DESCRIPTION = "TCP passthrough relay: passes bytes to an upstream, never terminates TLS."
EPILOG = """\
examples:
  RELAY_UPSTREAM=myhub.azure-devices.net relay check --connect
  relay run --config /etc/relay/relay.toml
  relay status --admin http://127.0.0.1:8414
  relay drain && relay undrain

`relay COMMAND --help` explains a command. Settings come from the defaults, then
the TOML file, then the environment (RELAY_LIMITS__MAX_CONNECTIONS=20000);
`relay config` prints all of them with their meaning.

exit status:
  0  success
  1  the command ran and failed, or this machine lacks something now
     (a port, an address, descriptors)
  2  the command line or the settings are wrong
"""
RUN = """\
Start relay in the foreground. It logs to standard output.

signals:
  SIGTERM         drain, then end
  SIGTERM again   end at once
  SIGINT, Ctrl-C  end at once
  SIGUSR1         drain, then end
  SIGHUP          read the settings again, like `relay reload`
"""
CHECK = """\
Check the settings, and whether `relay run` would start with them on this
machine now: addresses, ports, descriptors, memory, engine. Prints what a start
would do, and warnings about settings that are valid but seldom meant. It opens
no port to clients, so it can be run beside a relay that serves; the ports of
that relay count as free.
"""
CONFIG = """\
Print the effective settings as TOML, defaults included, each with its meaning.
The output is a settings file that can be loaded again.
"""
DEMO = """\
Run a stand-in hub, relay and simulated devices on loopback, and show the
traffic until Ctrl-C. Needs no privileges, no configuration and no Azure
subscription.
"""
STATUS = """\
Show a running relay as its admin port reports it now: state, connections,
listeners, upstreams, workers.

With --live, one line and an exit status, for a container's health check: 0 if
every worker's event loop answers (also while relay drains), 1 if not or if no
relay answers.
"""
DRAIN = """\
Take a running relay out of service without cutting connections off. For
drain.announce seconds it is not ready and still accepts, so that load
balancers notice. Then it accepts no more, and closes the established
connections evenly over drain.window seconds. The process keeps running; `relay
undrain` puts it back into service.
"""
UNDRAIN = """\
Put a relay that drains, or has drained, back into service. Connections that
are left stay. After SIGTERM it fails, because that drain ends the process.
"""
RELOAD = """\
Make a running relay read its settings again and apply them to new connections;
established ones stay. If anything is wrong, nothing changes: the command ends
with 1 and prints a line for each reason.
"""
FETCH_SETTINGS = """\
Read this machine's settings from where its fleet's are published, and apply
them if they have changed: they are checked as `relay check` does (but for
ports and descriptors), written to FILE in one step, and the running relay
reloads. If anything is wrong, FILE and the running relay stay as they are.

imds: the user data of an Azure virtual machine, from its metadata service
(azure.metadata_url). It is the settings as TOML; or, for more than 64 KiB, it
names a blob that has them, read with the machine's managed identity:

  [settings_source]
  blob = "https://ACCOUNT.blob.core.windows.net/CONTAINER/relay.toml"
  client_id = ""              # of the identity, where there are several
  percentage = 10             # new settings for a tenth of the fleet,
  canary_tag = "ring:canary"  # and for the machines with this tag

Without blob, the last two stand beside the settings. No secret belongs in any
of it: every process of the machine can read user data.

What came of it is in azure.settings_state, and the running relay shows that in
/healthz, /status and its metrics. Needs no systemd; relay-settings.service and
relay-settings.timer run it once a minute.

exit status:
  0  FILE has the published settings, or has them later (percentage), and a
     relay that runs here has them in force
  1  not fetched, not written, or refused by the running relay
  2  what is published is wrong
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name (None: those of the process); return the exit status."""
    missing = process.begin()  # before any import: imports take time, and open files
    try:
        from relay.log_writer import mark_output

        mark_output()
        parser = _parser()
        options = parser.parse_args(arguments)
        options.missing = missing
        if options.command != "run":  # `run` unblocks the signals once it has handlers for them
            process.release()
        if options.command is None:
            parser.print_help()
            return 2
        return COMMANDS[options.command](options)
    except BrokenPipeError:
        # `relay config | head`: the reader has gone. Keep the interpreter from flushing into the pipe again at exit.
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

    def add(name: str, summary: str, description: str, *, config: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if config:
            command.add_argument(
                "--config", type=Path, metavar="FILE", help="TOML file with settings (default: the environment only)"
            )
        return command

    add("run", "start relay in the foreground", RUN, config=True)
    check = add("check", "check the settings, and whether a start would succeed here", CHECK, config=True)
    check.add_argument("--connect", action="store_true", help="also resolve and dial every upstream")
    check.add_argument("--client", type=_address, metavar="ADDRESS", help="only tell what becomes of a client from "
                       "this address on each listener: its customer, the limits, whether it is let in; where a "
                       "listener reads PROXY headers, this is the address in the header")  # fmt: skip
    check.add_argument("--sni", type=_server_name, metavar="NAME", help="only tell which route a TLS client that asks "
                       "for this name takes on each listener (an empty NAME: a client that asks for none)")  # fmt: skip
    check.add_argument("--running", type=_pid, metavar="PID", help="also fail if a reload of the relay with this "
                       "process number would not apply these settings, because a variable or setting has changed that "
                       "only a restart applies; in ExecReload= of a unit: --running $MAINPID")  # fmt: skip
    add("config", "print the effective settings as TOML, with their meaning", CONFIG, config=True)
    demo = add("demo", "run a stand-in hub, relay and devices on loopback", DEMO)
    demo.add_argument("--once", action="store_true", help="send a fixed number of messages, verify them, then end")
    status = add("status", "show a running relay: state, connections, upstreams, workers", STATUS)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the whole status as JSON")
    form.add_argument("--live", action="store_true", help="only whether it is alive: one line, and exit status 0 or 1")
    drain = add("drain", "take a running relay out of service, without cutting connections off", DRAIN)
    drain.add_argument("--wait", action="store_true", help="wait until it is drained, and show the connections left")
    undrain = add("undrain", "put a draining or drained relay back into service", UNDRAIN)
    reload = add("reload", "make a running relay read its settings again", RELOAD)
    for command in (status, drain, undrain, reload):
        command.add_argument("--admin", metavar="URL", help="admin port of that relay, e.g. http://127.0.0.1:8414")
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="settings file of that relay, for its admin port (neither given: RELAY_ADMIN__BIND, or its default)",
        )
    fetch = add("fetch-settings", "fetch this machine's settings, check them, write them, reload", FETCH_SETTINGS)
    fetch.add_argument("--from", dest="source", choices=["imds"], required=True, help="where the settings come from")
    fetch.add_argument(
        "--to", type=Path, metavar="FILE", required=True, help="settings file of the relay, /etc/relay/relay.toml"
    )
    fetch.add_argument("--service", action="store_true", help="as relay-settings.service runs it: while FILE has no "
                       "valid settings, try on and answer on the health port, Unhealthy with the reason; then start "
                       "relay.service if it is enabled; print a failure that lasts once")  # fmt: skip
    return parser


def _pid(text: str) -> int:
    """Parse a process number. Raises ValueError."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise ValueError(text)
    return int(text)


def _server_name(text: str) -> str:
    """Parse a server name as a client may send it; empty: none. Raises ValueError."""
    from relay.address import parse_server_name

    if not text:
        return ""
    if text.startswith("*"):
        raise ValueError(text)
    return parse_server_name(text)


def _address(text: str) -> str:
    """Parse a literal address. Raises ValueError."""
    from relay.address import parse_host

    return parse_host(text, allow_name=False)


# How argparse names the types in its messages.
_pid.__name__ = "process number"
_server_name.__name__ = "server name"
_address.__name__ = "address"


def _run(options: argparse.Namespace) -> int:
    from relay.settings import apart, model
    from relay.settings.file_reader import read_apart, read_included_apart
    from relay.supervisor import start
    from relay.supervisor.instance import StartError

    def load(before: model.Settings | None) -> model.Settings:
        if before is not None and len(before.customers) >= apart.MANY:
            return apart.load(options.config, os.environ, before)
        return model.load(options.config, os.environ, before=before, read=read_apart, read_included=read_included_apart)

    try:
        return start.run(load, options.missing)
    except model.SettingsError as error:
        return _complain(error.problems, 1 if error.absent else 2)
    except StartError as error:
        return _complain(error.problems, 1)


def _check(options: argparse.Namespace) -> int:
    from relay.commands import check
    from relay.settings import model
    from relay.settings.file_reader import read_apart, read_included_apart

    try:
        return check.run(
            lambda environ: model.load(options.config, environ, read=read_apart, read_included=read_included_apart),
            connect=options.connect,
            pid=options.running,
            client=options.client,
            sni=options.sni,
        )
    except model.SettingsError as error:
        return _complain(error.problems, 1 if error.absent else 2)


def _config(options: argparse.Namespace) -> int:
    from relay.settings import model
    from relay.settings.file_reader import read_apart, read_included_apart

    try:
        loaded = model.load(
            options.config,
            os.environ,
            require_listeners=False,
            read=read_apart,
            read_included=read_included_apart,
        )
        print(model.render(loaded), end="")
        for line in loaded.deprecated:
            print(f"warning: {line}", file=sys.stderr)
    except model.SettingsError as error:
        return _complain(error.problems, 1 if error.absent else 2)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from relay.demo.run import main as run_demo

    return run_demo(options.once)


def _status(options: argparse.Namespace) -> int:
    if options.live:
        from relay.commands import live

        return _with_admin_port(options, live.run)

    from relay.commands import status

    return _with_admin_port(options, lambda admin: status.run(admin, as_json=options.json))


def _drain(options: argparse.Namespace) -> int:
    from relay.commands import operate

    return _with_admin_port(options, lambda admin: operate.drain(admin, wait=options.wait))


def _undrain(options: argparse.Namespace) -> int:
    from relay.commands import operate

    return _with_admin_port(options, operate.undrain)


def _reload(options: argparse.Namespace) -> int:
    from relay.commands import operate

    return _with_admin_port(options, operate.reload)


def _fetch_settings(options: argparse.Namespace) -> int:
    from relay.commands.fetch_settings import command

    return command.run(options.to, service=options.service)


def _with_admin_port(options: argparse.Namespace, command: Callable[[str], int]) -> int:
    """Run `command` with the URL of the admin port that the options name."""
    from relay.commands.admin_client import DEFAULT, NoAdminPort, at_bind
    from relay.settings.names import variables

    try:
        if options.admin is not None:
            return command(options.admin)
        if options.config is None and not any(name in os.environ for name in variables("admin.bind")):
            return command(DEFAULT)  # saves importing the settings' models, which takes longer than the request

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
    "fetch-settings": _fetch_settings,
}
