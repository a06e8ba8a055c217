// The types of main.bicep's parameters. A choice between several shapes is a union with `kind` as its discriminator, and
// every type is sealed: a property that is misspelt, or belongs to another shape, does not compile.

@export()
type tags = { *: string }

@export()
@description('Prefixes of one customer and one family: what a rule of a security group takes.')
@sealed()
type ruleSource = {
  name: string
  family: 'ipv4' | 'ipv6'
  prefixes: string[]
}

@export()
@description('Ports on which relay listens: name of its listener, and port. The load balancer has a rule for each.')
type listenerName = 'https' | 'mqtt' | 'amqp'

// --- the hub ----------------------------------------------------------------------------------------------------------

@description('An IoT Hub that is there already, in any resource group or subscription.')
@sealed()
type existingHub = {
  kind: 'existing'

  @description('Resource id: az iot hub show --name HUB --query id --output tsv')
  @minLength(60)
  id: string
}

@description('An IoT Hub that this deployment makes.')
@sealed()
type newHub = {
  kind: 'new'

  @description('Name of the hub, unique in the world: the first label of its host name.')
  @minLength(3)
  @maxLength(50)
  name: string

  @description('Tier. It decides how many connections a second the hub takes: S1 12, S2 120, S3 6000 for each unit.')
  sku: 'S1' | 'S2' | 'S3'

  @description('Number of units.')
  @minValue(1)
  @maxValue(200)
  units: int

  @description('Partitions of the Event Hubs compatible endpoint; fixed when the hub is made. Default 4.')
  @minValue(2)
  @maxValue(128)
  partitions: int?

  @description('Whether the hub answers on its public address too. Default Disabled; docs/how-to/deploy-to-azure.md says what that breaks.')
  publicNetworkAccess: ('Enabled' | 'Disabled')?

  @description('With public access: the only networks that may use it, as IPv4 prefixes. Empty: all.')
  @maxLength(100)
  allowedNetworks: string[]?

  @description('True: no shared access keys at all, of the service or of devices; devices then need X.509. Default false.')
  disableLocalAuth: bool?
}

@export()
@discriminator('kind')
type hub = existingHub | newHub

@export()
@description('Domains of host names, without privatelink. and without a dot in front.')
@sealed()
type domains = {
  hub: string
  provisioning: string
  eventHubs: string
  storage: string
  sql: string
}

// --- the network ------------------------------------------------------------------------------------------------------

@description('A virtual network that this deployment makes.')
@sealed()
type newNetwork = {
  kind: 'new'

  @description('Address space, IPv4, such as 10.40.0.0/24.')
  addressPrefix: string

  @description('Subnet of the relay instances: an address for each instance and source address, and those of an upgrade.')
  relaySubnetPrefix: string

  @description('Subnet of the private endpoints: four addresses for each endpoint of a hub, and five that Azure keeps.')
  endpointSubnetPrefix: string

  @description('With IPv6 clients: address space /48 to /63 and the relay subnet /64 in it.')
  ipv6: {
    addressPrefix: string
    relaySubnetPrefix: string
  }?
}

@description('A virtual network that is there already. This deployment adds its two subnets to it, and changes nothing else.')
@sealed()
type existingNetwork = {
  kind: 'existing'

  @description('Resource id of the virtual network, in the region of this deployment.')
  @minLength(60)
  id: string

  @description('Address space of the network that has both subnets, to check them against.')
  addressPrefix: string

  @description('As of a new network; free in the existing one.')
  relaySubnetPrefix: string

  @description('As of a new network; free in the existing one.')
  endpointSubnetPrefix: string
}

@export()
@discriminator('kind')
type network = newNetwork | existingNetwork

@export()
@sealed()
@description('Virtual network flow logs. (Those of security groups cannot be made any more.)')
type flowLogs = {
  @description('Storage account in the region, resource id.')
  @minLength(60)
  storageAccountId: string

  @description('Days to keep them. Default 30.')
  @minValue(1)
  @maxValue(365)
  retentionDays: int?
}

@description('A NAT gateway: 64,512 ports for each address, no port of relay\'s clients is touched.')
@sealed()
type natGateway = {
  kind: 'natGateway'

  @description('StandardV2 spans the zones; Standard lives in one of them.')
  sku: 'StandardV2' | 'Standard'

  @description('Number of public addresses. Default 1.')
  @minValue(1)
  @maxValue(16)
  addresses: int?

  @description('Standard only: its zone. Default none (Azure chooses).')
  zone: ('1' | '2' | '3')?
}

@description('An outbound rule of the load balancer on an address of its own. Lacks: ports are split evenly beforehand, so an instance may run out while others have plenty.')
@sealed()
type outboundRule = {
  kind: 'loadBalancer'

  @description('Ports of each instance, a multiple of 8: 64,000 for each address, divided by the most instances.')
  @minValue(8)
  @maxValue(64000)
  portsPerInstance: int

  @description('Number of public addresses. Default 1.')
  @minValue(1)
  @maxValue(16)
  addresses: int?
}

@description('No way out. Lacks: package updates, Azure Monitor Agent, remote write and blobs with settings, unless private endpoints lead there.')
@sealed()
type noOutbound = {
  kind: 'none'
}

@export()
@discriminator('kind')
type outbound = natGateway | outboundRule | noOutbound

// --- who may connect --------------------------------------------------------------------------------------------------

@export()
@description('A group of clients. It becomes a rule of the security group and a [[customers]] table of relay.')
@sealed()
type customer = {
  @description('1 to 64 of a-z 0-9 - _ . ; a label in relay\'s metrics and log.')
  @minLength(1)
  @maxLength(64)
  name: string

  @description('Networks from which it connects: IPv4 and IPv6 prefixes, such as 203.0.113.0/24.')
  @minLength(1)
  networks: string[]

  @description('Most connections at once, on each instance. Default: no limit.')
  @minValue(1)
  maxConnections: int?

  @description('Most new connections a second, on each instance. Default: no limit.')
  @minValue(1)
  connectRate: int?

  @description('Burst of connectRate. Default: one second\'s worth.')
  @minValue(1)
  connectBurst: int?

  @description('Listeners that it may use. Default: all.')
  @minLength(1)
  listeners: listenerName[]?
}

@description('The security group lets each customer in, and nobody else; relay gets the same list. Azure takes 4,000 prefixes and 1,000 rules in a security group.')
@sealed()
type accessBySecurityGroup = {
  kind: 'securityGroup'

  @minLength(1)
  customers: customer[]
}

@description('The security group lets the Internet in on the ports of relay, and relay\'s own list decides. For more than 4,000 prefixes.')
@sealed()
type accessByRelay = {
  kind: 'relay'

  @minLength(1)
  customers: customer[]
}

@description('Anybody may connect. The hub still asks each device for its credentials.')
@sealed()
type accessOpen = {
  kind: 'open'
}

@export()
@discriminator('kind')
type access = accessBySecurityGroup | accessByRelay | accessOpen

// --- the load balancer ------------------------------------------------------------------------------------------------

@export()
@sealed()
type loadBalancer = {
  @description('Public IP prefix to take the static address from: resource id. Default: any address.')
  publicIpPrefixId: string?

  @description('An IPv6 address besides; the network needs ipv6. Default false.')
  ipv6: bool?

  @description('Idle timeout of a flow in minutes; relay\'s keepalive is far shorter. Default 30.')
  @minValue(4)
  @maxValue(30)
  idleTimeoutMinutes: int?

  @description('Seconds between two probes of /readyz. Default 5.')
  @minValue(5)
  @maxValue(60)
  probeInterval: int?

  @description('Failed probes in a row after which an instance gets no new flows. Default 2.')
  @minValue(1)
  @maxValue(10)
  probeThreshold: int?
}

// --- the scale set ----------------------------------------------------------------------------------------------------

@description('Azure tries to bring back evicted Spot capacity. Not together with autoscale, which turns it off.')
@sealed()
type recoveryRestore = {
  kind: 'restore'

  @description('How long it tries: ISO 8601, such as PT1H. Default PT1H.')
  timeout: string?
}

@description('Autoscale on CPU and flows; it also replaces what was evicted.')
@sealed()
type recoveryAutoscale = {
  kind: 'autoscale'

  @minValue(1)
  @maxValue(1000)
  minimum: int

  @minValue(1)
  @maxValue(1000)
  maximum: int

  @description('Percent of CPU, as an average, above which one instance is added. Default 60; one is removed below half.')
  @minValue(10)
  @maxValue(95)
  cpuPercent: int?

  @description('Flows of an instance above which one is added; a connection has two. Default 100000; one is removed below half.')
  @minValue(1000)
  @maxValue(400000)
  flowsPerInstance: int?
}

@description('Evicted instances are not replaced until somebody deploys again.')
@sealed()
type recoveryNone = {
  kind: 'none'
}

@export()
@discriminator('kind')
type recovery = recoveryRestore | recoveryAutoscale | recoveryNone

@sealed()
type managedDisk = {
  kind: 'managed'

  @description('Standard HDD is being retired.')
  storage: 'StandardSSD_LRS' | 'Premium_LRS'
}

@description('On the host\'s local disk: nothing to pay, gone with the instance. Sizes with a local disk only, and not with several sizes.')
@sealed()
type ephemeralDisk = {
  kind: 'ephemeral'

  placement: 'CacheDisk' | 'ResourceDisk' | 'NvmeDisk'
}

@export()
@discriminator('kind')
type osDisk = managedDisk | ephemeralDisk

@description('Spot instances, evicted when Azure needs the capacity, with a base of regular ones.')
@sealed()
type prioritySpot = {
  kind: 'spot'

  @description('So many of the first instances are regular. Only a new set takes it; later it decides on instances to come.')
  @minValue(0)
  @maxValue(1000)
  regularBase: int?

  @description('Percent of regular instances above the base. Default 0.')
  @minValue(0)
  @maxValue(100)
  regularPercentageAboveBase: int?

  @description('Most to pay for an hour of an instance in US dollars, as a string; "-1": up to the regular price. Default "-1".')
  maxPrice: string?
}

@sealed()
type priorityRegular = {
  kind: 'regular'

  @description('surge: new instances first, then the old ones go, with a notice of 15 minutes. inPlace: reimaged, batch by batch. Default inPlace.')
  upgrade: ('inPlace' | 'surge')?
}

@export()
@discriminator('kind')
type priority = prioritySpot | priorityRegular

@description('Flexible orchestration. A release is one redeployment with another imageVersion, rolled out by health.')
@sealed()
type flexibleSet = {
  kind: 'flexible'

  @description('Version of the image: three integers. Rolling back is deploying the former one.')
  @minLength(5)
  imageVersion: string

  @description('One to five VM sizes, of one architecture and one kind of local disk; no B sizes, which are never Spot.')
  @minLength(1)
  @maxLength(5)
  sizes: string[]

  @description('With several sizes: which one a new instance gets. Default CapacityOptimized, the fewest evictions.')
  allocation: ('LowestPrice' | 'CapacityOptimized')?

  @minValue(1)
  @maxValue(1000)
  instances: int

  priority: priority
  recovery: recovery
  osDisk: osDisk
}

@description('Uniform orchestration. Azure itself upgrades to the latest version of the image definition.')
@sealed()
type uniformSet = {
  kind: 'uniform'

  size: string

  @minValue(1)
  @maxValue(1000)
  spotInstances: int

  @description('Instances of a second, regular set behind the same address. 0: no such set.')
  @minValue(0)
  @maxValue(1000)
  regularInstances: int

  recovery: recovery
  osDisk: osDisk
}

@export()
@discriminator('kind')
type scaleSet = flexibleSet | uniformSet

@export()
@description('The gallery of gallery.bicep.')
@sealed()
type image = {
  galleryName: string

  @description('Default: the resource group of this deployment.')
  resourceGroup: string?

  @description('Image definition in it. Default relay-amd64.')
  definition: string?
}

// --- private endpoints ------------------------------------------------------------------------------------------------

@description('Private DNS zones of this deployment, linked to relay\'s network and to no other.')
@sealed()
type newZones = {
  kind: 'new'
}

@description('Central zones. Records are written into them.')
@sealed()
type existingZones = {
  kind: 'existing'

  @description('Resource id of privatelink.azure-devices.net.')
  hubZoneId: string

  @description('Resource id of privatelink.servicebus.windows.net.')
  eventHubsZoneId: string

  @description('True: link them to relay\'s network here. False: they are linked already, or resolved by way of a hub network.')
  link: bool
}

@description('Nobody writes records here: a policy of the enterprise does.')
@sealed()
type noZones = {
  kind: 'none'
}

@export()
@discriminator('kind')
type dns = newZones | existingZones | noZones

@export()
@sealed()
type privateEndpoints = {
  @description('Number of endpoints of the hub: 64,000 connections of an instance\'s address go through each. Default 1.')
  @minValue(1)
  @maxValue(16)
  count: int?

  dns: dns

  @description('The owner of the hub approves the connection by hand, and reads this message. Default: approved by this deployment.')
  @maxLength(140)
  approvalMessage: string?
}

@export()
@description('A further Private Link service behind the same address, told apart by the name in the TLS hello (SQL: by its port).')
@sealed()
type target = {
  @description('Name of the route in relay: 1 to 32 of a-z 0-9 - .')
  @minLength(1)
  @maxLength(32)
  name: string

  service: 'provisioning' | 'blob' | 'eventHubs' | 'sql'

  @description('Resource id of the DPS, storage account, Event Hubs namespace or SQL server.')
  @minLength(60)
  id: string

  @description('Existing zone to write into, as a resource id. Default: as for the hub, a new zone or none.')
  zoneId: string?
}

@export()
@description('Where instances get their settings from: user data, or a blob that user data names (relay fetch-settings).')
@sealed()
type settingsSource = {
  @description('For settings above 48 KiB: URL of a blob, without a signature. It gets the output relayToml of this deployment and the customers. The identity of the instances needs Storage Blob Data Reader.')
  @minLength(20)
  blob: string?

  @description('Percent of the instances that take new settings. Default: all.')
  @minValue(0)
  @maxValue(100)
  percentage: int?

  @description('name:value of a tag; instances that have it take new settings in any case.')
  canaryTag: string?
}

// --- monitoring -------------------------------------------------------------------------------------------------------

@export()
@sealed()
@description('Logs, metrics and alerts. Without it, there are none.')
type monitoring = {
  @description('Who is told of alerts, by mail.')
  @minLength(1)
  @maxLength(10)
  emails: string[]

  @description('An existing Log Analytics workspace: resource id. Default: a new one.')
  workspaceId: string?

  @description('Days that a new workspace keeps logs. Default 30.')
  @minValue(30)
  @maxValue(730)
  retentionDays: int?

  @description('Azure Monitor Agent on each instance, and relay\'s access log in the table RelayAccess_CL. The image needs AZURE_MONITOR=file. Default false.')
  accessLog: bool?

  @description('A workspace for Prometheus metrics, with relay\'s own alert rules. The image needs Prometheus in agent mode. Default false.')
  metrics: bool?
}

// --- relay's settings -------------------------------------------------------------------------------------------------

@export()
@description('Settings of relay, docs/configuration.md. What is left out keeps relay\'s default.')
@sealed()
type relaySettings = {
  @minValue(1)
  @maxValue(200000)
  maxConnections: int?

  @minValue(1)
  maxConnectionsPerSource: int?

  @description('Connects to the hub a second, on each instance. Default: of a new hub, its throttle divided by the most instances.')
  @minValue(1)
  dialRate: int?

  @description('Seconds after which a connection is closed, so that load spreads over new instances. Default 0: never.')
  @minValue(0)
  maxAge: int?

  @description('Metrics and operations on port 8414 from the virtual network. Who reaches it can drain an instance. Default false.')
  metricsFromNetwork: bool?
}
