// Pure functions of the templates: names, address arithmetic, percentages of an upgrade, and relay.toml.

import { customer, ruleSource } from 'types.bicep'

// --- names ------------------------------------------------------------------------------------------------------------

@export()
@description('Name of a resource: the abbreviation of the Cloud Adoption Framework, then the name of the front.')
func resourceName(abbreviation string, name string) string => '${abbreviation}-${name}'

@export()
@description('Name of a gallery, which may have no hyphen.')
func galleryName(name string) string => 'gal_${replace(name, '-', '_')}'

// --- addresses --------------------------------------------------------------------------------------------------------

@export()
@description('An IPv4 address as a number.')
func addressNumber(address string) int =>
  int(split(address, '.')[0]) * 16777216 + int(split(address, '.')[1]) * 65536 + int(split(address, '.')[2]) * 256 + int(split(
    address,
    '.'
  )[3])

@export()
@description('Number of addresses of an IPv4 prefix.')
func prefixSize(prefix string) int =>
  addressNumber(parseCidr(prefix).broadcast) - addressNumber(parseCidr(prefix).network) + 1

@export()
@description('True if the two IPv4 prefixes have an address in common.')
func overlap(one string, other string) bool =>
  addressNumber(parseCidr(one).network) <= addressNumber(parseCidr(other).broadcast) && addressNumber(parseCidr(other).network) <= addressNumber(parseCidr(one).broadcast)

@export()
@description('True if an IPv4 prefix lies wholly within another.')
func within(inner string, outer string) bool =>
  addressNumber(parseCidr(inner).network) >= addressNumber(parseCidr(outer).network) && addressNumber(parseCidr(inner).broadcast) <= addressNumber(parseCidr(outer).broadcast)

@export()
@description('Azure keeps the first four addresses of a subnet, and the last.')
var reservedAddresses = 5

// --- a rolling upgrade ------------------------------------------------------------------------------------------------
// Azure rounds percentages of a small set in ways that it does not document. These are the largest percentages that
// mean the wanted number of instances whether Azure rounds up or to the nearest, and where it rounds down it takes one
// at least.

@export()
@description('Instances of one batch: a fifth of the set, one at least.')
func batchInstances(capacity int) int => max(1, capacity / 5)

@export()
@description('maxBatchInstancePercent for that batch.')
func batchPercent(capacity int) int => max(5, batchInstances(capacity) * 100 / capacity)

@export()
@description('Instances that may be unhealthy without stopping an upgrade: the batch and one more, as long as another serves.')
func toleratedInstances(capacity int) int =>
  max(batchInstances(capacity), min(batchInstances(capacity) + 1, capacity - 1))

@export()
@description('maxUnhealthyInstancePercent for those.')
func unhealthyPercent(capacity int) int => min(100, (toleratedInstances(capacity) * 100 + capacity - 1) / capacity)

// --- customers --------------------------------------------------------------------------------------------------------

@export()
@description('Number of prefixes of all customers.')
func prefixCount(customers customer[]) int => length(flatten(map(customers, one => one.networks)))

@export()
@description('IPv4 and IPv6 prefixes cannot be in one rule: a rule for each family that a customer has.')
func ruleSources(customers customer[]) ruleSource[] =>
  filter(
    flatten(map(customers, one => [
      { name: one.name, family: 'ipv4', prefixes: filter(one.networks, network => !contains(network, ':')) }
      { name: one.name, family: 'ipv6', prefixes: filter(one.networks, network => contains(network, ':')) }
    ])),
    rule => !empty(rule.prefixes)
  )

// --- relay.toml -------------------------------------------------------------------------------------------------------
// What JSON writes for a list of strings is what TOML writes for it: both quote and escape alike.

@export()
@description('A line `name = value`, or nothing where there is no value.')
func tomlInteger(name string, value int?) string => value == null ? '' : '${name} = ${value}\n'

@export()
@description('A number that may have a fraction in relay, and is a whole one here.')
func tomlFloat(name string, value int?) string => value == null ? '' : '${name} = ${value}.0\n'

@export()
func tomlStrings(name string, values string[]?) string => values == null ? '' : '${name} = ${string(values)}\n'

@export()
@description('A string without quotes or backslashes: host names, and names that a type restricts.')
func tomlString(name string, value string) string => '${name} = "${value}"\n'

@export()
@description('A table with its lines; nothing where all of them are empty.')
func tomlTable(header string, lines string[]) string => empty(join(lines, '')) ? '' : '\n${header}\n${join(lines, '')}'

@export()
func customerToml(one customer) string =>
  tomlTable('[[customers]]', [
    tomlString('name', one.name)
    tomlStrings('networks', one.networks)
    tomlInteger('max_connections', one.?maxConnections)
    tomlFloat('connect_rate', one.?connectRate)
    tomlInteger('connect_burst', one.?connectBurst)
    tomlStrings('listeners', one.?listeners)
  ])
