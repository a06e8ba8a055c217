"""`relay fetch-settings`: reads the settings of this machine from where its fleet's are published, and applies them.

`command` is the command line, `responder` what answers on the health port of a machine that has no settings yet.
`attempt` does it once: it reads (`http`, `metadata`, `blob`), checks, writes (`place`), and has the running relay
reload (`takeover`). What came of it is in a report that the running relay shows (`supervisor.settings_source`).
"""
