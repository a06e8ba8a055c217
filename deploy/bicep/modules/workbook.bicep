// A workbook over the access log: who connects, how connections end, who is refused.

import { tags as tagsType } from '../types.bicep'

param name string
param location string
param tags tagsType
param workspaceId string

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, name, 'workbook')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: 'relay: ${name}'
    category: 'workbook'
    sourceId: workspaceId
    serializedData: loadTextContent('../workbook.json')
  }
}
