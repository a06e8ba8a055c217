// The static address, and the load balancer behind it.

import { loadBalancer as loadBalancerType, outbound as outboundType, tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType

@description('Zones of the address, written out: without them it lives in none.')
param zones string[]

param loadBalancer loadBalancerType
param outbound outboundType

@description('Port of each listener, by its name.')
param ports { name: string, port: int }[]

param healthPort int

var lbName = resourceName('lbe', name)
var families = concat(['ipv4'], (loadBalancer.?ipv6 ?? false) ? ['ipv6'] : [])
var rules = flatten(map(families, family => map(ports, one => { name: one.name, port: one.port, family: family })))

// As an outbound rule, on addresses of its own: clients' flows and relay's own share no ports.
var outPorts = outbound.kind == 'loadBalancer' ? outbound.portsPerInstance : 0
var outAddresses = range(0, outbound.kind == 'loadBalancer' ? outbound.?addresses ?? 1 : 0)

resource addresses 'Microsoft.Network/publicIPAddresses@2025-05-01' = [
  for family in families: {
    name: resourceName('pip', family == 'ipv4' ? name : '${name}-${family}')
    location: location
    tags: tags
    sku: {
      name: 'Standard'
      tier: 'Regional'
    }
    zones: zones
    properties: union(
      {
        publicIPAllocationMethod: 'Static'
        publicIPAddressVersion: family == 'ipv4' ? 'IPv4' : 'IPv6'
        idleTimeoutInMinutes: 4 // of the address; flows have the rule's
      },
      family == 'ipv4' && loadBalancer.?publicIpPrefixId != null
        ? { publicIPPrefix: { id: loadBalancer.?publicIpPrefixId } }
        : {}
    )
  }
]

resource outgoing 'Microsoft.Network/publicIPAddresses@2025-05-01' = [
  for index in outAddresses: {
    name: resourceName('pip', '${name}-out-${index}')
    location: location
    tags: tags
    sku: {
      name: 'Standard'
      tier: 'Regional'
    }
    zones: zones
    properties: {
      publicIPAllocationMethod: 'Static'
      publicIPAddressVersion: 'IPv4'
    }
  }
]

resource balancer 'Microsoft.Network/loadBalancers@2025-05-01' = {
  name: lbName
  location: location
  tags: tags
  sku: {
    name: 'Standard'
    tier: 'Regional'
  }
  properties: {
    frontendIPConfigurations: [
      for index in range(0, length(families) + length(outAddresses)): {
        name: index < length(families) ? families[index] : 'out-${index - length(families)}'
        properties: {
          publicIPAddress: {
            id: index < length(families) ? addresses[index].id : outgoing[index - length(families)].id
          }
        }
      }
    ]
    backendAddressPools: [for family in families: { name: 'relay-${family}' }]
    probes: [
      {
        name: 'readyz'
        properties: {
          protocol: 'Http'
          port: healthPort
          requestPath: '/readyz'
          intervalInSeconds: loadBalancer.?probeInterval ?? 5
          probeThreshold: loadBalancer.?probeThreshold ?? 2 // numberOfProbes is ignored
          // Where every instance says no, a shared cause is more likely than that none can serve: fail open.
          noHealthyBackendsBehavior: 'AllProbedUp'
        }
      }
    ]
    loadBalancingRules: [
      for rule in rules: {
        name: rule.family == 'ipv4' ? rule.name : '${rule.name}-${rule.family}'
        properties: {
          protocol: 'Tcp'
          frontendPort: rule.port
          backendPort: rule.port
          frontendIPConfiguration: {
            id: resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', lbName, rule.family)
          }
          backendAddressPool: {
            id: resourceId('Microsoft.Network/loadBalancers/backendAddressPools', lbName, 'relay-${rule.family}')
          }
          probe: {
            id: resourceId('Microsoft.Network/loadBalancers/probes', lbName, 'readyz')
          }
          enableTcpReset: true // without it an idle flow ends without a word
          idleTimeoutInMinutes: loadBalancer.?idleTimeoutMinutes ?? 30
          loadDistribution: 'Default'
          disableOutboundSnat: true
        }
      }
    ]
    outboundRules: [
      for _ in range(0, empty(outAddresses) ? 0 : 1): {
        name: 'out'
        properties: {
          protocol: 'All'
          allocatedOutboundPorts: outPorts
          enableTcpReset: true
          idleTimeoutInMinutes: 4
          backendAddressPool: {
            id: resourceId('Microsoft.Network/loadBalancers/backendAddressPools', lbName, 'relay-ipv4')
          }
          frontendIPConfigurations: map(outAddresses, index => {
            id: resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', lbName, 'out-${index}')
          })
        }
      }
    ]
  }
}

output id string = balancer.id
output poolIds string[] = [
  for family in families: resourceId(
    'Microsoft.Network/loadBalancers/backendAddressPools',
    balancer.name,
    'relay-${family}'
  )
]
output addressIds string[] = [for (family, index) in families: addresses[index].id]
output addresses string[] = [for (family, index) in families: addresses[index].properties.ipAddress]
