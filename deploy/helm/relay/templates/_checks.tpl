{{/* What a schema cannot say: values that fit each other. Each message names the value and what to do. */}}
{{- define "relay.checks" -}}
{{- $settings := .Values.settings -}}
{{- if not (or $settings.upstream $settings.routes $settings.listeners) -}}
{{- fail "settings.upstream: not set. Name the IoT Hub, for example --set 'settings.upstream={myhub.azure-devices.net}', or give settings.routes or settings.listeners" -}}
{{- end -}}
{{- if and $settings.upstream $settings.listeners -}}
{{- fail "settings.upstream and settings.listeners: both are set; upstream is short for three listeners, so remove one of them" -}}
{{- end -}}
{{- if and $settings.routes $settings.listeners -}}
{{- fail "settings.routes and settings.listeners: both are set; routes are for the three listeners of the short form, so move them into settings.listeners" -}}
{{- end -}}
{{- if hasKey ($settings.admin | default dict) "bind" -}}
{{- fail "settings.admin.bind: the chart sets it; use ports.admin, and metrics.enabled to open it to Prometheus" -}}
{{- end -}}
{{- if hasKey ($settings.health | default dict) "bind" -}}
{{- fail "settings.health.bind: the chart sets it; use ports.health and podAddress" -}}
{{- end -}}
{{- $drain := include "relay.drainSeconds" . | fromJson -}}
{{- $least := include "relay.leastGrace" . | int64 -}}
{{- $grace := include "relay.grace" . | int64 -}}
{{- if lt $grace $least -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short: settings.drain.announce (%d) + settings.drain.window (%d) + 15 = %d, and Kubernetes kills what is not drained by then. Set it to %d or more, leave it empty, or make the drain shorter" $grace (int64 $drain.announce) (int64 $drain.window) $least $least) -}}
{{- end -}}
{{- $detect := int64 .Values.loadBalancerDetectSeconds -}}
{{- $period := int64 .Values.readinessProbe.periodSeconds -}}
{{- $failures := int64 .Values.readinessProbe.failureThreshold -}}
{{- if lt (mul (sub $failures 1) $period) $detect -}}
{{- fail (printf "readinessProbe.failureThreshold: (%d - 1) × periodSeconds (%d) is less than loadBalancerDetectSeconds (%d): connections would be dropped that the load balancer still sends to a pod that ends. Raise failureThreshold or periodSeconds" $failures $period $detect) -}}
{{- end -}}
{{- if lt (int64 $drain.announce) (add (mul $failures $period) $detect) -}}
{{- fail (printf "settings.drain.announce: %d is too short: readinessProbe.failureThreshold (%d) × periodSeconds (%d) + loadBalancerDetectSeconds (%d) = %d seconds pass until no new connection comes. Set it to %d or more" (int64 $drain.announce) $failures $period $detect (add (mul $failures $period) $detect) (add (mul $failures $period) $detect)) -}}
{{- end -}}
{{- $hang := 10 -}}
{{- if hasKey ($settings.supervision | default dict) "hang_timeout" -}}{{- $hang = ceil $settings.supervision.hang_timeout -}}{{- end -}}
{{- $patience := mul (sub (int64 .Values.livenessProbe.failureThreshold) 1) (int64 .Values.livenessProbe.periodSeconds) -}}
{{- if ge (int64 $hang) $patience -}}
{{- fail (printf "livenessProbe.failureThreshold: the container would be restarted after %d seconds, before relay replaces the one worker that hangs (settings.supervision.hang_timeout: %d). Raise failureThreshold or periodSeconds" $patience (int64 $hang)) -}}
{{- end -}}
{{- if and (eq .Values.seccompProfile.type "Localhost") (not .Values.seccompProfile.localhostProfile) -}}
{{- fail "seccompProfile.localhostProfile: not set; with type Localhost, name the profile below the kubelet's seccomp folder, for example profiles/relay.json" -}}
{{- end -}}
{{- if and .Values.seccompProfile.localhostProfile (ne .Values.seccompProfile.type "Localhost") -}}
{{- fail "seccompProfile.localhostProfile: is used with type Localhost only; set seccompProfile.type to Localhost, or remove it" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (not .Values.metrics.namespace) -}}
{{- fail "metrics.namespace: not set; name the namespace of Prometheus: no other may reach the admin port, which can drain relay" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled: needs metrics.enabled: the admin port is on loopback without it" -}}
{{- end -}}
{{- if eq (int .Values.ports.health) (int .Values.ports.admin) -}}
{{- fail (printf "ports.health and ports.admin: both are %d; they must differ" (int .Values.ports.health)) -}}
{{- end -}}
{{- range (include "relay.ports" . | fromJson).ports -}}
{{- if or (eq (int .port) (int $.Values.ports.health)) (eq (int .port) (int $.Values.ports.admin)) -}}
{{- fail (printf "settings.listeners: port %d is ports.health or ports.admin already; change one of them" (int .port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
