"""Which packets a network security group lets in, by Azure's rules: the lowest priority that matches decides.

Source: learn.microsoft.com, "Azure network security groups overview". Only what the templates use: TCP, inbound.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

PROBE = "168.63.129.16"


def _source_matches(rule: dict[str, Any], address: str, network: str) -> bool:
    prefixes = [*rule.get("sourceAddressPrefixes", [])]
    if "sourceAddressPrefix" in rule:
        prefixes.append(rule["sourceAddressPrefix"])
    assert prefixes, rule
    ip = ip_address(address)
    inside = ip.version == 4 and ip in ip_network(network)
    for prefix in prefixes:
        match prefix:
            case "*":
                return True
            case "AzureLoadBalancer":
                hit = address == PROBE
            case "VirtualNetwork":
                hit = inside
            case "Internet":
                hit = not inside and address != PROBE
            case _:
                hit = ip in ip_network(prefix)  # raises for what is no prefix, as Azure refuses it
        if hit:
            return True
    return False


def _port_matches(rule: dict[str, Any], port: int) -> bool:
    ranges = [*rule.get("destinationPortRanges", [])]
    if "destinationPortRange" in rule:
        ranges.append(rule["destinationPortRange"])
    assert ranges, rule
    return any(one == "*" or int(one) == port for one in ranges)


def lets_in(group: dict[str, Any], address: str, port: int, network: str) -> bool:
    """True if TCP from `address` to `port` passes; `network` is the virtual network's address space."""
    rules = [rule["properties"] for rule in group["properties"]["securityRules"]]
    assert len({rule["priority"] for rule in rules}) == len(rules), "two rules have the same priority"
    for rule in sorted(rules, key=lambda rule: rule["priority"]):
        assert rule["direction"] == "Inbound"
        assert 100 <= rule["priority"] <= 4096
        if rule["protocol"] in ("Tcp", "*") and _source_matches(rule, address, network) and _port_matches(rule, port):
            return bool(rule["access"] == "Allow")
    raise AssertionError("no rule matched: Azure's own defaults would decide")
