// One A record set for each name, with the addresses of all endpoints. For several endpoints of one service: their zone
// groups would overwrite each other's records, and deleting one endpoint would remove them.

@description('An existing zone, such as privatelink.azure-devices.net.')
param zoneName string

@description('Names of the record sets, relative to the zone: myhub, myhub.device.')
param names string[]

@description('What clients call the zone, without privatelink: azure-devices.net.')
param suffix string

@description('customDnsConfigs of each endpoint. Azure fills them where there is no zone group.')
param endpoints { fqdn: string?, ipAddresses: string[]? }[][]

resource zone 'Microsoft.Network/privateDnsZones@2024-06-01' existing = {
  name: zoneName
}

var found = flatten(endpoints)

resource records 'Microsoft.Network/privateDnsZones/A@2024-06-01' = [
  for name in names: {
    parent: zone
    name: name
    properties: {
      ttl: 10 // as zone groups write it
      aRecords: map(
        flatten(map(filter(found, one => one.?fqdn == '${name}.${suffix}'), one => one.?ipAddresses ?? [])),
        address => { ipv4Address: address }
      )
    }
  }
]
