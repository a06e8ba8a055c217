// A private endpoint of any Private Link service: an IoT Hub, DPS, storage account, Event Hubs namespace or SQL server.

import { tags as tagsType } from '../types.bicep'

@description('Name of the endpoint.')
param name string

param location string
param tags tagsType
param subnetId string

@description('Resource id of the service.')
param serviceId string

@description('Sub-resource: iotHub, iotDps, blob, namespace, sqlServer.')
param groupId string

@description('Message to the owner, who approves by hand; empty: this deployment approves.')
param approvalMessage string

@description('Zones whose records Azure keeps for this endpoint; empty: none, and records are written elsewhere.')
param zoneIds string[]

var connection = [
  {
    name: groupId
    properties: union(
      {
        privateLinkServiceId: serviceId
        groupIds: [groupId]
      },
      empty(approvalMessage) ? {} : { requestMessage: approvalMessage }
    )
  }
]

resource endpoint 'Microsoft.Network/privateEndpoints@2025-05-01' = {
  name: name
  location: location
  tags: tags
  properties: union(
    {
      subnet: { id: subnetId }
      customNetworkInterfaceName: '${name}-nic'
    },
    empty(approvalMessage)
      ? { privateLinkServiceConnections: connection }
      : { manualPrivateLinkServiceConnections: connection }
  )
}

resource group 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2025-05-01' = if (!empty(zoneIds)) {
  parent: endpoint
  name: 'default'
  properties: {
    privateDnsZoneConfigs: map(zoneIds, zoneId => {
      name: replace(last(split(zoneId, '/')), '.', '-')
      properties: {
        privateDnsZoneId: resourceId(
          split(zoneId, '/')[2],
          split(zoneId, '/')[4],
          'Microsoft.Network/privateDnsZones',
          last(split(zoneId, '/'))
        )
      }
    })
  }
}

output id string = endpoint.id

@description('Empty where a zone group has the records, and until a connection by hand is approved.')
output dns { fqdn: string?, ipAddresses: string[]? }[] = endpoint.properties.customDnsConfigs
