// The way out for package updates, agents and blobs: a NAT gateway. relay's clients do not pass through it.

import { outbound as outboundType, tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType
param zones string[]

@description('Kind is natGateway.')
param outbound outboundType

var wanted = outbound.kind == 'natGateway' ? outbound : fail('modules/natgateway.bicep is for outbound.kind natGateway')

// StandardV2 spans the zones, and takes StandardV2 addresses only; Standard lives in one zone.
var ownZones = wanted.sku == 'StandardV2' ? zones : wanted.?zone == null ? [] : [wanted.?zone ?? '1']

resource addresses 'Microsoft.Network/publicIPAddresses@2025-05-01' = [
  for index in range(0, wanted.?addresses ?? 1): {
    name: resourceName('pip', '${name}-out-${index}')
    location: location
    tags: tags
    sku: {
      name: wanted.sku
      tier: 'Regional'
    }
    zones: ownZones
    properties: {
      publicIPAllocationMethod: 'Static'
      publicIPAddressVersion: 'IPv4'
    }
  }
]

resource gateway 'Microsoft.Network/natGateways@2025-05-01' = {
  name: resourceName('ng', name)
  location: location
  tags: tags
  sku: {
    name: wanted.sku
  }
  zones: ownZones
  properties: {
    idleTimeoutInMinutes: 4
    publicIpAddresses: [for index in range(0, wanted.?addresses ?? 1): { id: addresses[index].id }]
  }
}

output id string = gateway.id
