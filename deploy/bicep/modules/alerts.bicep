// Who is told, and of what Azure itself measures: no healthy instance, a hub that throttles, failed operations, suspended
// repairs, events of the load balancer.

import { tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType
param emails string[]
param workspaceId string
param balancerName string
param scaleSetIds string[]
param hubId string

resource actionGroup 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: resourceName('ag', name)
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: take(replace(name, '-', ''), 12)
    emailReceivers: map(emails, (email, index) => {
      name: 'mail-${index}'
      emailAddress: email
      useCommonAlertSchema: true
    })
  }
}

resource balancer 'Microsoft.Network/loadBalancers@2025-05-01' existing = {
  name: balancerName
}

var metricAlerts = [
  {
    name: 'no-healthy-instance'
    description: 'No instance answers the probe of the load balancer: it now sends flows to all of them (fail open). Look at /readyz of an instance.'
    severity: 0
    scope: balancer.id
    metric: 'DipAvailability'
    aggregation: 'Average'
    operator: 'LessThan'
    threshold: 1
  }
  {
    name: 'address-unavailable'
    description: 'The data path to the static address is impaired.'
    severity: 1
    scope: balancer.id
    metric: 'VipAvailability'
    aggregation: 'Average'
    operator: 'LessThan'
    threshold: 90
  }
  {
    name: 'hub-throttles'
    description: 'The hub refuses telemetry above its throttle. It needs more units, or devices send too often.'
    severity: 2
    scope: hubId
    metric: 'd2c.telemetry.ingress.sendThrottle'
    aggregation: 'Total'
    operator: 'GreaterThan'
    threshold: 0
  }
]

resource metrics 'Microsoft.Insights/metricAlerts@2026-01-01' = [
  for one in metricAlerts: {
    name: resourceName('alert', '${name}-${one.name}')
    location: 'global'
    tags: tags
    properties: {
      enabled: true
      description: one.description
      severity: one.severity
      scopes: [one.scope]
      evaluationFrequency: 'PT1M'
      windowSize: 'PT5M'
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            name: one.name
            criterionType: 'StaticThresholdCriterion'
            metricName: one.metric
            timeAggregation: one.aggregation
            operator: one.operator
            threshold: one.threshold
          }
        ]
      }
      actions: [{ actionGroupId: actionGroup.id }]
    }
  }
]

// A rolling upgrade that fails is a failed operation of the set; Azure has no metric for it.
resource failed 'Microsoft.Insights/activityLogAlerts@2026-01-01' = {
  name: resourceName('alert', '${name}-operation-failed')
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    description: 'An operation on the scale set failed: a rolling upgrade, a repair, or no capacity. The activity log of the set has the reason.'
    scopes: [resourceGroup().id]
    condition: {
      allOf: [
        { field: 'category', equals: 'Administrative' }
        { field: 'status', equals: 'Failed' }
        { anyOf: map(scaleSetIds, id => { field: 'resourceId', equals: id }) }
      ]
    }
    actions: { actionGroups: [{ actionGroupId: actionGroup.id }] }
  }
}

resource repairs 'Microsoft.Insights/activityLogAlerts@2026-01-01' = {
  name: resourceName('alert', '${name}-repairs')
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    description: 'Repairs of the scale set were suspended or resumed: az vmss get-instance-view has orchestrationServices.'
    scopes: [resourceGroup().id]
    condition: {
      allOf: [
        { field: 'category', equals: 'Administrative' }
        {
          field: 'operationName'
          equals: 'Microsoft.Compute/virtualMachineScaleSets/setOrchestrationServiceState/action'
        }
      ]
    }
    actions: { actionGroups: [{ actionGroupId: actionGroup.id }] }
  }
}

// The stable version, of 2016, has neither these categories nor a name of one's own.
#disable-next-line use-recent-api-versions
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'relay'
  scope: balancer
  properties: {
    workspaceId: workspaceId
    logs: [{ category: 'LoadBalancerHealthEvent', enabled: true }]
    metrics: [{ category: 'AllMetrics', enabled: true }]
  }
}

resource healthEvents 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = {
  name: resourceName('alert', '${name}-balancer-events')
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    enabled: true
    displayName: 'Health events of the load balancer'
    description: 'Azure reports a cause on its side or ours: the column Description says which.'
    severity: 2
    scopes: [workspaceId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    autoMitigate: true
    skipQueryValidation: true // the table is there with the first event only
    criteria: {
      allOf: [
        {
          query: 'ALBHealthEvent | where LoadBalancerResourceId =~ "${balancer.id}"'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: [actionGroup.id] }
  }
  dependsOn: [diagnostics]
}

output actionGroupId string = actionGroup.id
