{{/*
site.toml of one hospital: (root, site, values). Link and trainer read the same file; each finds
only its own keys in its pod. protocol/site.py says what each key is.
*/}}
{{- define "fedward.site.toml" -}}
{{- $values := .values -}}
{{- $data := $values.data -}}
name = {{ include "fedward.toml" .site }}
state = "/var/lib/fedward"

[aggregator]
address = {{ include "fedward.toml" (include "fedward.edgeAddress" .root) }}
ca_certificate = "/secrets/link/ca.crt"
signing_key = "/secrets/trainer/study-signing.pub"
client_certificate = "/secrets/link/client.crt"
client_key = "/secrets/link/client.key"
{{- if not .root.Values.aggregator.enabled }}
{{- with $values.aggregator.proxy }}
proxy = {{ include "fedward.toml" . }}
{{- end }}
{{- end }}

[link]
node_key = "/secrets/link/node.key"
report_seconds = {{ float64 $values.link.reportSeconds }}

[data]
{{- if $data.demo }}
train = ["/data/train.jsonl"]
heldout = ["/data/heldout.jsonl"]
{{- else }}
train = [{{ range $i, $file := $data.train }}{{ if $i }}, {{ end }}{{ include "fedward.toml" (printf "/data/%s" $file) }}{{ end }}]
heldout = [{{ range $i, $file := $data.heldout }}{{ if $i }}, {{ end }}{{ include "fedward.toml" (printf "/data/%s" $file) }}{{ end }}]
heldout_fraction = {{ $data.heldoutFraction }}
{{- with $data.columns }}

[data.columns]
{{- range $name, $column := . }}
{{ $name }} = {{ include "fedward.toml" $column }}
{{- end }}
{{- end }}
{{- end }}

[model]
{{- if or $data.demo (include "fedward.site.modelVolume" .) }}
path = "/model"
{{- end }}
{{- with $values.model.sha256 }}
sha256 = {{ include "fedward.toml" . }}
{{- end }}
# The trainer has no network; a hub's model is fetched by a Job.
allow_hub = false
cache = "cache"

[trainer]
socket = "trainer.sock"
signing_key = "/secrets/trainer/signing.key"
device = {{ include "fedward.toml" (include "fedward.site.device" .) }}
threads = {{ $values.trainer.threads }}
ledger = "ledger.jsonl"

[trainer.remote]
address = {{ include "fedward.toml" (printf "%s:%v" (include "fedward.host" (dict "root" .root "part" (printf "%s-trainer" .site))) $values.trainer.port) }}
trainer_certificate = "/secrets/wire/trainer.crt"
trainer_key = "/secrets/wire/trainer.key"
link_certificate = "/secrets/wire/link.crt"
link_key = "/secrets/wire/link.key"
{{- with $values.limits }}

[limits]
{{- range $name, $value := . }}
{{ snakecase $name }} = {{ if kindIs "float64" $value }}{{ if eq $name "maxUpdateNorm" }}{{ $value }}{{ else }}{{ int64 $value }}{{ end }}{{ else }}{{ include "fedward.toml" $value }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A GPU that was asked for must be used: "auto" would quietly train on the CPU without it. */}}
{{- define "fedward.site.device" -}}
{{- if and (eq .values.trainer.device "auto") (gt (int .values.gpu.count) 0) -}}cuda
{{- else if eq .values.trainer.device "auto" -}}cpu
{{- else -}}{{ .values.trainer.device }}
{{- end -}}
{{- end -}}

{{/* The volume source of the data or the base model: (root, site, values, what) */}}
{{- define "fedward.site.source" -}}
{{- if .from.existingClaim -}}
persistentVolumeClaim:
  claimName: {{ .from.existingClaim }}
  readOnly: true
{{- else if .from.hostPath -}}
hostPath:
  path: {{ .from.hostPath | quote }}
  type: Directory
{{- else if .from.volume -}}
{{ toYaml .from.volume }}
{{- end -}}
{{- end -}}

{{- define "fedward.site.modelVolume" -}}
{{- $model := .values.model -}}
{{- if $model.hub.enabled -}}
persistentVolumeClaim:
  claimName: {{ include "fedward.part" (dict "root" .root "part" (printf "%s-model" .site)) }}
  readOnly: true
{{- else -}}
{{- include "fedward.site.source" (dict "from" $model) -}}
{{- end -}}
{{- end -}}

{{/* Secret of one half of a hospital: (root, site, values, half) */}}
{{- define "fedward.site.secret" -}}
{{- index .values.existingSecrets .half | default (include "fedward.part" (dict "root" .root "part" (printf "%s-%s" .site .half))) -}}
{{- end -}}

{{/* Whether site.toml holds a password: then it is a Secret. */}}
{{- define "fedward.site.confidential" -}}
{{- if and (not .root.Values.aggregator.enabled) (contains "@" .values.aggregator.proxy) -}}yes{{- end -}}
{{- end -}}

{{- define "fedward.site.settingsVolume" -}}
{{- $name := include "fedward.part" (dict "root" .root "part" (printf "%s-site" .site)) -}}
{{- if include "fedward.site.confidential" . -}}
secret:
  secretName: {{ $name }}
  defaultMode: 0440
{{- else -}}
configMap:
  name: {{ $name }}
{{- end -}}
{{- end -}}
