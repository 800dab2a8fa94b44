{{/* dashboard/settings.py says what each key is. */}}
{{- define "fedward.control-plane.toml" -}}
state = "/var/lib/fedward"
registry = "/public/registry.json"
revocation_list = "/public/crl.pem"

[listen]
host = "0.0.0.0"
port = 9443
certificate = "/secrets/control-plane/server.crt"
key = "/secrets/control-plane/server.key"
{{- with .Values.controlPlane.database.url }}

[database]
url = {{ include "fedward.toml" . }}
{{- if $.Values.controlPlane.database.passwordSecret }}
password = "/secrets/database/password"
{{- end }}
{{- end }}

[access]
tokens = "/secrets/tokens"
session_hours = {{ float64 .Values.controlPlane.sessionHours }}
failures_per_minute = {{ .Values.controlPlane.failuresPerMinute }}

# Their last days, in /metrics.
[certificates]
ca = "/public/ca.crt"
aggregator = "/public/aggregator.crt"
edge = "/public/edge.crt"
{{- range (include "fedward.sites" . | fromYamlArray) }}
{{ .site }} = "/public/site-{{ .site }}.crt"
{{- end }}
{{- range $site, $_ := .Values.certs.enrol }}
{{ $site }} = "/public/site-{{ $site }}.crt"
{{- end }}
{{- end -}}
