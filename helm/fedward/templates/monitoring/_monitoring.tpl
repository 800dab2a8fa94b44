{{/* auto: where the cluster knows the kind (root, enabled, kind) */}}
{{- define "fedward.monitored" -}}
{{- $known := .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) -}}
{{- if and .root.Values.aggregator.enabled (or (eq (toString .enabled) "true") (and (eq (toString .enabled) "auto") $known)) -}}yes{{- end -}}
{{- end -}}
