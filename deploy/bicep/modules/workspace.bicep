// A Log Analytics workspace.

import { tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType
param retentionDays int

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-02-01' = {
  name: resourceName('log', name)
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: retentionDays
  }
}

output id string = workspace.id
