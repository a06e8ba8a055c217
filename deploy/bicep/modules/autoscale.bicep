// Autoscale of one set, on CPU and flows; it also replaces what was evicted. No agent is needed for either metric.

import { recovery as recoveryType, tags as tagsType } from '../types.bicep'
import { resourceName } from '../functions.bicep'

param name string
param location string
param tags tagsType
param setId string

@description('Kind is autoscale.')
param recovery recoveryType

var wanted = recovery.kind == 'autoscale' ? recovery : fail('modules/autoscale.bicep is for recovery.kind autoscale')
var cpu = wanted.?cpuPercent ?? 60
var flows = wanted.?flowsPerInstance ?? 100000

// One goes only when both metrics are below half: Azure adds an instance if any rule says so, and removes one if all do.
var triggers = [
  { metric: 'Percentage CPU', operator: 'GreaterThan', threshold: cpu, direction: 'Increase', cooldown: 'PT5M' }
  { metric: 'Inbound Flows', operator: 'GreaterThan', threshold: flows, direction: 'Increase', cooldown: 'PT5M' }
  { metric: 'Percentage CPU', operator: 'LessThan', threshold: cpu / 2, direction: 'Decrease', cooldown: 'PT15M' }
  { metric: 'Inbound Flows', operator: 'LessThan', threshold: flows / 2, direction: 'Decrease', cooldown: 'PT15M' }
]

resource autoscale 'Microsoft.Insights/autoscaleSettings@2022-10-01' = {
  name: resourceName('autoscale', name)
  location: location
  tags: tags
  properties: {
    enabled: true
    targetResourceUri: setId
    profiles: [
      {
        name: 'cpu-and-flows'
        capacity: {
          minimum: string(wanted.minimum)
          maximum: string(wanted.maximum)
          default: string(wanted.minimum) // while metrics are missing
        }
        rules: map(triggers, trigger => {
          metricTrigger: {
            metricName: trigger.metric
            metricResourceUri: setId
            statistic: 'Average'
            timeAggregation: 'Average'
            timeGrain: 'PT1M'
            timeWindow: 'PT5M'
            operator: trigger.operator
            threshold: trigger.threshold
          }
          scaleAction: {
            direction: trigger.direction
            type: 'ChangeCount'
            value: '1'
            cooldown: trigger.cooldown
          }
        })
      }
    ]
  }
}
