"""The settings of relay as one model, and `load`, which reads and checks them. Each table is in `settings.tables`.

The models are the only definition of the settings; the environment variables, `relay config`, the error messages and
docs/configuration.md are made from them. Precedence: defaults, then the TOML file, then RELAY_… variables. `load` reads
its arguments only: no implicit file, no process environment, no global state. For the supervisor and the commands;
workers get plain values and never import this module, since importing pydantic takes longer than a worker's start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay.settings import file_reader, included
from relay.settings.customers import Customer, Packed, customer_problems, from_models, from_tables
from relay.settings.inherited import check_problems
from relay.settings.listeners import Listener, ShortRoute
from relay.settings.problems import Whole, as_written, field_problems
from relay.settings.render import render
from relay.settings.route_rules import room_problems, route_problems
from relay.settings.short_form import PORTS as SHORTHAND_PORTS
from relay.settings.short_form import listeners_of
from relay.settings.sources import EnvironSource, FileSource, Values, build, show
from relay.settings.tables import (
    AccessSettings,
    AdminSettings,
    AzureSettings,
    DialSettings,
    DnsSettings,
    DrainSettings,
    HealthCheckSettings,
    HealthSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    SupervisionSettings,
    TcpSettings,
    TimeoutSettings,
)
from relay.settings.values import Listed, ShorthandUpstream

__all__ = ["SHORTHAND_PORTS", "Listener", "Settings", "SettingsError", "admin_bind", "load", "names", "render", "value"]

MOST_NAMED = 5  # settings that one message lists by name


class Settings(BaseSettings):
    """All settings, validated. Made by `load`, which also replaces the short form by listeners."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, strict=True)

    upstream: Annotated[tuple[ShorthandUpstream, ...], Listed] = Field(
        default=(),
        description=(
            "hosts to relay to, without ports; short for three [[listeners]], https 443, mqtt 8883 and amqp 5671, each "
            "to these hosts at the same port; empty = [[listeners]] are given instead"
        ),
    )
    workers: int = Field(default=0, ge=0, le=256, description="number of worker processes; 0 = one per usable CPU")
    engine: Literal["auto", "ring", "stream"] = Field(
        default="auto",
        description='how workers move bytes: "ring" = io_uring, "stream" = uvloop, "auto" = ring where it works, else '
        "stream",
    )
    include: Annotated[tuple[str, ...], Listed] = Field(
        default=(),
        description="further files with [[customers]], [[routes]] or [[listeners]], patterns relative to the file of "
        '--config like "customers.d/*.toml"; their tables are appended to those of the file, in the order of the '
        "files' names; names that begin with a dot or end in ~ are skipped; at most 4 MiB a file and 32 MiB in all; "
        "empty = none",
    )
    limits: LimitSettings = LimitSettings()
    access: AccessSettings = AccessSettings()
    dial: DialSettings = DialSettings()
    dns: DnsSettings = DnsSettings()
    health_check: HealthCheckSettings = HealthCheckSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    tcp: TcpSettings = TcpSettings()
    drain: DrainSettings = DrainSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    admin: AdminSettings = AdminSettings()
    health: HealthSettings = HealthSettings()
    metrics: MetricsSettings = MetricsSettings()
    azure: AzureSettings = AzureSettings()
    log: LogSettings = LogSettings()
    routes: Annotated[tuple[ShortRoute, ...], Listed] = Field(
        default=(),
        description="one table for each route of the short form; in the environment, a JSON list of objects",
    )
    listeners: Annotated[tuple[Listener, ...], Listed] = Field(
        default=(),
        description="one table for each listener, in place of upstream and routes; in the environment, a JSON list of "
        "objects",
    )
    customers: Annotated[tuple[Customer, ...], Listed] = Field(
        default=(),
        description="one table for each customer; in the environment, a JSON list of objects, which replaces all of "
        "the files; empty = clients are not told apart",
    )
    _deprecated: tuple[str, ...] = PrivateAttr(default=())
    _silent: str = PrivateAttr(default="")

    @property
    def deprecated(self) -> tuple[str, ...]:
        """A warning for each old name that these settings were given under."""
        return self._deprecated

    @property
    def silent(self) -> str:
        """A message that the file sets nothing; empty if it sets something, or there is none."""
        return self._silent


class SettingsError(Exception):
    """Settings that cannot be used. `problems` has one line for each mistake, naming the setting and what it may be.

    `absent`: the only problem is that the file cannot be read at this moment; a retry may succeed.
    """

    def __init__(self, problems: list[str], *, absent: bool = False) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.absent = absent


def names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """The dotted names of all settings; `listeners` as a whole is one setting."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += names(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def value(settings: Settings, name: str) -> object:
    """The value of the setting with that dotted name."""
    found: object = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


def admin_bind(
    config: Path | None, environ: Mapping[str, str], *, read: Callable[[Path], bytes] = file_reader.read
) -> str:
    """The effective `admin.bind` as written, for commands that ask a relay which runs with these settings.

    Mistakes in other settings are ignored: the relay may have started before they were made. Raises SettingsError if
    the file is needed and cannot be read.
    """
    text = EnvironSource(Settings, environ).values.get("admin", {}).get("bind")
    if text is None:
        file = FileSource(Settings, config, read)
        wrong = [problem for problem in file.problems if not file.readable or problem.startswith("admin:")]
        if wrong:
            raise SettingsError(wrong, absent=file.absent)
        text = file.values.get("admin", {}).get("bind", AdminSettings().bind)
    if not isinstance(text, str):
        raise SettingsError([f"admin.bind: {show(text)} is not a string; write it in quotes"])
    return text


def load(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    require_listeners: bool = True,
    before: Settings | None = None,
    read: Callable[[Path], bytes] = file_reader.read,
    read_included: included.ReadIncluded = file_reader.read_included,
) -> Settings:
    """The effective settings from the file `config`, if any, and the RELAY_… variables in `environ`.

    `upstream`, `routes` and `include` are always empty in the result: what they stand for is in `listeners` and
    `customers`. There is at least one listener, unless `require_listeners` is false (for showing settings, not for
    running them). `before` are the settings in effect: a file that no longer sets anything is an error if it would
    change them. `read` returns the content of the file, `read_included` that of the files that it includes.
    Raises SettingsError with all mistakes at once.
    """
    loaded = _load(config, environ, require_listeners, read, read_included)
    if before is not None:
        check_change(before, loaded)
    return loaded


def restored(
    values: Mapping[str, Any], customers: Sequence[Customer], deprecated: Iterable[str], silent: str
) -> Settings:
    """Settings from the dump of valid ones in JSON's types, their customers, and what else is known of them."""
    settings = build(Settings, Values(Settings, values)).model_copy(update={"customers": customers})
    settings._deprecated, settings._silent = tuple(deprecated), silent
    return settings


def check_change(before: Settings, after: Settings) -> None:
    """Raise SettingsError if a reload from `before` to `after` is certainly a mistake."""
    if after.silent and (lost := _different(before, after)):
        raise SettingsError(
            [f"{after.silent}. That would undo {lost}; if that is intended, restart relay instead of reloading it"]
        )
    if before.customers and not after.customers and not after.access.allow:
        raise SettingsError(
            [
                "customers: the reload would remove the last of them, and with access.allow empty let every client in; "
                'set access.allow, to ["0.0.0.0/0", "::/0"] if that is intended, or restart relay'
            ]
        )


def _load(
    config: Path | None,
    environ: Mapping[str, str],
    require_listeners: bool,
    read: Callable[[Path], bytes],
    read_included: included.ReadIncluded,
) -> Settings:
    """The settings by themselves, as `load` returns them. Raises SettingsError."""
    file, environment = FileSource(Settings, config, read), EnvironSource(Settings, environ)
    places = included.include(file, environment, read_included)
    written = as_written(file, environment)
    problems = [*file.problems, *environment.problems]
    settings: Settings | None = None
    try:
        settings = build(Settings, environment, file)
    except ValidationError as error:
        problems += field_problems(error, Settings, written, places.in_several_files())
    whole = Whole(Settings, file, environment, places.in_several_files())
    problems += whole.problems(SHORTHAND_PORTS, require_listeners=require_listeners)
    problems += route_problems(whole.given, whole.label, SHORTHAND_PORTS)
    problems += customer_problems(
        from_models(settings.customers) if settings is not None else from_tables(whole.given("customers")),
        *whole.listeners(SHORTHAND_PORTS),
        written,
        places,
    )
    if problems or settings is None:
        raise SettingsError(problems, absent=file.absent and problems == file.problems)
    loaded = settings.model_copy(update={"include": ()})
    if settings.upstream or settings.routes:
        listeners = listeners_of(settings.upstream, settings.routes)
        loaded = loaded.model_copy(update={"upstream": (), "routes": (), "listeners": listeners})
    problems = [*room_problems(loaded.listeners), *check_problems(loaded.health_check, loaded.listeners)]
    if problems:
        raise SettingsError(problems)
    loaded._deprecated, loaded._silent = (*file.deprecated, *environment.deprecated), file.silent
    if loaded.customers:
        loaded = loaded.model_copy(update={"customers": Packed.of(loaded.customers)})
    return loaded


def _different(before: Settings, after: Settings) -> str:
    """The names of the settings that differ, MOST_NAMED of them, for a message."""
    found = [name for name in names() if value(before, name) != value(after, name)]
    return ", ".join(found[:MOST_NAMED]) + (f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else "")
