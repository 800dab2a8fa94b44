{{/* auto: where the cluster knows the kind (root, enabled, kind) */}}
{{- define "fedward.monitored" -}}
{{- $known := .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) -}}
{{- if and .root.Values.aggregator.enabled (or (eq (toString .enabled) "true") (and (eq (toString .enabled) "auto") $known)) -}}yes{{- end -}}
{{- end -}}

{{/* where alerts link to: the control plane's own pages, under the name people reach it by */}}
{{- define "fedward.runbooks" -}}
{{- $plane := .Values.controlPlane -}}
{{- $inside := printf "%s:%v" (include "fedward.host" (dict "root" . "part" "control-plane")) $plane.service.port -}}
{{- $host := ternary $plane.ingress.hostname $inside (and $plane.ingress.enabled (ne $plane.ingress.hostname "")) -}}
{{- .Values.monitoring.prometheusRule.runbooks | default (printf "https://%s/runbooks" $host) -}}
{{- end -}}
