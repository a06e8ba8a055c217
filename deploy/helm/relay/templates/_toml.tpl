{{/*
relay.toml. Not by toToml: Helm reads every number of a value file as a float, and toToml writes 4 as 4.0, which relay
refuses where it wants a whole number. JSON strings are valid TOML strings; tables below a section are inline tables.
*/}}
{{- define "relay.tomlValue" -}}
{{- if kindIs "map" . -}}
{ {{- $first := true -}}
{{- range $key, $value := . -}}
{{- if not $first }},{{ end }} {{ include "relay.tomlKey" $key }} = {{ include "relay.tomlValue" $value }}
{{- $first = false -}}
{{- end }} }
{{- else if kindIs "slice" . -}}
[{{- range $index, $value := . -}}{{- if $index }}, {{ end -}}{{ include "relay.tomlValue" $value }}{{- end -}}]
{{- else if kindIs "float64" . -}}
{{- if eq . (float64 (int64 .)) -}}{{ int64 . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- else if kindIs "invalid" . -}}
{{- fail "settings: null inside a list: leave the entry out" -}}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{- define "relay.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{- define "relay.toml" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $admin := dict "bind" (printf "127.0.0.1:%d" (int .Values.ports.admin)) -}}
{{- if .Values.metrics.enabled -}}
{{- $admin = dict "bind" (printf "%s:%d" .Values.podAddress (int .Values.ports.admin)) -}}
{{- end -}}
{{- $_ := set $settings "admin" (merge $admin ($settings.admin | default dict)) -}}
{{- $health := dict "bind" (printf "%s:%d" .Values.podAddress (int .Values.ports.health)) -}}
{{- $_ := set $settings "health" (merge $health ($settings.health | default dict)) -}}
{{- if not $settings.upstream }}{{ $_ := unset $settings "upstream" }}{{ end -}}
{{- if not $settings.listeners }}{{ $_ := unset $settings "listeners" }}{{ end -}}
# Made by the chart from `settings`; a change is made there.
{{- range $key, $value := $settings }}
{{- if not (or (kindIs "map" $value) (eq $key "listeners")) }}
{{ include "relay.tomlKey" $key }} = {{ include "relay.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $name, $table := $settings }}
{{- if kindIs "map" $table }}

[{{ include "relay.tomlKey" $name }}]
{{- range $key, $value := $table }}
{{ include "relay.tomlKey" $key }} = {{ include "relay.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- range $listener := $settings.listeners }}

[[listeners]]
{{- range $key, $value := $listener }}
{{ include "relay.tomlKey" $key }} = {{ include "relay.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end -}}
