"""A description of every setting, read from the models, for the code that loads, explains, renders and documents them.

Walks any pydantic model whose fields are numbers, booleans, strings, words, lists of strings or whole numbers, sections
(models) and lists of tables. It knows no setting by name: a field added to a model becomes a TOML key, an environment
variable, a line of `relay config` and a row of the reference.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from relay.settings.names import variable


class Kind(enum.Enum):
    """The type of a setting's value; the text is its name in messages and in the reference."""

    WHOLE = "whole number"
    NUMBER = "number"
    TRUTH = "true or false"
    TEXT = "string"
    WORD = "word"
    TEXTS = "list of strings"
    WHOLES = "list of whole numbers"
    TABLES = "list of tables"
    SECTION = "table"


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of the models: its path, type, bounds and meaning."""

    path: tuple[str, ...]
    field: FieldInfo
    kind: Kind
    inherits: bool = False  # None, the default, stands for the value of the instance's table with the same name

    @property
    def name(self) -> str:
        """The dotted name, as in TOML: `limits.max_connections`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable: `RELAY_LIMITS__MAX_CONNECTIONS`."""
        return variable(self.name)

    @property
    def meaning(self) -> str:
        """The description, with the unit. Every field has one."""
        assert self.field.description is not None, self.name
        return self.field.description

    @property
    def default(self) -> str | None:
        """The default in TOML; None for a required setting, one that inherits, and a table."""
        none = self.field.is_required() or self.inherits or self.kind is Kind.SECTION
        return None if none else to_toml(self.field.default)

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values of a WORD; empty for other kinds."""
        return get_args(self.field.annotation) if self.kind is Kind.WORD else ()

    @property
    def table(self) -> type[BaseModel] | None:
        """The model of a SECTION, or of each table of TABLES; None for other kinds."""
        return _model(self.field.annotation)

    @property
    def bounds(self) -> str:
        """The allowed range: `0 to 256`, `more than 0, at most 3600`, `at least one`, or an empty string."""
        least, most = "", ""
        for mark in (*self.field.metadata, *_marks(self.field.annotation)):
            if isinstance(mark, annotated_types.Ge):
                least = str(mark.ge)
            elif isinstance(mark, annotated_types.Gt):
                least = f"more than {mark.gt}, at most"
            elif isinstance(mark, annotated_types.Le):
                most = str(mark.le)
            elif isinstance(mark, annotated_types.MinLen):
                return "at least one"
        if most:
            return f"{least} {most}" if least.endswith("most") else f"{least} to {most}"
        return ""


def fields_of(model: type[BaseModel], above: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """The fields of `model` itself, sections included but not entered."""
    return tuple(
        Setting(
            (*above, name),
            field,
            _kind(name, _given(field.annotation)),
            _given(field.annotation) is not field.annotation,
        )
        for name, field in model.model_fields.items()
    )


def leaves_of(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting that has a value, also those inside sections; a list of tables is one setting."""
    for setting in fields_of(model, above):
        if setting.kind is Kind.SECTION and setting.table is not None:
            yield from leaves_of(setting.table, setting.path)
        else:
            yield setting


def find(model: type[BaseModel], path: tuple[str | int, ...]) -> Setting | None:
    """The setting at `path`, in which numbers are positions in lists; None if there is no such setting."""
    table: type[BaseModel] | None = model
    found: Setting | None = None
    for part in path:
        if isinstance(part, int):
            continue
        if table is None:
            return None
        found = next((setting for setting in fields_of(table) if setting.path == (part,)), None)
        if found is None:
            return None
        table = found.table
    return found


def to_toml(value: object) -> str:
    """A string, number, boolean or list of those as a TOML value.

    For these types JSON is valid TOML, except for DEL, which TOML requires to be escaped (TOML 1.0.0, "String").
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _model(annotation: object) -> type[BaseModel] | None:
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _given(annotation: object) -> object:
    """The type of a value that is given: of `X | None` it is X, without X's bounds."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    (one,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    return get_args(one)[0] if get_origin(one) is Annotated else one


def _marks(annotation: object) -> Iterator[object]:
    """The bounds in `Annotated[X, bounds] | None`, which pydantic leaves where they are."""
    for one in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ():
        for mark in get_args(one)[1:] if get_origin(one) is Annotated else ():
            yield from mark.metadata if isinstance(mark, FieldInfo) else (mark,)


def _kind(name: str, annotation: object) -> Kind:
    scalars = {int: Kind.WHOLE, float: Kind.NUMBER, bool: Kind.TRUTH, str: Kind.TEXT}
    if isinstance(annotation, type) and annotation in scalars:
        return scalars[annotation]
    if get_origin(annotation) is Literal:
        return Kind.WORD
    if get_origin(annotation) is tuple:
        if _model(annotation) is not None:
            return Kind.TABLES
        item = get_args(annotation)[0]
        return Kind.WHOLES if item is int or get_args(item)[:1] == (int,) else Kind.TEXTS
    if _model(annotation) is not None:
        return Kind.SECTION
    raise TypeError(f"{name}: no kind of setting has the type {annotation}")
