// First deployment: the gallery and its image definitions, before Packer runs. Packer publishes versions into them, and
// main.bicep makes instances from those.
//
//     az deployment group create --resource-group RG --template-file deploy/bicep/gallery.bicep \
//         --parameters deploy/bicep/params/gallery.bicepparam

import { galleryName } from 'functions.bicep'
import { tags as tagsType } from 'types.bicep'

@description('Name of the front, as in main.bicep.')
@minLength(2)
@maxLength(24)
param name string

param location string = resourceGroup().location

@description('Architectures to have a definition for. Sizes with a p in their name (D4ps_v6) are Arm64.')
@minLength(1)
param architectures ('x64' | 'Arm64')[] = ['x64']

@description('Publisher, offer and sku are unique within a gallery and name nobody outside of it.')
param publisher string = 'relay'

@description('Tags of every resource.')
param tags tagsType = {}

@description('Object id of the identity that Packer runs as: it may publish versions. Empty: it has rights already.')
param packerPrincipalId string = ''

resource gallery 'Microsoft.Compute/galleries@2025-03-03' = {
  name: galleryName(name)
  location: location
  tags: tags
  properties: {
    description: 'Machine images of relay'
  }
}

// Features cannot be changed later. A definition that only supports Trusted Launch (TrustedLaunchSupported, the default)
// refuses versions that are made from a machine, which is what Packer makes.
resource definitions 'Microsoft.Compute/galleries/images@2025-03-03' = [
  for architecture in architectures: {
    parent: gallery
    name: 'relay-${architecture == 'x64' ? 'amd64' : 'arm64'}'
    location: location
    tags: tags
    properties: {
      osType: 'Linux'
      osState: 'Generalized'
      hyperVGeneration: 'V2'
      architecture: architecture
      identifier: {
        publisher: publisher
        offer: 'relay'
        sku: 'ubuntu-24_04-${toLower(architecture)}'
      }
      features: [
        { name: 'SecurityType', value: 'TrustedLaunch' }
        { name: 'IsAcceleratedNetworkSupported', value: 'True' }
        { name: 'DiskControllerTypes', value: 'SCSI, NVMe' }
      ]
      recommended: {
        vCPUs: { min: 2, max: 16 }
        memory: { min: 4, max: 64 }
      }
    }
  }
]

// Compute Gallery Artifacts Publisher
var publisherRole = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  '85a2d0d9-2eba-4c9c-b355-11c2cc0788ab'
)

resource publishing 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(packerPrincipalId)) {
  name: guid(gallery.id, packerPrincipalId, publisherRole)
  scope: gallery
  properties: {
    principalId: packerPrincipalId
    roleDefinitionId: publisherRole
  }
}

output galleryName string = gallery.name
output galleryResourceGroup string = resourceGroup().name

@description('Resource id of each definition, in the order of `architectures`.')
output definitionIds string[] = [for (architecture, index) in architectures: definitions[index].id]

@description('Packer\'s variable `gallery`, for each architecture.')
output packer { resource_group: string, name: string, image: string }[] = [
  for (architecture, index) in architectures: {
    resource_group: resourceGroup().name
    name: gallery.name
    image: definitions[index].name
  }
]
