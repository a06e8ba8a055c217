{{/* Names and labels. */}}
{{- define "relay.fullname" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- trunc 53 $name | trimSuffix "-" -}}
{{- end -}}

{{- define "relay.selectorLabels" -}}
app.kubernetes.io/name: relay
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "relay.labels" -}}
{{ include "relay.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{- define "relay.image" -}}
{{- $missing := "image.registry: not set. relay has no public image: build it (deploy/docker/Dockerfile), push it to your registry, and name that, for example --set image.registry=myregistry.azurecr.io" -}}
{{- $registry := required $missing .Values.image.registry | trimSuffix "/" -}}
{{- if .Values.image.digest -}}
{{- printf "%s/%s@%s" $registry .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s/%s:%s" $registry .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/*
The listeners' ports, as JSON: {"ports": [{"name": …, "port": …}]}. A port's name is the listener's where Kubernetes takes
it (15 characters of a-z, 0-9 and -), else tcp-PORT. Several listeners, or addresses of one, may share a port.
*/}}
{{- define "relay.ports" -}}
{{- $settings := .Values.settings -}}
{{- $ports := list -}}
{{- $seen := dict "health" true "admin" true -}}
{{- if $settings.listeners -}}
{{- range $listener := $settings.listeners -}}
{{- range $bind := $listener.bind -}}
{{- $port := regexFind "[0-9]+$" $bind -}}
{{- if or (not $port) (eq $port "0") -}}
{{- fail (printf "settings.listeners: %s: bind %s: a fixed port is needed for the Service, for example 0.0.0.0:8883" $listener.name $bind) -}}
{{- end -}}
{{- if not (hasKey $seen $port) -}}
{{- $name := $listener.name -}}
{{- if or (hasKey $seen $name) (gt (len $name) 15) (not (regexMatch "^[a-z0-9]+(-[a-z0-9]+)*$" $name)) (not (regexMatch "[a-z]" $name)) -}}
{{- $name = printf "tcp-%s" $port -}}
{{- end -}}
{{- $_ := set $seen $port true -}}
{{- $_ := set $seen $name true -}}
{{- $ports = append $ports (dict "name" $name "port" (int $port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $ports = list (dict "name" "https" "port" 443) (dict "name" "mqtt" "port" 8883) (dict "name" "amqp" "port" 5671) -}}
{{- end -}}
{{- toJson (dict "ports" $ports) -}}
{{- end -}}

{{/* Seconds of a drain, rounded up: relay's own defaults where the values were deleted (null). */}}
{{- define "relay.drainSeconds" -}}
{{- $drain := .Values.settings.drain | default dict -}}
{{- $announce := 15 -}}
{{- if hasKey $drain "announce" -}}{{- $announce = $drain.announce -}}{{- end -}}
{{- $window := 60 -}}
{{- if hasKey $drain "window" -}}{{- $window = $drain.window -}}{{- end -}}
{{- toJson (dict "announce" (ceil $announce) "window" (ceil $window)) -}}
{{- end -}}

{{/* The least terminationGracePeriodSeconds: the drain, and 15 seconds for the workers' end and a slow node. */}}
{{- define "relay.leastGrace" -}}
{{- $drain := include "relay.drainSeconds" . | fromJson -}}
{{- add (int64 $drain.announce) (int64 $drain.window) 15 -}}
{{- end -}}

{{- define "relay.grace" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- include "relay.leastGrace" . -}}
{{- else -}}
{{- int64 .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}
