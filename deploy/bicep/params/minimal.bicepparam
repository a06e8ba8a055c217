// The least: a hub that is there, one customer, three Spot instances. Everything else is a default.
// Before it: export RELAY_HUB_ID=$(az iot hub show --name HUB --query id --output tsv)
//            export RELAY_PUBLIC_KEY=$(cat ~/.ssh/id_ed25519.pub)
using '../main.bicep'

param name = 'relay'

param hub = {
  kind: 'existing'
  id: readEnvironmentVariable('RELAY_HUB_ID')
}

param network = {
  kind: 'new'
  addressPrefix: '10.40.0.0/24'
  relaySubnetPrefix: '10.40.0.0/26'
  endpointSubnetPrefix: '10.40.0.64/28'
}

param access = {
  kind: 'securityGroup'
  customers: [
    { name: 'contoso', networks: ['203.0.113.0/24'] }
  ]
}

param scaleSet = {
  kind: 'flexible'
  imageVersion: '0.1.0'
  sizes: ['Standard_D2as_v5']
  instances: 3
  priority: { kind: 'spot' }
  recovery: { kind: 'restore' }
  osDisk: { kind: 'managed', storage: 'StandardSSD_LRS' }
}

param adminPublicKey = readEnvironmentVariable('RELAY_PUBLIC_KEY')
