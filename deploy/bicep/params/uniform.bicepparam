// Uniform orchestration in a network that is there: Azure rolls out each new image version by itself. Four Spot
// instances and a regular set of two behind the same address; the zones are the enterprise's central ones.
using '../main.bicep'

param name = 'relay-uni'

param hub = {
  kind: 'existing'
  id: readEnvironmentVariable('RELAY_HUB_ID')
}

param network = {
  kind: 'existing'
  id: readEnvironmentVariable('RELAY_NETWORK_ID')
  addressPrefix: '10.50.0.0/16'
  relaySubnetPrefix: '10.50.8.0/26'
  endpointSubnetPrefix: '10.50.8.64/28'
}

param access = {
  kind: 'relay'
  customers: [
    { name: 'contoso', networks: ['203.0.113.0/24'] }
    { name: 'fabrikam', networks: ['198.51.100.0/25'], maxConnections: 5000 }
  ]
}

param scaleSet = {
  kind: 'uniform'
  size: 'Standard_D2ads_v5'
  spotInstances: 4
  regularInstances: 2
  recovery: { kind: 'restore', timeout: 'PT2H' }
  osDisk: { kind: 'ephemeral', placement: 'ResourceDisk' }
}

param privateEndpoints = {
  dns: {
    kind: 'existing'
    hubZoneId: readEnvironmentVariable('RELAY_HUB_ZONE_ID')
    eventHubsZoneId: readEnvironmentVariable('RELAY_EVENT_HUBS_ZONE_ID')
    link: true
  }
}

param monitoring = {
  emails: [readEnvironmentVariable('RELAY_ALERT_EMAIL')]
}

param adminPublicKey = readEnvironmentVariable('RELAY_PUBLIC_KEY')
