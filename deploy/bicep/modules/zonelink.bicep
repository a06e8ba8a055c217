// Links a private DNS zone that is there already to relay's network, as zone.bicep does with a new one.

import { tags as tagsType } from '../types.bicep'

param zoneName string
param tags tagsType

@description('Name of the link.')
param linkName string

param virtualNetworkId string

resource zone 'Microsoft.Network/privateDnsZones@2024-06-01' existing = {
  name: zoneName
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
