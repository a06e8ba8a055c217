"""The table [[customers]], and the rules over all of them: every network, link id and name belongs to one customer."""

from __future__ import annotations

import marshal
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Network
from itertools import accumulate
from typing import Annotated, Any, NamedTuple, overload

from pydantic import AfterValidator, Field

from relay.address import parse_network
from relay.core.customers import SLOTS
from relay.settings.included import Places
from relay.settings.problems import label
from relay.settings.sources import show
from relay.settings.values import Count, Listed, ListenerName, PerSecond, Section

MAX_LINK_ID = (1 << 32) - 1  # Azure's Private Link has 32 bits for it in the PROXY header
MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2

_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_OCTET = r"(0|[1-9][0-9]{0,2})"
_V4 = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}(?:/([0-9]|[12][0-9]|3[0-2]))?")


def network(text: str) -> str:
    """A network in the one spelling that each has: an IPv4-mapped one as IPv4, a single address without its length.

    Raises ValueError.
    """
    match = _V4.fullmatch(text)
    if match is not None:  # nearly all; a tenth of the time that ipaddress takes
        a, b, c, d, length = match.groups()
        first = int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
        bits = 32 - int(length or 32)
        if max(int(a), int(b), int(c), int(d)) <= 255 and not first & (1 << bits) - 1:
            return text if bits else text.partition("/")[0]
    text = parse_network(text)
    if ":" in text and (of_six := IPv6Network(text)).subnet_of(MAPPED):
        text = f"{of_six.network_address.ipv4_mapped}/{of_six.prefixlen - MAPPED.prefixlen}"
    return text.removesuffix("/128" if ":" in text else "/32")


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("is not 1 to 64 of a-z, 0-9, -, _ and .")
    return text


def _link_id(value: int) -> int:
    if not 0 <= value <= MAX_LINK_ID:
        raise ValueError(f"is not a link id, 0 to {MAX_LINK_ID}")
    return value


class Customer(Section):
    """One customer: which clients are the customer's, and what is admitted of them.

    With customers set and `access.allow` empty, nobody else is admitted. A client that is a customer's needs no entry
    in `access.allow`; `access.deny` wins over both. A reload adds, changes and removes customers, and cuts no
    connection.
    """

    name: Annotated[str, AfterValidator(_name)] = Field(
        description="name in logs, metrics and status, unique among the customers: 1 to 64 characters of a-z, 0-9, -, "
        "_ and ."
    )
    networks: Annotated[tuple[Annotated[str, AfterValidator(network)], ...], Listed] = Field(
        default=(),
        description="networks whose clients are this customer's, each like 203.0.113.0/24, 2001:db8::/32 or one "
        "address; the most specific network of all customers decides; a client ::ffff:a.b.c.d is IPv4",
    )
    link_ids: Annotated[tuple[Annotated[int, AfterValidator(_link_id)], ...], Listed] = Field(
        default=(),
        description="ids of Azure Private Link connections that are this customer's, as PROXY headers name them; "
        "where a header has one, it alone decides, and networks do not",
    )
    max_connections: Count = Field(
        default=0, description="most connections open at once of this customer, over all workers; 0 = no limit"
    )
    connect_rate: PerSecond = Field(
        default=0.0,
        description="most new connections per second of this customer, over all workers; 0 = no limit",
    )
    connect_burst: Count = Field(
        default=0,
        description="burst of connect_rate: new connections that the customer may open at once after a pause; 0 = one "
        "second's worth",
    )
    listeners: Annotated[tuple[ListenerName, ...], Listed] = Field(
        default=(),
        description="names of the listeners that this customer may use; its clients are refused at others; empty = all",
    )


_FIELDS = tuple(Customer.model_fields)
_FIELDS_SET = set(_FIELDS)  # one for all: pydantic makes one for each, which takes as much memory as the values
_CHUNK = 100  # customers that are unpacked together


class Packed(Sequence[Customer]):
    """Validated customers as bytes; each is made anew when it is asked for.

    Thousands of objects take nine times as much memory. And since they were made while a file was parsed, they lie
    scattered over memory that the parser has left, and keep all of it from being returned.
    """

    def __init__(self, content: bytes, ends: Sequence[int], length: int) -> None:
        """`content` has the customers in chunks, and `ends` where each chunk ends; one large block can be returned."""
        self.content = content
        self.ends = tuple(ends)
        self._length = length

    @classmethod
    def of(cls, customers: Sequence[Customer]) -> Packed:
        """Pack validated customers, unless they are packed."""
        if isinstance(customers, Packed):
            return customers
        chunks = [_pack(customers[at : at + _CHUNK]) for at in range(0, len(customers), _CHUNK)]
        return cls(b"".join(chunks), list(accumulate(map(len, chunks))), len(customers))

    def _chunk(self, number: int) -> list[tuple[Any, ...]]:
        start = self.ends[number - 1] if number else 0
        chunk = memoryview(self.content)[start : self.ends[number]]
        rows: list[tuple[Any, ...]] = marshal.loads(chunk)  # noqa: S302 - made by `_pack` of the same version
        return rows

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Customer]:
        for number in range(len(self.ends)):
            yield from map(_made, self._chunk(number))

    @overload
    def __getitem__(self, index: int) -> Customer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Customer, ...]: ...
    def __getitem__(self, index: int | slice) -> Customer | tuple[Customer, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        at = range(self._length)[index]
        return _made(self._chunk(at // _CHUNK)[at % _CHUNK])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packed):
            return self.content == other.content
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # nobody needs it


def _pack(customers: Iterable[Customer]) -> bytes:
    # Version 2: the later ones refer back to objects by identity, so that equal values may differ in their bytes.
    return marshal.dumps([tuple(getattr(item, name) for name in _FIELDS) for item in customers], 2)


def _made(row: tuple[Any, ...]) -> Customer:
    return Customer.model_construct(_FIELDS_SET, **dict(zip(_FIELDS, row, strict=True)))


class Given(NamedTuple):
    """What the rules need of one customer: validated values, or those of them that are of the right type."""

    name: str
    networks: Iterable[tuple[int, str]]  # the position in the list, and the one spelling of the network
    link_ids: Iterable[tuple[int, int]]
    listeners: Iterable[tuple[int, str]]


def from_models(customers: Iterable[Customer]) -> Iterator[Given]:
    """The customers of valid settings."""
    for item in customers:
        yield Given(item.name, enumerate(item.networks), enumerate(item.link_ids), enumerate(item.listeners))


def from_tables(tables: object) -> Iterator[Given]:
    """The customers of settings in which something is wrong, perhaps here, perhaps elsewhere."""
    for table in tables if isinstance(tables, list) else ():
        values: Mapping[str, Any] = table if isinstance(table, dict) else {}
        name = values.get("name")
        yield Given(
            name if isinstance(name, str) else "",
            ((at, spelled) for at, text in _items(values, "networks", str) if (spelled := _spelled(text))),
            _items(values, "link_ids", int),
            _items(values, "listeners", str),
        )


def _items(values: Mapping[str, Any], key: str, kind: type) -> Iterator[tuple[int, Any]]:
    found = values.get(key)
    for position, item in enumerate(found if isinstance(found, list) else ()):
        if type(item) is kind:
            yield position, item


def _spelled(text: str) -> str:
    try:
        return network(text)
    except ValueError:
        return ""  # field_problems reports it


def customer_problems(
    customers: Iterable[Given],
    listeners: Collection[str],
    reads_proxy: bool,
    open_to_all: str,
    variables: Mapping[tuple[str, ...], str],
    places: Places,
) -> Iterator[str]:
    """A line for each broken rule. `reads_proxy`: one of the listeners reads PROXY headers.

    `open_to_all` is the `trusted_proxies` of a listener that reads those of every sender; empty: there is none.

    `listeners` are the names of all; without any, which is a mistake of its own, what customers say of them is not
    checked.
    """
    names: dict[str, int] = {}
    networks: dict[str, tuple[int, int]] = {}  # position of the customer, and of the network there
    link_ids: dict[int, tuple[int, int]] = {}
    count, told = 0, False

    def where(*path: str | int, value: object = None) -> str:
        return label(("customers", *path), variables, places, value)

    for number, item in enumerate(customers):
        count += 1
        if item.name and names.setdefault(item.name, number) != number:
            first = where(names[item.name], "name", value=item.name)
            yield (
                f"{where(number, 'name', value=item.name)}: {show(item.name)} is also the name of {first}; names are "
                "unique"
            )
        for position, text in item.networks:
            owner, at = networks.setdefault(text, (number, position))
            if owner != number:
                yield (
                    f"{where(number, 'networks', position, value=text)}: {show(text)} is also "
                    f"{where(owner, 'networks', at, value=text)}; a network belongs to one customer"
                )
        for position, link_id in item.link_ids:
            owner, at = link_ids.setdefault(link_id, (number, position))
            if owner != number:
                yield (
                    f"{where(number, 'link_ids', position, value=link_id)}: {link_id} is also "
                    f"{where(owner, 'link_ids', at, value=link_id)}; a link id belongs to one customer"
                )
            if position == 0 and listeners and not reads_proxy:
                yield (
                    f"{where(number, 'link_ids')}: no listener reads the PROXY headers that name link ids; set "
                    "proxy_protocol on a listener behind Private Link"
                )
            elif position == 0 and listeners and open_to_all and not told:
                told = True
                yield (
                    f"{where(number, 'link_ids')}: whoever connects could name a link id, since {open_to_all} is not "
                    "set: set it to the network from which Private Link connects"
                )
        for position, name in item.listeners:
            if listeners and name not in listeners:
                yield (
                    f"{where(number, 'listeners', position, value=name)}: {show(name)} is no listener; there "
                    f"{'is' if len(listeners) == 1 else 'are'} {', '.join(sorted(listeners))}"
                )
    if count > SLOTS:
        yield f"{label(('customers',), variables)}: {count} customers; at most {SLOTS}"
