{{/* A link is alive while its SuperNode runs; ready once the aggregator has accepted it. */}}
{{- define "fedward.link.probes" -}}
readinessProbe:
  exec:
    command: [python, -m, hospital_node.link.health]
  periodSeconds: 10
  timeoutSeconds: 10
livenessProbe:
  exec:
    command: [python, -m, hospital_node.link.health]
  periodSeconds: 60
  timeoutSeconds: 20
  failureThreshold: 5
{{- end -}}

{{- define "fedward.trainer.probes" -}}
startupProbe:
  exec:
    command: [python, -m, hospital_node.trainer.health]
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 120
{{- end -}}
