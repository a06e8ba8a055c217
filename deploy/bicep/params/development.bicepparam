// Cheap: a hub of its own of one unit, one Spot instance, one zone's NAT gateway, open to anybody with credentials.
using '../main.bicep'

param name = 'relay-dev'
param tags = { environment: 'development' }

param hub = {
  kind: 'new'
  name: readEnvironmentVariable('RELAY_HUB_NAME')
  sku: 'S1'
  units: 1
  publicNetworkAccess: 'Enabled'
}

param network = {
  kind: 'new'
  addressPrefix: '10.41.0.0/24'
  relaySubnetPrefix: '10.41.0.0/27'
  endpointSubnetPrefix: '10.41.0.32/28'
}

param access = { kind: 'open' }

param outbound = { kind: 'loadBalancer', portsPerInstance: 8000 }

param scaleSet = {
  kind: 'flexible'
  imageVersion: '0.1.0'
  sizes: ['Standard_D2as_v5']
  instances: 1
  priority: { kind: 'spot' }
  recovery: { kind: 'restore' }
  osDisk: { kind: 'managed', storage: 'StandardSSD_LRS' }
}

param adminPublicKey = readEnvironmentVariable('RELAY_PUBLIC_KEY')
