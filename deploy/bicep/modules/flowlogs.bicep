// Virtual network flow logs, in the resource group of the region's Network Watcher.

import { tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType
param networkId string
param storageAccountId string
param retentionDays int

resource watcher 'Microsoft.Network/networkWatchers@2025-05-01' existing = {
  name: 'NetworkWatcher_${location}'
}

resource flows 'Microsoft.Network/networkWatchers/flowLogs@2025-05-01' = {
  parent: watcher
  name: resourceName('flow', name)
  location: location
  tags: tags
  properties: {
    enabled: true
    targetResourceId: networkId
    storageId: storageAccountId
    retentionPolicy: { enabled: true, days: retentionDays }
    format: { type: 'JSON', version: 2 }
  }
}
