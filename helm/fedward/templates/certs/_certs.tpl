{{/* What the Job is to provide, as JSON for files/provide.py; it holds no secret. */}}
{{- define "fedward.certs.plan" -}}
{{- $names := list "localhost" "127.0.0.1" -}}
{{- range list "edge" "edge-metrics" "aggregator" "control-plane" -}}
{{- $part := include "fedward.part" (dict "root" $ "part" .) -}}
{{- $names = concat $names (list $part (printf "%s.%s" $part $.Release.Namespace) (printf "%s.%s.svc" $part $.Release.Namespace) (include "fedward.host" (dict "root" $ "part" .))) -}}
{{- end -}}
{{- with .Values.edge.hostname }}{{ $names = append $names . }}{{ end -}}
{{- with .Values.controlPlane.ingress.hostname }}{{ $names = append $names . }}{{ end -}}
{{- $names = concat $names .Values.certs.serverNames | uniq -}}
{{- $sites := list -}}
{{- range (include "fedward.sites" . | fromYamlArray) }}{{ $sites = append $sites .site }}{{ end -}}
{{- $plan := dict
  "prefix" (include "fedward.name" .)
  "namespace" .Release.Namespace
  "labels" (dict "app.kubernetes.io/name" "fedward" "app.kubernetes.io/instance" .Release.Name "app.kubernetes.io/component" "certs") -}}
{{- if .Values.aggregator.enabled -}}
{{- $_ := set $plan "federation" (dict
  "server_names" $names
  "sites" $sites
  "address" (include "fedward.publicAddress" .)
  "enrol" .Values.certs.enrol
  "revoke" .Values.certs.revoke
  "cert_manager" (eq .Values.certs.mode "cert-manager")) -}}
{{- else -}}
{{- $_ := set $plan "hospital" (dict
  "site" .Values.hospital.name
  "bundle" .Values.hospital.enrolment.bundle
  "ca_fingerprint" .Values.hospital.enrolment.caFingerprint) -}}
{{- end -}}
{{- toPrettyJson $plan -}}
{{- end -}}

{{/* Every Secret and ConfigMap that the Job may change; it may make others and read none. */}}
{{- define "fedward.certs.names" -}}
{{- $secrets := list -}}
{{- $maps := list -}}
{{- if .Values.aggregator.enabled -}}
{{- $secrets = list "ca" "aggregator" "edge" "control-plane" "coordinator" "operator" "tokens" -}}
{{- $maps = list "public" -}}
{{- range $site, $_ := .Values.certs.enrol }}{{ $maps = append $maps (printf "bundle-%s" $site) }}{{ end -}}
{{- if eq .Values.certs.mode "cert-manager" }}{{ $secrets = concat $secrets (list "tls-aggregator" "tls-edge" "tls-control-plane") }}{{ end -}}
{{- else -}}
{{- $maps = list (printf "%s-request" .Values.hospital.name) -}}
{{- end -}}
{{- range (include "fedward.sites" . | fromYamlArray) }}{{ $secrets = concat $secrets (list (printf "%s-link" .site) (printf "%s-trainer" .site)) }}{{ end -}}
{{- toYaml (dict "secrets" $secrets "configmaps" $maps) -}}
{{- end -}}

{{/* Whether there is anything for the Job to do. */}}
{{- define "fedward.certs.wanted" -}}
{{- if and (ne .Values.certs.mode "existing") (or .Values.aggregator.enabled .Values.hospital.enabled) -}}yes{{- end -}}
{{- end -}}

{{/*
Account, rights, script and policy of the Job: (root, part, annotations). Rendered twice: for the
hook, which is there before anything else and goes again, and for the CronJob.
*/}}
{{- define "fedward.certs.support" -}}
{{- $ctx := merge (dict "component" "certs") . -}}
{{- $names := include "fedward.certs.names" .root | fromYaml -}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "fedward.metadata" $ctx | nindent 2 }}
  {{- .annotations | nindent 2 }}
automountServiceAccountToken: false
---
# No cluster role, and no "list" or "watch": the Job sees the objects that it is named and no others.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "fedward.metadata" $ctx | nindent 2 }}
  {{- .annotations | nindent 2 }}
rules:
  # A right to make cannot be bound to a name.
  - apiGroups: [""]
    resources: [secrets, configmaps]
    verbs: [create]
  - apiGroups: [""]
    resources: [secrets]
    resourceNames:
      {{- range $names.secrets }}
      - {{ include "fedward.part" (dict "root" $ctx.root "part" .) }}
      {{- end }}
    verbs: [get, update]
  - apiGroups: [""]
    resources: [configmaps]
    resourceNames:
      {{- range $names.configmaps }}
      - {{ include "fedward.part" (dict "root" $ctx.root "part" .) }}
      {{- end }}
    verbs: [get, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "fedward.metadata" $ctx | nindent 2 }}
  {{- .annotations | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "fedward.part" . }}
subjects:
  - kind: ServiceAccount
    name: {{ include "fedward.part" . }}
    namespace: {{ .root.Release.Namespace }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "fedward.metadata" $ctx | nindent 2 }}
  {{- .annotations | nindent 2 }}
data:
  plan.json: |
    {{- include "fedward.certs.plan" .root | nindent 4 }}
  provide.py: |
    {{- .root.Files.Get "files/provide.py" | nindent 4 }}
  cluster.py: |
    {{- .root.Files.Get "files/cluster.py" | nindent 4 }}
{{- if .root.Values.networkPolicy.enabled }}
---
# nobody --> certs Job --> the cluster's API server
#                      --> DNS
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "fedward.metadata" $ctx | nindent 2 }}
  {{- .annotations | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "fedward.selector" $ctx | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress: []
  egress:
    - to:
        {{- include "fedward.netpol.cidrs" .root.Values.certs.apiServer.cidrs | nindent 8 }}
      ports:
        {{- range .root.Values.certs.apiServer.ports }}
        - {protocol: TCP, port: {{ . }}}
        {{- end }}
    {{- include "fedward.netpol.dns" .root | nindent 4 }}
{{- end }}
{{- end -}}

{{/* The Job's pod: (root, part) */}}
{{- define "fedward.certs.pod" -}}
{{- $ctx := dict "root" .root "component" "certs" "part" .part "pod" .root.Values.certs.pod -}}
metadata:
  {{- include "fedward.podMetadata" $ctx | nindent 2 }}
spec:
  {{- $spec := include "fedward.podSpec" $ctx | fromYaml }}
  {{- $_ := set $spec "serviceAccountName" (include "fedward.part" .) }}
  {{- toYaml $spec | nindent 2 }}
  restartPolicy: Never
  containers:
    - name: certs
      {{- include "fedward.container" (dict "root" .root "name" "cli" "resources" .root.Values.certs.resources) | nindent 6 }}
      command: [python, /scripts/provide.py]
      args: [/scripts/plan.json]
      env:
        {{- include "fedward.environment" $ctx | nindent 8 }}
      volumeMounts:
        - name: scripts
          mountPath: /scripts
          readOnly: true
        - name: work
          mountPath: /work
        # Mounted here and not by the account's default, so that only this container has it.
        - name: account
          mountPath: /var/run/secrets/kubernetes.io/serviceaccount
          readOnly: true
        {{- include "fedward.mounts" $ctx | nindent 8 }}
  volumes:
    - name: scripts
      configMap:
        name: {{ include "fedward.part" . }}
    # Keys on their way to a Secret: in memory, and gone with the pod.
    - name: work
      emptyDir:
        medium: Memory
        sizeLimit: 64Mi
    - name: account
      projected:
        defaultMode: 0440
        sources:
          - serviceAccountToken:
              path: token
              expirationSeconds: 3600
          - configMap:
              name: kube-root-ca.crt
              items:
                - {key: ca.crt, path: ca.crt}
    {{- include "fedward.volumes" $ctx | nindent 4 }}
{{- end -}}
