"""Looks every string of predicted resources up in the models of Azure's SDK: the compiler takes any string for an enum.

Runs in an environment of its own, which has azure-mgmt-* (scripts/azure_tools.sh): a list of resources as JSON on
standard input, and on standard output what was looked at and what is no value of its enum.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from enum import Enum
from typing import Any

# Type of a resource: its module under azure.mgmt, and the model's name.
MODELS = {
    "microsoft.authorization/roleassignments": ("authorization", "RoleAssignmentCreateParameters"),
    "microsoft.compute/galleries": ("compute", "Gallery"),
    "microsoft.compute/galleries/images": ("compute", "GalleryImage"),
    "microsoft.compute/virtualmachinescalesets": ("compute", "VirtualMachineScaleSet"),
    "microsoft.devices/iothubs": ("iothub", "IotHubDescription"),
    "microsoft.insights/actiongroups": ("monitor", "ActionGroupResource"),
    "microsoft.insights/activitylogalerts": ("monitor", "ActivityLogAlertResource"),
    "microsoft.insights/autoscalesettings": ("monitor", "AutoscaleSettingResource"),
    "microsoft.insights/datacollectionendpoints": ("monitor", "DataCollectionEndpointResource"),
    "microsoft.insights/datacollectionruleassociations": (
        "monitor",
        "DataCollectionRuleAssociationProxyOnlyResource",
    ),
    "microsoft.insights/datacollectionrules": ("monitor", "DataCollectionRuleResource"),
    "microsoft.insights/metricalerts": ("monitor", "MetricAlertResource"),
    "microsoft.insights/scheduledqueryrules": ("monitor", "ScheduledQueryRuleResource"),
    "microsoft.insights/workbooks": ("applicationinsights", "Workbook"),
    "microsoft.managedidentity/userassignedidentities": ("msi", "Identity"),
    "microsoft.network/loadbalancers": ("network", "LoadBalancer"),
    "microsoft.network/natgateways": ("network", "NatGateway"),
    "microsoft.network/networksecuritygroups": ("network", "NetworkSecurityGroup"),
    "microsoft.network/networkwatchers/flowlogs": ("network", "FlowLog"),
    "microsoft.network/privatednszones": ("privatedns", "PrivateZone"),
    "microsoft.network/privatednszones/a": ("privatedns", "RecordSet"),
    "microsoft.network/privatednszones/virtualnetworklinks": ("privatedns", "VirtualNetworkLink"),
    "microsoft.network/privateendpoints": ("network", "PrivateEndpoint"),
    "microsoft.network/privateendpoints/privatednszonegroups": ("network", "PrivateDnsZoneGroup"),
    "microsoft.network/publicipaddresses": ("network", "PublicIPAddress"),
    "microsoft.network/virtualnetworks": ("network", "VirtualNetwork"),
    "microsoft.network/virtualnetworks/subnets": ("network", "Subnet"),
    "microsoft.operationalinsights/workspaces": ("loganalytics", "Workspace"),
    "microsoft.operationalinsights/workspaces/tables": ("loganalytics", "Table"),
}


# Values that Azure takes beside those of an enum: a stream of one's own has a name of one's own.
OWN = {"KnownDataFlowStreams": "Custom-"}


class Walk:
    """One resource beside its model."""

    def __init__(self, module: str, kind: str) -> None:
        self._models = importlib.import_module(f"azure.mgmt.{module}.models")
        self._kind = kind
        self.checked: list[str] = []
        self.mistakes: list[str] = []

    def model(self, name: str) -> Any:
        """A class of the module's models, or None."""
        return getattr(self._models, name, None)

    def fields(self, cls: Any) -> list[tuple[list[str], str]]:
        """Where each field stands in JSON, and its type as text. The SDK has models of two generations."""
        if hasattr(cls, "_attribute_map"):
            types: dict[str, object] = {}
            for base in reversed(cls.__mro__):
                types |= getattr(base.__init__, "__annotations__", {})
            return [
                (
                    [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", one["key"])],
                    f"{types.get(name)} {one['type']}",
                )
                for name, one in cls._attribute_map.items()
            ]
        cls()  # the first instance makes the map of fields
        return [
            ([field._rest_name], str(annotation))
            for base in cls.__mro__
            for name, annotation in getattr(base, "__annotations__", {}).items()
            if (field := cls._attr_to_rest_field.get(name)) is not None
        ]

    def subtype(self, cls: Any, body: dict[str, Any]) -> Any:
        """The class that the discriminator of the body names."""
        for discriminator, names in getattr(cls, "_subtype_map", {}).items():
            for key, _ in [(key, value) for key, value in cls._attribute_map.items() if key == discriminator]:
                value = body.get(cls._attribute_map[key]["key"].replace("\\.", "."))
                if value in names:
                    return self.model(names[value])
        return cls

    def look(self, cls: Any, body: Any, path: str) -> None:
        """Compare a body with its model."""
        if isinstance(body, list):
            for index, one in enumerate(body):
                self.look(cls, one, f"{path}[{index}]")
            return
        if not isinstance(body, dict):
            return
        cls = self.subtype(cls, body)
        for parts, annotation in self.fields(cls):
            value: Any = body
            for part in parts:
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                continue
            where = f"{path}.{'.'.join(parts)}"
            for name in dict.fromkeys(re.findall(r"\b([A-Z]\w+)", annotation)):
                known = self.model(name)
                if isinstance(known, type) and issubclass(known, Enum):
                    self._compare(known, value, where)
                elif isinstance(known, type):
                    maps = "{" in annotation or "dict[" in annotation.lower()
                    for one in value.values() if maps and isinstance(value, dict) else [value]:
                        self.look(known, one, where)

    def _compare(self, enum: type[Enum], value: object, where: str) -> None:
        for one in value if isinstance(value, list) else [value]:
            allowed = [member.value for member in enum]
            if isinstance(one, str) and one.startswith("["):
                continue  # an expression that only Azure evaluates
            self.checked.append(f"{self._kind}{where} = {one}")
            own = OWN.get(enum.__name__)
            if one not in allowed and not (own and str(one).startswith(own)):
                self.mistakes.append(f"{self._kind}{where} = {one!r}: {enum.__name__} has {allowed}")


def main() -> None:
    """Read resources, look at them, and tell."""
    checked, mistakes, without = [], [], []
    for resource in json.load(sys.stdin):
        kind = resource["type"].lower()
        if kind not in MODELS:
            without.append(resource["type"])
            continue
        module, name = MODELS[kind]
        walk = Walk(module, resource["type"])
        walk.look(walk.model(name), resource, "")
        checked += walk.checked
        mistakes += walk.mistakes
    json.dump(
        {"checked": sorted(set(checked)), "mistakes": sorted(set(mistakes)), "without": sorted(set(without))},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
