// relay.toml, made of main.bicep's parameters. The names are relay's: docs/configuration.md.

import { customer, listenerName, relaySettings, settingsSource } from 'types.bicep'
import { customerToml, tomlFloat, tomlInteger, tomlString, tomlStrings, tomlTable } from 'functions.bicep'

@export()
@description('A target with its host name: a route by that name, or for SQL, whose clients do not begin with TLS, a listener.')
type route = {
  name: string
  host: string
  listeners: listenerName[]
}

@export()
@description('SQL: a listener of its own on 1433.')
type plainListener = {
  name: string
  host: string
  port: int
}

func routeToml(header string, one route, port string) string =>
  tomlTable(header, [
    tomlString('name', one.name)
    tomlStrings('sni', [one.host])
    tomlStrings('upstream', ['${one.host}${port}'])
    empty(port) ? tomlStrings('listeners', one.listeners) : ''
  ])

// The short form: relay has its three listeners by itself, and a route for the hub's device name.
func shortForm(hubHost string, routes route[]) string =>
  join(concat([tomlStrings('upstream', [hubHost])], map(routes, one => routeToml('[[routes]]', one, ''))), '')

func listenerToml(name string, port int, hubHost string, deviceHost string, routes route[]) string =>
  join(
    concat(
      [
        tomlTable('[[listeners]]', [
          tomlString('name', name)
          tomlStrings('bind', ['0.0.0.0:${port}', '[::]:${port}'])
          tomlStrings('upstream', ['${hubHost}:${port}'])
        ])
        routeToml('[[listeners.routes]]', { name: 'device', host: deviceHost, listeners: [] }, ':${port}')
      ],
      map(
        filter(routes, one => contains(one.listeners, name)),
        one => routeToml('[[listeners.routes]]', one, ':${port}')
      )
    ),
    ''
  )

func plainToml(one plainListener) string =>
  tomlTable('[[listeners]]', [
    tomlString('name', one.name)
    tomlStrings('bind', ['0.0.0.0:${one.port}', '[::]:${one.port}'])
    tomlStrings('upstream', ['${one.host}:${one.port}'])
  ])

// The long form is needed as soon as there is a listener of another port.
func longForm(
  hubHost string,
  deviceHost string,
  routes route[],
  plain plainListener[],
  ports { name: string, port: int }[]
) string =>
  join(
    concat(
      map(
        filter(ports, one => !contains(map(plain, other => other.name), one.name)),
        one => listenerToml(one.name, one.port, hubHost, deviceHost, routes)
      ),
      map(plain, one => plainToml(one))
    ),
    ''
  )

@export()
@description('All settings, as they stand in relay.toml or in the blob.')
func settingsToml(
  hubHost string,
  deviceHost string,
  routes route[],
  plain plainListener[],
  ports { name: string, port: int }[],
  customers customer[],
  dialRate int?,
  relay relaySettings
) string =>
  join(
    [
      '# Made by deploy/bicep/main.bicep; changed by another deployment.\n'
      empty(plain) ? shortForm(hubHost, routes) : longForm(hubHost, deviceHost, routes, plain, ports)
      tomlTable('[limits]', [
        tomlInteger('max_connections', relay.?maxConnections)
        tomlInteger('max_connections_per_source', relay.?maxConnectionsPerSource)
      ])
      tomlTable('[dial]', [tomlFloat('rate', dialRate)])
      tomlTable('[timeouts]', [tomlFloat('max_age', relay.?maxAge)])
      (relay.?metricsFromNetwork ?? false) ? tomlTable('[admin]', [tomlString('bind', '0.0.0.0:8414')]) : ''
      '\n[azure]\nscheduled_events = true\n'
      join(map(customers, one => customerToml(one)), '')
    ],
    ''
  )

@export()
@description('The user data: the settings, or the name of the blob that has them; and which part of the instances takes new ones.')
func userDataToml(settings string, source settingsSource) string =>
  join(
    [
      source.?blob == null ? settings : '# Made by deploy/bicep/main.bicep; the settings are in this blob.\n'
      tomlTable('[settings_source]', [
        source.?blob == null ? '' : tomlString('blob', source.?blob ?? '')
        tomlInteger('percentage', source.?percentage)
        source.?canaryTag == null ? '' : tomlString('canary_tag', source.?canaryTag ?? '')
      ])
    ],
    ''
  )
