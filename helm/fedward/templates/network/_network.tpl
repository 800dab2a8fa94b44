{{/* * --> DNS: where a policy allows a name to be looked up. */}}
{{- define "fedward.netpol.dns" -}}
# --> DNS
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}

{{/* (cidrs) -> the peers of an arrow out of the cluster */}}
{{- define "fedward.netpol.cidrs" -}}
{{- range . }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/*
An Ingress that passes TLS through unopened: (root, component, part, ingress, hostname, port).
Each controller has an annotation of its own for it; "other" sets none.
*/}}
{{- define "fedward.passthrough" -}}
{{- $own := dict
  "nginx" (dict "nginx.ingress.kubernetes.io/ssl-passthrough" "true" "nginx.ingress.kubernetes.io/backend-protocol" "HTTPS")
  "haproxy" (dict "haproxy.org/ssl-passthrough" "true")
  "haproxy-ingress" (dict "haproxy-ingress.github.io/ssl-passthrough" "true")
  "other" dict -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "fedward.metadata" . | nindent 2 }}
  {{- with merge (dict) (deepCopy .ingress.annotations) (index $own .ingress.controller) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  tls:
    - hosts: [{{ .hostname | quote }}]
  rules:
    - host: {{ .hostname | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service:
                name: {{ include "fedward.part" . }}
                port:
                  number: {{ .port }}
{{- end -}}
