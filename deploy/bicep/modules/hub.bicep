// An IoT Hub of our own, closed to the Internet unless asked otherwise. A hub that is there already is not changed.

import { hub as hubType, tags as tagsType } from '../types.bicep'

param location string
param tags tagsType

@description('The hub; kind is new.')
param hub hubType

var wanted = hub.kind == 'new' ? hub : fail('modules/hub.bicep makes new hubs only')

resource iotHub 'Microsoft.Devices/IotHubs@2023-06-30' = {
  name: wanted.name
  location: location
  tags: tags
  sku: {
    name: wanted.sku
    capacity: wanted.units
  }
  properties: union(
    {
      minTlsVersion: '1.2' // fixed when the hub is made
      publicNetworkAccess: wanted.?publicNetworkAccess ?? 'Disabled'
      disableLocalAuth: wanted.?disableLocalAuth ?? false
      eventHubEndpoints: {
        events: {
          retentionTimeInDays: 1
          partitionCount: wanted.?partitions ?? 4
        }
      }
    },
    empty(wanted.?allowedNetworks ?? [])
      ? {}
      : {
          networkRuleSets: {
            defaultAction: 'Deny'
            applyToBuiltInEventHubEndpoint: true
            ipRules: map(wanted.?allowedNetworks ?? [], (network, index) => {
              filterName: 'allow-${index}'
              action: 'Allow'
              ipMask: network
            })
          }
        }
  )
}

output id string = iotHub.id
