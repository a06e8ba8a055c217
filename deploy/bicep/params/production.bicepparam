// A front for 100,000 devices: three endpoints, five sizes, two regular instances and up to eighteen Spot ones, IPv6.
// A redeployment keeps what autoscale has made of it:
//     export RELAY_CAPACITY=$(az vmss show --resource-group RG --name vmss-relay --query sku.capacity --output tsv)
using '../main.bicep'

param name = 'relay'
param tags = { environment: 'production' }

param hub = {
  kind: 'existing'
  id: readEnvironmentVariable('RELAY_HUB_ID')
}

param network = {
  kind: 'new'
  addressPrefix: '10.40.0.0/23'
  relaySubnetPrefix: '10.40.0.0/25'
  endpointSubnetPrefix: '10.40.1.0/26'
  ipv6: {
    addressPrefix: 'fd40::/48'
    relaySubnetPrefix: 'fd40:0:0:1::/64'
  }
}

param access = {
  kind: 'securityGroup'
  customers: [
    {
      name: 'contoso'
      networks: ['203.0.113.0/24', '2001:db8:c0::/48']
      maxConnections: 20000
      connectRate: 100
      connectBurst: 500
    }
    {
      name: 'fabrikam'
      networks: ['198.51.100.0/25', '198.51.100.192/26']
      listeners: ['mqtt']
    }
  ]
}

param loadBalancer = {
  ipv6: true
}

param outbound = { kind: 'natGateway', sku: 'StandardV2' }

param scaleSet = {
  kind: 'flexible'
  imageVersion: '0.1.0'
  sizes: [
    'Standard_D2as_v5'
    'Standard_D2s_v5'
    'Standard_D2as_v6'
    'Standard_D2s_v6'
    'Standard_E2as_v5'
  ]
  allocation: 'CapacityOptimized'
  instances: 6
  priority: { kind: 'spot', regularBase: 2 }
  recovery: { kind: 'autoscale', minimum: 6, maximum: 20 }
  osDisk: { kind: 'managed', storage: 'StandardSSD_LRS' }
}

param existingCapacity = int(readEnvironmentVariable('RELAY_CAPACITY', '0'))

param privateEndpoints = {
  count: 3
  dns: { kind: 'new' }
}

param targets = [
  { name: 'provisioning', service: 'provisioning', id: readEnvironmentVariable('RELAY_DPS_ID') }
  { name: 'uploads', service: 'blob', id: readEnvironmentVariable('RELAY_STORAGE_ID') }
]

param monitoring = {
  emails: [readEnvironmentVariable('RELAY_ALERT_EMAIL')]
  accessLog: true
  metrics: true
}

param relay = {
  maxConnections: 60000
  maxAge: 86400
  dialRate: 100
}

param adminPublicKey = readEnvironmentVariable('RELAY_PUBLIC_KEY')
