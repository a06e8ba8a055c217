// Second deployment, after Packer has published an image: everything that one static address in front of an IoT Hub's
// private endpoint needs.
//
//     az deployment group what-if --resource-group RG --parameters deploy/bicep/params/production.bicepparam
//     az deployment group create  --resource-group RG --parameters deploy/bicep/params/production.bicepparam
//
// Wrong parameters fail with a sentence, all of them at once, before anything is made (`problems` below). What a template
// cannot see is looked at by scripts/azure_preflight.py.

import {
  access as accessType
  domains as domainsType
  flowLogs as flowLogsType
  hub as hubType
  image as imageType
  loadBalancer as loadBalancerType
  monitoring as monitoringType
  network as networkType
  outbound as outboundType
  privateEndpoints as privateEndpointsType
  relaySettings
  scaleSet as scaleSetType
  settingsSource as settingsSourceType
  tags as tagsType
  target
} from 'types.bicep'
import { galleryName, overlap, prefixCount, prefixSize, reservedAddresses, resourceName, ruleSources, within } from 'functions.bicep'
import { settingsToml, userDataToml } from 'relaytoml.bicep'

// --- parameters -------------------------------------------------------------------------------------------------------

@description('Name of the front; part of the name of everything that it has. a-z, 0-9 and -.')
@minLength(2)
@maxLength(24)
param name string

param location string = resourceGroup().location

param tags tagsType = {}

@description('Availability zones of addresses and instances. A region without zones: none.')
param zones ('1' | '2' | '3')[] = ['1', '2', '3']

param hub hubType

@description('Domains of the services. Azure China and the US government have others; there, set all of them.')
param domains domainsType = {
  hub: 'azure-devices.net'
  provisioning: 'azure-devices-provisioning.net'
  eventHubs: 'servicebus.windows.net'
  // Not environment(): a prediction (bicep snapshot) cannot evaluate it, and the settings of relay depend on these.
  #disable-next-line no-hardcoded-env-urls
  storage: 'core.windows.net'
  #disable-next-line no-hardcoded-env-urls
  sql: 'database.windows.net'
}

param network networkType

param access accessType

@description('Flow logs of a new network, in a storage account. Left out: none.')
param flowLogs flowLogsType?

param loadBalancer loadBalancerType = {}

param outbound outboundType = { kind: 'natGateway', sku: 'StandardV2' }

param image imageType = { galleryName: galleryName(name) }

param scaleSet scaleSetType

@description('What a set that is scaled automatically has now, so that a redeployment keeps it. 0: a first deployment.')
@minValue(0)
param existingCapacity int = 0

param privateEndpoints privateEndpointsType = { dns: { kind: 'new' } }

@description('Further services behind the same address.')
@maxLength(16)
param targets target[] = []

param relay relaySettings = {}

@description('Left out: no logs, metrics and alerts.')
param monitoring monitoringType?

param settingsSource settingsSourceType = {}

@description('Further addresses of each instance to dial the hub from: 64,000 more connections each, to each endpoint.')
@minValue(0)
@maxValue(15)
param secondaryAddresses int = 0

@description('Disks encrypted on the host too. Needs the feature Microsoft.Compute/EncryptionAtHost of the subscription; without it, even naming it fails.')
param encryptionAtHost bool = false

param adminUsername string = 'relayadmin'

@description('SSH public key. An image needs one; port 22 stays closed.')
@minLength(40)
param adminPublicKey string

// --- what follows from them -------------------------------------------------------------------------------------------

var healthPort = 8080
var metricsPort = 8414

var hubName = hub.kind == 'new' ? hub.name : last(split(hub.id, '/'))
var hubHost = '${hubName}.${domains.hub}'
var deviceHost = '${hubName}.device.${domains.hub}'

var services = {
  provisioning: { groupId: 'iotDps', domain: domains.provisioning, listeners: ['https', 'mqtt', 'amqp'] }
  blob: { groupId: 'blob', domain: 'blob.${domains.storage}', listeners: ['https'] }
  eventHubs: { groupId: 'namespace', domain: domains.eventHubs, listeners: ['https', 'amqp'] }
  sql: { groupId: 'sqlServer', domain: domains.sql, listeners: [] }
}
var described = map(targets, one => {
  name: one.name
  service: one.service
  id: one.id
  groupId: services[one.service].groupId
  zoneName: 'privatelink.${services[one.service].domain}'
  zoneId: one.?zoneId ?? ''
  host: '${last(split(one.id, '/'))}.${services[one.service].domain}'
  listeners: services[one.service].listeners
})
var routes = map(filter(described, one => one.service != 'sql'), one => {
  name: one.name
  host: one.host
  listeners: one.listeners
})
var plain = map(filter(described, one => one.service == 'sql'), one => { name: one.name, host: one.host, port: 1433 })

var ports = concat(
  [
    { name: 'https', port: 443 }
    { name: 'mqtt', port: 8883 }
    { name: 'amqp', port: 5671 }
  ],
  map(plain, one => { name: one.name, port: one.port })
)
var portNumbers = map(ports, one => string(one.port))

// Scale set: one of the two kinds as plain values.
var flexible = scaleSet.kind == 'flexible'
var sizes = scaleSet.kind == 'flexible' ? scaleSet.sizes : [scaleSet.size]
var spot = scaleSet.kind == 'uniform' || (scaleSet.kind == 'flexible' && scaleSet.priority.kind == 'spot')
var wantedInstances = scaleSet.kind == 'flexible' ? scaleSet.instances : scaleSet.spotInstances
var regularInstances = scaleSet.kind == 'uniform' ? scaleSet.regularInstances : 0
var surge = scaleSet.kind == 'flexible' && (scaleSet.priority.?upgrade ?? 'inPlace') == 'surge'
var recovery = scaleSet.recovery
var autoscaled = recovery.kind == 'autoscale'
var smallest = recovery.kind == 'autoscale' ? recovery.minimum : wantedInstances
var largest = max(recovery.kind == 'autoscale' ? recovery.maximum : wantedInstances, wantedInstances)
var capacity = autoscaled && existingCapacity > 0 ? existingCapacity : wantedInstances
var restoreTimeout = recovery.kind == 'restore' ? recovery.?timeout ?? 'PT1H' : ''

var definitionName = image.?definition ?? 'relay-amd64'
var definitionId = resourceId(
  image.?resourceGroup ?? resourceGroup().name,
  'Microsoft.Compute/galleries/images',
  image.galleryName,
  definitionName
)
var versionId = resourceId(
  image.?resourceGroup ?? resourceGroup().name,
  'Microsoft.Compute/galleries/images/versions',
  image.galleryName,
  definitionName,
  scaleSet.kind == 'flexible' ? scaleSet.imageVersion : 'latest'
)

// A hub refuses connections above its throttle; shared by all instances, so that together they stay below it.
var throttles = { S1: 12, S2: 120, S3: 6000 }
var hubThrottle = hub.kind == 'new' ? max(100, throttles[hub.sku] * hub.units) : 0
var dialRate = relay.?dialRate ?? (hubThrottle == 0 ? null : max(1, hubThrottle / (largest + regularInstances)))

// Azure computes no string above 131,072 characters: the customers of a blob are written by scripts/azure_preflight.py.
var settings = settingsToml(
  hubHost,
  deviceHost,
  routes,
  plain,
  ports,
  settingsSource.?blob == null && access.kind != 'open' ? access.customers : [],
  dialRate,
  relay
)
var userData = userDataToml(settings, settingsSource)

var endpointCount = privateEndpoints.?count ?? 1
var byHand = privateEndpoints.?approvalMessage ?? ''
var dns = privateEndpoints.dns
var groupZones = endpointCount == 1 && dns.kind != 'none'
var recordZones = endpointCount > 1 && dns.kind != 'none'
var newTargetZones = dns.kind == 'new' ? filter(described, one => empty(one.zoneId)) : []

// --- wrong parameters -------------------------------------------------------------------------------------------------

var customers = access.kind == 'open' ? [] : access.customers
var customerNames = map(customers, one => one.name)
var networks = flatten(map(customers, one => one.networks))
var ipv6Network = network.kind == 'new' && network.?ipv6 != null
var endpointAddresses = 4 * endpointCount + length(targets) + reservedAddresses
var perInstance = 1 + secondaryAddresses
// MaxSurge makes a batch of new instances before the old ones go; a batch is a fifth.
var relayAddresses = (largest + regularInstances + (surge ? max(1, largest / 5) : 0)) * perInstance + reservedAddresses
var versionParts = scaleSet.kind == 'flexible' ? split(scaleSet.imageVersion, '.') : ['1', '0', '0']
var outPorts = outbound.kind == 'loadBalancer' ? outbound.portsPerInstance * (largest + regularInstances) : 0
var outLimit = outbound.kind == 'loadBalancer' ? 64000 * (outbound.?addresses ?? 1) : 0

var problems = filter(
  [
    within(network.relaySubnetPrefix, network.addressPrefix)
      ? ''
      : 'network.relaySubnetPrefix ${network.relaySubnetPrefix} is not inside network.addressPrefix ${network.addressPrefix}.'
    within(network.endpointSubnetPrefix, network.addressPrefix)
      ? ''
      : 'network.endpointSubnetPrefix ${network.endpointSubnetPrefix} is not inside network.addressPrefix ${network.addressPrefix}.'
    overlap(network.relaySubnetPrefix, network.endpointSubnetPrefix)
      ? 'network.relaySubnetPrefix ${network.relaySubnetPrefix} and network.endpointSubnetPrefix ${network.endpointSubnetPrefix} overlap.'
      : ''
    prefixSize(network.endpointSubnetPrefix) < endpointAddresses
      ? 'network.endpointSubnetPrefix ${network.endpointSubnetPrefix} has ${prefixSize(network.endpointSubnetPrefix)} addresses and needs ${endpointAddresses}: four for each endpoint of the hub, one for each target, and five that Azure keeps.'
      : ''
    prefixSize(network.relaySubnetPrefix) < relayAddresses
      ? 'network.relaySubnetPrefix ${network.relaySubnetPrefix} has ${prefixSize(network.relaySubnetPrefix)} addresses and needs ${relayAddresses}: ${perInstance} for each of the most instances, those of an upgrade, and five that Azure keeps.'
      : ''
    (loadBalancer.?ipv6 ?? false) && !ipv6Network
      ? 'loadBalancer.ipv6 needs network.ipv6, which only a new network has here.'
      : ''
    length(union(customerNames, [])) < length(customerNames) ? 'access.customers: a name is there twice.' : ''
    length(filter(customerNames, one => toLower(one) != one || contains(one, ' '))) > 0
      ? 'access.customers: a name has something other than a-z, 0-9, - _ and . in it.'
      : ''
    length(union(networks, [])) < length(networks) ? 'access.customers: a network is there twice; scripts/azure_preflight.py says which.' : ''
    access.kind == 'securityGroup' && prefixCount(customers) > 4000
      ? 'access.customers: ${prefixCount(customers)} networks, and a security group takes 4,000 in all. Use access.kind relay: the security group then lets the Internet in on the ports of relay, and its own access list decides.'
      : ''
    access.kind == 'securityGroup' && length(ruleSources(customers)) > 990
      ? 'access.customers: they need ${length(ruleSources(customers))} rules, and a security group takes 1,000 in all. Use access.kind relay: its own access list decides then.'
      : ''
    settingsSource.?blob == null && length(userData) > 49152
      ? 'The settings for relay have ${length(userData)} bytes, and user data has room for 48 KiB of them. Set settingsSource.blob, deploy, and put the output relayToml there, followed by what scripts/azure_preflight.py --customers prints.'
      : ''
    contains(settingsSource.?blob ?? '', '?') || !startsWith(settingsSource.?blob ?? 'https://', 'https://')
      ? 'settingsSource.blob is a URL that begins with https:// and has no signature; the identity of the instances reads it.'
      : ''
    settingsSource.?blob != null && outbound.kind == 'none'
      ? 'settingsSource.blob: with outbound.kind none, instances reach no blob. Use a NAT gateway.'
      : ''
    length(sizes) > 1 && scaleSet.osDisk.kind == 'ephemeral'
      ? 'scaleSet.osDisk: several sizes (an instance mix) cannot have an ephemeral disk. Give one size, or a managed disk.'
      : ''
    length(union(sizes, [])) < length(sizes) ? 'scaleSet.sizes: a size is there twice.' : ''
    spot && length(filter(sizes, size => startsWith(toLower(size), 'standard_b'))) > 0
      ? 'scaleSet.sizes: B sizes are never Spot.'
      : ''
    length(versionParts) == 3 && !contains(versionParts[?2] ?? '', '-')
      ? ''
      : 'scaleSet.imageVersion is three integers, such as 1.4.0: a gallery knows no other versions.'
    recovery.kind == 'autoscale' && recovery.minimum > recovery.maximum
      ? 'scaleSet.recovery: minimum is above maximum.'
      : ''
    recovery.kind == 'autoscale' && (wantedInstances < recovery.minimum || wantedInstances > recovery.maximum)
      ? 'scaleSet: ${wantedInstances} instances are not between minimum and maximum of recovery.'
      : ''
    recovery.kind == 'restore' && !spot ? 'scaleSet.recovery: restore is for Spot.' : ''
    !autoscaled && existingCapacity > 0
      ? 'existingCapacity is for a set that is scaled automatically; here the number of instances is a parameter.'
      : ''
    outPorts > outLimit
      ? 'outbound.portsPerInstance: ${outPorts} ports for the most instances, and the addresses have ${outLimit}.'
      : ''
    outbound.kind == 'loadBalancer' && outbound.portsPerInstance % 8 != 0
      ? 'outbound.portsPerInstance is a multiple of 8.'
      : ''
    endpointCount > 1 && !empty(byHand) && dns.kind != 'none'
      ? 'privateEndpoints: several endpoints that are approved by hand have no addresses before that. Deploy with dns.kind none, have them approved, and deploy again without approvalMessage.'
      : ''
    (monitoring.?accessLog ?? false) && monitoring.?workspaceId != null && !startsWith(
        monitoring.?workspaceId ?? '',
        resourceGroup().id
      )
      ? 'monitoring.accessLog: the table is made in a workspace of this resource group only. Leave workspaceId out, or accessLog.'
      : ''
    flowLogs != null && network.kind != 'new'
      ? 'flowLogs: those of a network that is there already are its owner\'s. Leave flowLogs out.'
      : ''
    length(plain) > 1 ? 'targets: one SQL server at most, since its clients are told apart by the port alone.' : ''
    length(union(map(targets, one => one.name), [])) < length(targets) ? 'targets: a name is there twice.' : ''
    length(intersection(map(targets, one => one.name), ['https', 'mqtt', 'amqp', 'device'])) > 0
      ? 'targets: https, mqtt, amqp and device are names of relay\'s own listeners and routes.'
      : ''
  ],
  problem => !empty(problem)
)

// Everything has this name, so nothing is made while there is a problem.
var front = empty(problems) ? name : fail(join(problems, ' '))

// --- resources --------------------------------------------------------------------------------------------------------

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: resourceName('id', front)
  location: location
  tags: tags
}

module newHub 'modules/hub.bicep' = if (hub.kind == 'new') {
  params: {
    location: location
    tags: tags
    hub: hub
  }
}

var hubId = hub.kind == 'new' ? resourceId('Microsoft.Devices/IotHubs', hubName) : hub.id

module securityGroups 'modules/securitygroups.bicep' = {
  params: {
    name: front
    location: location
    tags: tags
    ports: portNumbers
    access: access
    relayPrefixes: [network.relaySubnetPrefix]
    healthPort: string(healthPort)
    metricsPort: (relay.?metricsFromNetwork ?? false) ? string(metricsPort) : ''
  }
}

module nat 'modules/natgateway.bicep' = if (outbound.kind == 'natGateway') {
  params: {
    name: front
    location: location
    tags: tags
    zones: zones
    outbound: outbound
  }
}
var natGatewayId = outbound.kind == 'natGateway' ? nat!.outputs.id : ''

module newNetwork 'modules/network.bicep' = if (network.kind == 'new') {
  params: {
    name: front
    location: location
    tags: tags
    network: network
    relayGroupId: securityGroups.outputs.relayGroupId
    endpointGroupId: securityGroups.outputs.endpointGroupId
    natGatewayId: natGatewayId
  }
}

// Network Watcher is one for each region, in a resource group that Azure makes with the first virtual network.
module flows 'modules/flowlogs.bicep' = if (flowLogs != null && network.kind == 'new') {
  scope: resourceGroup('NetworkWatcherRG')
  params: {
    name: front
    location: location
    tags: tags
    networkId: resourceId('Microsoft.Network/virtualNetworks', resourceName('vnet', front))
    storageAccountId: flowLogs.?storageAccountId ?? ''
    retentionDays: flowLogs.?retentionDays ?? 30
  }
  dependsOn: [newNetwork]
}

var networkScope = split(network.kind == 'existing' ? network.id : resourceGroup().id, '/')

module subnets 'modules/subnets.bicep' = if (network.kind == 'existing') {
  scope: resourceGroup(networkScope[2], networkScope[4])
  params: {
    name: front
    virtualNetworkName: last(networkScope)
    relaySubnetPrefix: network.relaySubnetPrefix
    endpointSubnetPrefix: network.endpointSubnetPrefix
    relayGroupId: securityGroups.outputs.relayGroupId
    endpointGroupId: securityGroups.outputs.endpointGroupId
    natGatewayId: natGatewayId
  }
}

var virtualNetworkId = network.kind == 'new' ? newNetwork!.outputs.id : subnets!.outputs.id
var relaySubnetId = network.kind == 'new' ? newNetwork!.outputs.relaySubnetId : subnets!.outputs.relaySubnetId
var endpointSubnetId = network.kind == 'new' ? newNetwork!.outputs.endpointSubnetId : subnets!.outputs.endpointSubnetId

module balancer 'modules/loadbalancer.bicep' = {
  params: {
    name: front
    location: location
    tags: tags
    zones: zones
    loadBalancer: loadBalancer
    outbound: outbound
    ports: ports
    healthPort: healthPort
  }
}

// --- private endpoints and names --------------------------------------------------------------------------------------

var hubZoneName = 'privatelink.${domains.hub}'
var eventHubsZoneName = 'privatelink.${domains.eventHubs}'
var zoneNames = dns.kind == 'new'
  ? union([hubZoneName, eventHubsZoneName], map(newTargetZones, one => one.zoneName))
  : []

module zoneModules 'modules/zone.bicep' = [
  for zoneName in zoneNames: {
    params: {
      zoneName: zoneName
      tags: tags
      linkName: resourceName('link', front)
      virtualNetworkId: virtualNetworkId
    }
  }
]

var linkedZones = dns.kind == 'existing' && dns.link ? [dns.hubZoneId, dns.eventHubsZoneId] : []

module zoneLinks 'modules/zonelink.bicep' = [
  for zoneId in linkedZones: {
    scope: resourceGroup(split(zoneId, '/')[2], split(zoneId, '/')[4])
    params: {
      zoneName: last(split(zoneId, '/'))
      tags: tags
      linkName: resourceName('link', front)
      virtualNetworkId: virtualNetworkId
    }
  }
]

var hubZoneId = dns.kind == 'existing' ? dns.hubZoneId : resourceId('Microsoft.Network/privateDnsZones', hubZoneName)
var eventHubsZoneId = dns.kind == 'existing'
  ? dns.eventHubsZoneId
  : resourceId('Microsoft.Network/privateDnsZones', eventHubsZoneName)

// One after another: Azure connects a hub to one endpoint at a time.
@batchSize(1)
module hubEndpoints 'modules/privateendpoint.bicep' = [
  for index in range(0, endpointCount): {
    params: {
      name: resourceName('pep', endpointCount == 1 ? '${front}-hub' : '${front}-hub-${index}')
      location: location
      tags: tags
      subnetId: endpointSubnetId
      serviceId: hubId
      groupId: 'iotHub'
      approvalMessage: byHand
      zoneIds: groupZones ? [hubZoneId, eventHubsZoneId] : []
    }
    dependsOn: [newHub, zoneModules]
  }
]

module hubNames 'modules/hubnames.bicep' = if (recordZones) {
  scope: resourceGroup(split(hubId, '/')[2], split(hubId, '/')[4])
  params: {
    hubName: hubName
  }
  dependsOn: [newHub]
}

module hubRecords 'modules/records.bicep' = if (recordZones) {
  scope: resourceGroup(split(hubZoneId, '/')[2], split(hubZoneId, '/')[4])
  params: {
    zoneName: hubZoneName
    names: [hubName, '${hubName}.device', '${hubName}.service']
    suffix: domains.hub
    endpoints: [for index in range(0, endpointCount): hubEndpoints[index].outputs.dns]
  }
  dependsOn: [zoneModules]
}

module eventHubsRecords 'modules/records.bicep' = if (recordZones) {
  scope: resourceGroup(split(eventHubsZoneId, '/')[2], split(eventHubsZoneId, '/')[4])
  params: {
    zoneName: eventHubsZoneName
    names: [hubNames!.outputs.eventHubsLabel]
    suffix: domains.eventHubs
    endpoints: [for index in range(0, endpointCount): hubEndpoints[index].outputs.dns]
  }
  dependsOn: [zoneModules]
}

module targetEndpoints 'modules/privateendpoint.bicep' = [
  for one in described: {
    params: {
      name: resourceName('pep', '${front}-${one.name}')
      location: location
      tags: tags
      subnetId: endpointSubnetId
      serviceId: one.id
      groupId: one.groupId
      approvalMessage: byHand
      zoneIds: !empty(one.zoneId)
        ? [one.zoneId]
        : dns.kind == 'new' ? [resourceId('Microsoft.Network/privateDnsZones', one.zoneName)] : []
    }
    dependsOn: [zoneModules, hubEndpoints]
  }
]

// --- instances --------------------------------------------------------------------------------------------------------

module instances 'modules/scaleset.bicep' = {
  params: {
    name: front
    location: location
    tags: tags
    zones: zones
    mode: flexible ? 'Flexible' : 'Uniform'
    sizes: sizes
    allocation: scaleSet.kind == 'flexible' ? scaleSet.?allocation ?? 'CapacityOptimized' : 'CapacityOptimized'
    capacity: capacity
    smallestCapacity: smallest
    spot: spot
    maxPrice: scaleSet.kind == 'flexible' && scaleSet.priority.kind == 'spot'
      ? scaleSet.priority.?maxPrice ?? '-1'
      : '-1'
    regularBase: scaleSet.kind == 'flexible' && scaleSet.priority.kind == 'spot'
      ? scaleSet.priority.?regularBase ?? 0
      : 0
    regularPercentageAboveBase: scaleSet.kind == 'flexible' && scaleSet.priority.kind == 'spot'
      ? scaleSet.priority.?regularPercentageAboveBase ?? 0
      : 0
    surge: surge
    restoreTimeout: restoreTimeout
    imageId: flexible ? versionId : definitionId
    osDisk: scaleSet.osDisk
    subnetId: relaySubnetId
    poolIds: balancer.outputs.poolIds
    secondaryAddresses: secondaryAddresses
    settings: userData
    identityId: identity.id
    adminUsername: adminUsername
    adminPublicKey: adminPublicKey
    healthPort: healthPort
    monitorAgent: monitoring.?accessLog ?? false
    encryptionAtHost: encryptionAtHost
  }
}

module regulars 'modules/scaleset.bicep' = if (regularInstances > 0) {
  params: {
    name: '${front}-regular'
    location: location
    tags: tags
    zones: zones
    mode: 'Uniform'
    sizes: sizes
    allocation: 'CapacityOptimized'
    capacity: regularInstances
    smallestCapacity: max(1, regularInstances)
    spot: false
    maxPrice: '-1'
    regularBase: 0
    regularPercentageAboveBase: 0
    surge: false
    restoreTimeout: ''
    imageId: definitionId
    osDisk: scaleSet.osDisk
    subnetId: relaySubnetId
    poolIds: balancer.outputs.poolIds
    secondaryAddresses: secondaryAddresses
    settings: userData
    identityId: identity.id
    adminUsername: adminUsername
    adminPublicKey: adminPublicKey
    healthPort: healthPort
    monitorAgent: monitoring.?accessLog ?? false
    encryptionAtHost: encryptionAtHost
  }
}

module autoscale 'modules/autoscale.bicep' = if (autoscaled) {
  params: {
    name: front
    location: location
    tags: tags
    setId: instances.outputs.id
    recovery: recovery
  }
}

// --- monitoring -------------------------------------------------------------------------------------------------------

var monitored = monitoring != null
var setNames = concat(
  [resourceName('vmss', front)],
  regularInstances > 0 ? [resourceName('vmss', '${front}-regular')] : []
)

module workspace 'modules/workspace.bicep' = if (monitored && monitoring.?workspaceId == null) {
  params: {
    name: front
    location: location
    tags: tags
    retentionDays: monitoring.?retentionDays ?? 30
  }
}

var workspaceId = monitoring.?workspaceId ?? resourceId(
  'Microsoft.OperationalInsights/workspaces',
  resourceName('log', front)
)

module alerts 'modules/alerts.bicep' = if (monitored) {
  params: {
    name: front
    location: location
    tags: tags
    emails: monitoring.?emails ?? []
    workspaceId: workspaceId
    balancerName: resourceName('lbe', front)
    scaleSetIds: map(setNames, setName => resourceId('Microsoft.Compute/virtualMachineScaleSets', setName))
    hubId: hubId
  }
  dependsOn: [workspace, balancer, instances, newHub]
}

module logs 'modules/logs.bicep' = if (monitoring.?accessLog ?? false) {
  params: {
    name: front
    location: location
    tags: tags
    workspaceName: last(split(workspaceId, '/'))
    scaleSetNames: setNames
  }
  dependsOn: [workspace, instances, regulars]
}

module workbook 'modules/workbook.bicep' = if (monitoring.?accessLog ?? false) {
  params: {
    name: front
    location: location
    tags: tags
    workspaceId: workspaceId
  }
  dependsOn: [logs]
}

module metrics 'modules/metrics.bicep' = if (monitoring.?metrics ?? false) {
  params: {
    name: front
    location: location
    tags: tags
    actionGroupId: alerts!.outputs.actionGroupId
  }
}

// Azure makes this group with the workspace, and names rule and endpoint in it like the workspace.
module remoteWrite 'modules/remotewrite.bicep' = if (monitoring.?metrics ?? false) {
  scope: resourceGroup('MA_${resourceName('amw', front)}_${location}_managed')
  params: {
    accountName: resourceName('amw', front)
    identityId: identity.id
    principalId: identity.properties.principalId
  }
  dependsOn: [metrics]
}

// --- what the next steps need -----------------------------------------------------------------------------------------

@description('The static address: what devices resolve the hub\'s name to. IPv6 second, where there is one.')
output addresses string[] = balancer.outputs.addresses

@description('Names that lead devices here: hosts entries, or records in a zone of their own network.')
output hostNames string[] = concat([hubHost, deviceHost], map(described, one => one.host))

output scaleSetName string = instances.outputs.name
output imageDefinitionId string = definitionId
output identityClientId string = identity.properties.clientId

@description('PROMETHEUS_REMOTE_WRITE of the image; empty without metrics.')
output remoteWriteUrl string = (monitoring.?metrics ?? false) ? remoteWrite!.outputs.url : ''

@description('The settings of relay. With settingsSource.blob they have no customers: scripts/azure_preflight.py --customers prints those.')
output relayToml string = settings
