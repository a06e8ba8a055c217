// One scale set: Flexible or Uniform, Spot or regular. main.bicep makes one, or with Uniform also a regular one beside it.
//
// Azure's own module (AVM) is not used: it has no priority mix, restore policy, size profile or eviction by deletion.

import { osDisk as osDiskType, tags as tagsType } from '../types.bicep'
import { batchPercent, resourceName, unhealthyPercent } from '../functions.bicep'

@description('Name of the front, with a suffix where there is a second set.')
param name string

param location string
param tags tagsType
param zones string[]
param mode 'Flexible' | 'Uniform'

@description('Several sizes: Flexible only.')
param sizes string[]

param allocation 'LowestPrice' | 'CapacityOptimized'

@description('Instances now. Of a set that is scaled automatically: what it has, or a redeployment takes instances away.')
param capacity int

@description('Instances that percentages of an upgrade are computed for: the fewest that the set may have.')
param smallestCapacity int

param spot bool

@description('Spot: most to pay for an hour, in US dollars; "-1": up to the regular price.')
param maxPrice string

@description('Spot and Flexible: so many regular instances first, then that percentage.')
param regularBase int

param regularPercentageAboveBase int

@description('Regular and Flexible: new instances before the old ones go.')
param surge bool

@description('Spot: how long Azure tries to bring evicted capacity back, ISO 8601; empty: not at all.')
param restoreTimeout string

@description('Flexible: the id of an image version. Uniform: of the definition, whose latest version Azure rolls out.')
param imageId string

param osDisk osDiskType
param subnetId string

@description('Backend pool of IPv4, then of IPv6 where there is one.')
param poolIds string[]

@description('Further addresses of each instance to dial the hub from.')
param secondaryAddresses int

@description('relay.toml. Anybody on the instance can read it: no secret is in it.')
param settings string

param identityId string
param adminUsername string
param adminPublicKey string
param healthPort int

@description('Needs a feature of the subscription: not even false may be there without it.')
param encryptionAtHost bool

@description('Azure Monitor Agent on each instance.')
param monitorAgent bool

var flexible = mode == 'Flexible'

var sku = length(sizes) > 1
  ? { name: 'Mix', capacity: capacity }
  : { name: sizes[0], tier: 'Standard', capacity: capacity }

var rolling = union(
  {
    maxBatchInstancePercent: batchPercent(smallestCapacity)
    maxUnhealthyInstancePercent: unhealthyPercent(smallestCapacity)
    maxUnhealthyUpgradedInstancePercent: 20 // the first instance that stays unhealthy stops the upgrade
    pauseTimeBetweenBatches: 'PT1M'
    prioritizeUnhealthyInstances: true
  },
  surge ? { maxSurge: true } : {},
  flexible ? {} : { rollbackFailedInstancesOnPolicyBreach: true }
)

// Automatic OS upgrades are Uniform's alone; in a Flexible set an upgrade is a change of the image version.
var upgradePolicy = union(
  {
    mode: 'Rolling'
    rollingUpgradePolicy: rolling
  },
  flexible
    ? {}
    : {
        automaticOSUpgradePolicy: {
          enableAutomaticOSUpgrade: true
          useRollingUpgradePolicy: true
          disableAutomaticRollback: false
        }
      }
)

// A notice before a reimage lets relay drain first; it needs its general consent here. A notice before a deletion
// cannot be had on Spot.
var scheduledEvents = union(
  { osImageNotificationProfile: { enable: true, notBeforeTimeout: 'PT15M' } },
  spot ? {} : { terminateNotificationProfile: { enable: true, notBeforeTimeout: 'PT15M' } }
)

var disk = osDisk.kind == 'ephemeral'
  ? {
      createOption: 'FromImage'
      caching: 'ReadOnly'
      diffDiskSettings: { option: 'Local', placement: osDisk.placement }
    }
  : {
      createOption: 'FromImage'
      caching: 'ReadWrite'
      managedDisk: { storageAccountType: osDisk.storage }
    }

var primary = {
  name: 'ipv4'
  properties: {
    primary: true
    privateIPAddressVersion: 'IPv4'
    subnet: { id: subnetId }
    loadBalancerBackendAddressPools: [{ id: poolIds[0] }]
  }
}

var ipv6 = length(poolIds) > 1
  ? [
      {
        name: 'ipv6'
        properties: {
          primary: false
          privateIPAddressVersion: 'IPv6'
          subnet: { id: subnetId }
          loadBalancerBackendAddressPools: [{ id: poolIds[1] }]
        }
      }
    ]
  : []

var secondary = map(range(0, secondaryAddresses), index => {
  name: 'source-${index}'
  properties: {
    primary: false
    privateIPAddressVersion: 'IPv4'
    subnet: { id: subnetId }
  }
})

// Inside the model: as a resource of its own, the extension is no health source of a rolling upgrade.
var healthExtension = {
  name: 'health'
  properties: {
    publisher: 'Microsoft.ManagedServices'
    type: 'ApplicationHealthLinux'
    typeHandlerVersion: '2.0' // rich states: a draining instance is Healthy
    autoUpgradeMinorVersion: true
    settings: {
      protocol: 'http'
      port: healthPort
      requestPath: '/healthz'
      intervalInSeconds: 5
      numberOfProbes: 3
      gracePeriod: 600 // first boot; the default is fifteen seconds
    }
  }
}

var agentExtension = {
  name: 'monitor'
  properties: {
    publisher: 'Microsoft.Azure.Monitor'
    type: 'AzureMonitorLinuxAgent'
    typeHandlerVersion: '1.33'
    autoUpgradeMinorVersion: true
    enableAutomaticUpgrade: true
    provisionAfterExtensions: ['health']
    settings: {
      authentication: {
        managedIdentity: {
          'identifier-name': 'mi_res_id'
          'identifier-value': identityId
        }
      }
    }
  }
}

resource set 'Microsoft.Compute/virtualMachineScaleSets@2025-04-01' = {
  name: resourceName('vmss', name)
  location: location
  tags: tags
  zones: zones
  sku: sku
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: union(
    {
      orchestrationMode: mode
      singlePlacementGroup: false
      platformFaultDomainCount: 1
      upgradePolicy: upgradePolicy
      automaticRepairsPolicy: {
        enabled: true
        gracePeriod: 'PT10M'
        repairAction: 'Replace'
      }
      scaleInPolicy: {
        rules: ['Default']
      }
      virtualMachineProfile: union(
        {
          priority: spot ? 'Spot' : 'Regular'
          userData: base64(settings)
          osProfile: {
            computerNamePrefix: take(replace(name, '-', ''), 9)
            adminUsername: adminUsername
            linuxConfiguration: {
              disablePasswordAuthentication: true
              provisionVMAgent: true
              // A generalised image needs one, although port 22 is closed.
              ssh: {
                publicKeys: [
                  {
                    path: '/home/${adminUsername}/.ssh/authorized_keys'
                    keyData: adminPublicKey
                  }
                ]
              }
            }
          }
          securityProfile: union(
            {
              securityType: 'TrustedLaunch'
              uefiSettings: {
                secureBootEnabled: true
                vTpmEnabled: true
              }
            },
            encryptionAtHost ? { encryptionAtHost: true } : {}
          )
          storageProfile: {
            imageReference: { id: imageId }
            osDisk: disk
          }
          networkProfile: union(
            {
              networkInterfaceConfigurations: [
                {
                  name: 'nic'
                  properties: {
                    primary: true
                    enableAcceleratedNetworking: true
                    deleteOption: 'Delete'
                    ipConfigurations: concat([primary], ipv6, secondary)
                  }
                }
              ]
            },
            flexible ? { networkApiVersion: '2022-11-01' } : {} // Uniform takes it not even as null
          )
          diagnosticsProfile: {
            bootDiagnostics: { enabled: true }
          }
          scheduledEventsProfile: scheduledEvents
          extensionProfile: {
            extensionsTimeBudget: 'PT30M'
            extensions: concat([healthExtension], monitorAgent ? [agentExtension] : [])
          }
        },
        spot
          ? {
              evictionPolicy: 'Delete'
              billingProfile: { maxPrice: json(maxPrice) }
            }
          : {}
      )
    },
    flexible ? {} : { overprovision: false },
    empty(zones) ? {} : { zoneBalance: false },
    // true blocks operations while a zone has no capacity
    length(sizes) > 1
      ? { skuProfile: { vmSizes: map(sizes, size => { name: size }), allocationStrategy: allocation } }
      : {},
    spot && flexible && (regularBase > 0 || regularPercentageAboveBase > 0)
      ? {
          priorityMixPolicy: {
            baseRegularPriorityCount: regularBase
            regularPriorityPercentageAboveBase: regularPercentageAboveBase
          }
        }
      : {},
    spot && !empty(restoreTimeout) ? { spotRestorePolicy: { enabled: true, restoreTimeout: restoreTimeout } } : {}
  )
}

output id string = set.id
output name string = set.name
