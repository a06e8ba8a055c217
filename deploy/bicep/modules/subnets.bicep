// relay's subnet and the endpoints' in a virtual network that is there already, in its own resource group.

import { resourceName } from '../functions.bicep'

param name string
param virtualNetworkName string
param relaySubnetPrefix string
param endpointSubnetPrefix string
param relayGroupId string
param endpointGroupId string

@description('NAT gateway of relay\'s subnet; empty: none.')
param natGatewayId string

resource virtualNetwork 'Microsoft.Network/virtualNetworks@2025-05-01' existing = {
  name: virtualNetworkName
}

resource relay 'Microsoft.Network/virtualNetworks/subnets@2025-05-01' = {
  parent: virtualNetwork
  name: resourceName('snet', '${name}-relay')
  properties: union(
    {
      addressPrefixes: [relaySubnetPrefix]
      networkSecurityGroup: { id: relayGroupId }
      defaultOutboundAccess: false
    },
    empty(natGatewayId) ? {} : { natGateway: { id: natGatewayId } }
  )
}

// Azure changes one subnet of a network at a time.
resource endpoints 'Microsoft.Network/virtualNetworks/subnets@2025-05-01' = {
  parent: virtualNetwork
  name: resourceName('snet', '${name}-endpoints')
  properties: {
    addressPrefixes: [endpointSubnetPrefix]
    networkSecurityGroup: { id: endpointGroupId }
    privateEndpointNetworkPolicies: 'NetworkSecurityGroupEnabled'
    defaultOutboundAccess: false
  }
  dependsOn: [relay]
}

output id string = virtualNetwork.id
output relaySubnetId string = relay.id
output endpointSubnetId string = endpoints.id
