{{/* The same file that the local launcher writes; server/settings.py says what each key is. */}}
{{- define "fedward.aggregator.toml" -}}
state = "/var/lib/fedward"
registry = "/public/registry.json"
signing_key = "/secrets/aggregator/study-signing.key"

[fleet]
host = "0.0.0.0"
port = 9092

# For the aggregator's own processes, which share the pod's loopback.
[private]
host = "127.0.0.1"
port = 9093

[tls]
certificate = "/secrets/aggregator/server.crt"
key = "/secrets/aggregator/server.key"
ca = "/secrets/aggregator/ca.crt"

[control_plane]
url = {{ include "fedward.toml" (printf "https://%s:%v" (include "fedward.host" (dict "root" . "part" "control-plane")) .Values.controlPlane.service.port) }}
ca = "/secrets/aggregator/ca.crt"
token = "/secrets/tokens/aggregator.token"

[supervision]
attempts = {{ .Values.aggregator.supervision.attempts }}
start_seconds = {{ float64 .Values.aggregator.supervision.startSeconds }}
{{- end -}}
