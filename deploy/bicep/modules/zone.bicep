// A private DNS zone, linked to relay's network alone. A network whose devices are to come through relay must not be
// linked: they would resolve the hub's name to the private endpoint and pass relay by.

import { tags as tagsType } from '../types.bicep'

@description('Such as privatelink.azure-devices.net.')
param zoneName string

param tags tagsType

@description('Name of the link.')
param linkName string

param virtualNetworkId string

resource zone 'Microsoft.Network/privateDnsZones@2024-06-01' = {
  name: zoneName
  location: 'global'
  tags: tags
}

resource link 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = {
  parent: zone
  name: linkName
  location: 'global'
  tags: tags
  properties: {
    registrationEnabled: false
    // A name of another hub that the zone does not have is asked for in public DNS, instead of not being there.
    resolutionPolicy: 'NxDomainRedirect'
    virtualNetwork: {
      id: virtualNetworkId
    }
  }
}

output id string = zone.id
