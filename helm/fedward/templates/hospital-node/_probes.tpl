{{/*
A link is ready once the aggregator answers it. It has no liveness probe: it restarts its own parts,
and an aggregator that is away is no reason to restart a link.
*/}}
{{- define "fedward.link.probes" -}}
readinessProbe:
  exec:
    command: [python, -m, hospital_node.probe, link, /var/lib/fedward]
  initialDelaySeconds: 3
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}

{{/*
A trainer is ready when it can work: data, keys and base model are right. It is alive while it
answers, which it does also in the middle of a training step. Ten minutes to start: torch, and a
large file of rows.
*/}}
{{- define "fedward.trainer.probes" -}}
startupProbe:
  exec:
    command: [python, -m, hospital_node.probe, alive, /var/lib/fedward]
  periodSeconds: 3
  timeoutSeconds: 6
  failureThreshold: 200
readinessProbe:
  exec:
    command: [python, -m, hospital_node.probe, trainer, /var/lib/fedward]
  periodSeconds: 15
  timeoutSeconds: 6
livenessProbe:
  exec:
    command: [python, -m, hospital_node.probe, alive, /var/lib/fedward]
  periodSeconds: 60
  timeoutSeconds: 10
  failureThreshold: 5
{{- end -}}
