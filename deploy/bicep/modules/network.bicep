// A new virtual network with relay's subnet and the endpoints'.

import { network as networkType, tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType

@description('Kind is new.')
param network networkType

param relayGroupId string
param endpointGroupId string

@description('NAT gateway of relay\'s subnet; empty: none.')
param natGatewayId string

var wanted = network.kind == 'new' ? network : fail('modules/network.bicep makes new networks only')
var prefixesV6 = wanted.?ipv6 == null ? [] : [wanted.?ipv6.?addressPrefix ?? '']
var relayPrefixesV6 = wanted.?ipv6 == null ? [] : [wanted.?ipv6.?relaySubnetPrefix ?? '']

// Subnets are written inside the network: as resources of their own, a redeployment of the network would race them.
resource virtualNetwork 'Microsoft.Network/virtualNetworks@2025-05-01' = {
  name: resourceName('vnet', name)
  location: location
  tags: tags
  properties: {
    addressSpace: {
      addressPrefixes: concat([wanted.addressPrefix], prefixesV6)
    }
    subnets: [
      {
        name: 'relay'
        properties: union(
          {
            addressPrefixes: concat([wanted.relaySubnetPrefix], relayPrefixesV6)
            networkSecurityGroup: { id: relayGroupId }
            defaultOutboundAccess: false
          },
          empty(natGatewayId) ? {} : { natGateway: { id: natGatewayId } }
        )
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefixes: [wanted.endpointSubnetPrefix]
          networkSecurityGroup: { id: endpointGroupId }
          // Off by default: without it the security group does not apply to private endpoints.
          privateEndpointNetworkPolicies: 'NetworkSecurityGroupEnabled'
          defaultOutboundAccess: false
        }
      }
    ]
  }
}

output id string = virtualNetwork.id
output relaySubnetId string = resourceId(
  'Microsoft.Network/virtualNetworks/subnets',
  virtualNetwork.name,
  virtualNetwork.properties.subnets[0].name
)
output endpointSubnetId string = resourceId(
  'Microsoft.Network/virtualNetworks/subnets',
  virtualNetwork.name,
  virtualNetwork.properties.subnets[1].name
)
