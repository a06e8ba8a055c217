// A workspace for Prometheus metrics, and relay's own alert rules in it.

import { tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType
param actionGroupId string

// A test runs each expression of these files in a real Prometheus over a real relay.
var loaded = concat(
  loadYamlContent('../../prometheus/relay.rules.yml').groups[0].rules,
  loadYamlContent('../../prometheus/relay-fleet.rules.yml').groups[0].rules
)
var severities = { critical: 1, warning: 2, info: 3 }
var perGroup = 20 // Azure's limit

resource account 'Microsoft.Monitor/accounts@2025-10-03' = {
  name: resourceName('amw', name)
  location: location
  tags: tags
}

resource groups 'Microsoft.AlertsManagement/prometheusRuleGroups@2023-03-01' = [
  for index in range(0, (length(loaded) + perGroup - 1) / perGroup): {
    name: resourceName('rules', '${name}-${index}')
    location: location
    tags: tags
    properties: {
      enabled: true
      interval: 'PT1M'
      scopes: [account.id]
      rules: map(take(skip(loaded, index * perGroup), perGroup), rule => {
        alert: rule.alert
        expression: rule.expr
        for: toUpper('PT${rule.?for ?? '0m'}')
        severity: severities[rule.labels.severity]
        labels: rule.labels
        annotations: rule.annotations
        enabled: true
        resolveConfiguration: { autoResolved: true, timeToResolve: 'PT10M' }
        actions: [{ actionGroupId: actionGroupId }]
      })
    }
  }
]

output id string = account.id
output name string = account.name
