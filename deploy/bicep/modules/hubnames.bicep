// Looks up the Event Hubs compatible name of a hub, in the hub's own resource group.

param hubName string

resource iotHub 'Microsoft.Devices/IotHubs@2023-06-30' existing = {
  name: hubName
}

@description('First label of the name: the record in privatelink.servicebus.windows.net.')
output eventHubsLabel string = split(
  replace(iotHub.properties.?eventHubEndpoints.?events.?endpoint ?? '', 'sb://', ''),
  '.'
)[0]
