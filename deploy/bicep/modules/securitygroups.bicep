// The two security groups. relay's lets its clients in on its ports, Azure's probe on the health port, and nothing
// else; the endpoints' lets relay in, and nothing else.

import { access as accessType, tags as tagsType } from '../types.bicep'
import { resourceName, ruleSources } from '../functions.bicep'

param name string
param location string
param tags tagsType

@description('Ports that clients use.')
param ports string[]

param access accessType

@description('Prefixes of relay\'s subnet.')
param relayPrefixes string[]

@description('Port of /readyz.')
param healthPort string

@description('Port of metrics and operations, opened to the virtual network; empty: to nobody.')
param metricsPort string

// AzureLoadBalancer is 168.63.129.16, where probes come from.
var own = concat(
  [
    {
      name: 'allow-probe-in'
      properties: {
        priority: 100
        direction: 'Inbound'
        access: 'Allow'
        protocol: 'Tcp'
        sourceAddressPrefix: 'AzureLoadBalancer'
        sourcePortRange: '*'
        destinationAddressPrefix: '*'
        destinationPortRange: healthPort
      }
    }
  ],
  empty(metricsPort)
    ? []
    : [
        {
          name: 'allow-metrics-in'
          properties: {
            priority: 110
            direction: 'Inbound'
            access: 'Allow'
            protocol: 'Tcp'
            sourceAddressPrefix: 'VirtualNetwork'
            sourcePortRange: '*'
            destinationAddressPrefix: '*'
            destinationPortRange: metricsPort
          }
        }
      ]
)

// One rule has all ports: a rule for each port would count every prefix three times against Azure's limit.
var customers = map(access.kind == 'securityGroup' ? ruleSources(access.customers) : [], (source, index) => {
  name: 'customer-${source.name}-${source.family}'
  properties: {
    priority: 200 + index
    direction: 'Inbound'
    access: 'Allow'
    protocol: 'Tcp'
    sourceAddressPrefixes: source.prefixes
    sourcePortRange: '*'
    destinationAddressPrefix: '*'
    destinationPortRanges: ports
  }
})

var everybody = access.kind == 'securityGroup'
  ? []
  : [
      {
        name: 'allow-internet-in'
        properties: {
          priority: 200
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: 'Internet'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ports
        }
      }
    ]

var rest = [
  {
    name: 'deny-rest-in'
    properties: {
      priority: 4096
      direction: 'Inbound'
      access: 'Deny'
      protocol: '*'
      sourceAddressPrefix: '*'
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRange: '*'
    }
  }
]

resource relayGroup 'Microsoft.Network/networkSecurityGroups@2025-05-01' = {
  name: resourceName('nsg', '${name}-relay')
  location: location
  tags: tags
  properties: {
    securityRules: concat(own, customers, everybody, rest)
  }
}

resource endpointGroup 'Microsoft.Network/networkSecurityGroups@2025-05-01' = {
  name: resourceName('nsg', '${name}-endpoints')
  location: location
  tags: tags
  properties: {
    securityRules: concat(
      [
        {
          name: 'allow-relay-in'
          properties: {
            priority: 100
            direction: 'Inbound'
            access: 'Allow'
            protocol: 'Tcp'
            sourceAddressPrefixes: relayPrefixes
            sourcePortRange: '*'
            destinationAddressPrefix: '*'
            destinationPortRanges: ports
          }
        }
      ],
      rest
    )
  }
}

output relayGroupId string = relayGroup.id
output endpointGroupId string = endpointGroup.id
