// relay's access log in Log Analytics: first the table, then the rule by which the agent fills it.

import { tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType

@description('Name of a workspace in this resource group.')
param workspaceName string

@description('Names of scale sets in the resource group of the front.')
param scaleSetNames string[]

// One for each field of docs/logs.md; `time` becomes TimeGenerated.
var fields = [
  { name: 'event', type: 'string' }
  { name: 'id', type: 'string' }
  { name: 'listener', type: 'string' }
  { name: 'route', type: 'string' }
  { name: 'customer', type: 'string' }
  { name: 'client', type: 'string' }
  { name: 'sni', type: 'string' }
  { name: 'alpn', type: 'dynamic' }
  { name: 'link_id', type: 'long' }
  { name: 'upstream', type: 'string' }
  { name: 'address', type: 'string' }
  { name: 'source', type: 'string' }
  { name: 'bytes_up', type: 'long' }
  { name: 'bytes_down', type: 'long' }
  { name: 'connect_seconds', type: 'real' }
  { name: 'seconds', type: 'real' }
  { name: 'outcome', type: 'string' }
  { name: 'state', type: 'string' }
  { name: 'error', type: 'string' }
]
var stream = 'Custom-RelayAccess_CL'

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-02-01' existing = {
  name: workspaceName
}

resource table 'Microsoft.OperationalInsights/workspaces/tables@2025-02-01' = {
  parent: workspace
  name: 'RelayAccess_CL'
  properties: {
    plan: 'Analytics'
    schema: {
      name: 'RelayAccess_CL'
      columns: concat([{ name: 'TimeGenerated', type: 'dateTime' }], fields)
    }
  }
}

resource endpoint 'Microsoft.Insights/dataCollectionEndpoints@2024-03-11' = {
  name: resourceName('dce', name)
  location: location
  tags: tags
  properties: {
    networkAcls: { publicNetworkAccess: 'Enabled' }
  }
}

resource rule 'Microsoft.Insights/dataCollectionRules@2024-03-11' = {
  name: resourceName('dcr', name)
  location: location
  tags: tags
  kind: 'Linux'
  properties: {
    dataCollectionEndpointId: endpoint.id
    streamDeclarations: {
      '${stream}': {
        columns: concat(
          [
            { name: 'TimeGenerated', type: 'datetime' }
            { name: 'time', type: 'string' }
          ],
          fields
        )
      }
    }
    dataSources: {
      logFiles: [
        {
          name: 'access'
          streams: [stream]
          format: 'json'
          filePatterns: ['/var/log/relay/access.json']
        }
      ]
    }
    destinations: {
      logAnalytics: [
        {
          name: 'workspace'
          workspaceResourceId: workspace.id
        }
      ]
    }
    dataFlows: [
      {
        streams: [stream]
        destinations: ['workspace']
        transformKql: 'source | extend TimeGenerated = todatetime([\'time\']) | project-away [\'time\']'
        outputStream: stream
      }
    ]
  }
  dependsOn: [table]
}

resource sets 'Microsoft.Compute/virtualMachineScaleSets@2025-04-01' existing = [
  for setName in scaleSetNames: {
    name: setName
  }
]

resource associations 'Microsoft.Insights/dataCollectionRuleAssociations@2024-03-11' = [
  for (setName, index) in scaleSetNames: {
    name: 'relay-access-log'
    scope: sets[index]
    properties: {
      dataCollectionRuleId: rule.id
      description: 'relay\'s access log'
    }
  }
]

resource endpointAssociations 'Microsoft.Insights/dataCollectionRuleAssociations@2024-03-11' = [
  for (setName, index) in scaleSetNames: {
    name: 'configurationAccessEndpoint' // Azure knows this name only
    scope: sets[index]
    properties: {
      dataCollectionEndpointId: endpoint.id
    }
  }
]
