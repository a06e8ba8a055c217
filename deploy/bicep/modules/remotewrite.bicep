// In the resource group that Azure keeps for a workspace of metrics: the identity of the instances may write, and where to.

param accountName string
param identityId string
param principalId string

resource rule 'Microsoft.Insights/dataCollectionRules@2024-03-11' existing = {
  name: accountName
}

resource endpoint 'Microsoft.Insights/dataCollectionEndpoints@2024-03-11' existing = {
  name: accountName
}

// Monitoring Metrics Publisher
var publisherRole = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  '3913510d-42f4-4e42-8a64-420c390055eb'
)

resource publishing 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(rule.id, identityId, publisherRole)
  scope: rule
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: publisherRole
  }
}

@description('PROMETHEUS_REMOTE_WRITE of the image.')
output url string = '${endpoint.properties.metricsIngestion.endpoint}/dataCollectionRules/${rule.properties.immutableId}/streams/Microsoft-PrometheusMetrics/api/v1/write?api-version=2023-04-24'
