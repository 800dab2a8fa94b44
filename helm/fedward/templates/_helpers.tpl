{{/* Names, labels, images and the parts that every pod shares. One idea a definition. */}}

{{/* The release's name is the prefix of everything, so two releases fit in one namespace. */}}
{{- define "fedward.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* (root, part) -> fed-aggregator */}}
{{- define "fedward.part" -}}
{{- printf "%s-%s" (include "fedward.name" .root) .part -}}
{{- end -}}

{{/* (root, part) -> fed-aggregator.centre.svc.cluster.local; HAProxy knows no search domains. */}}
{{- define "fedward.host" -}}
{{- printf "%s.%s.svc.%s" (include "fedward.part" .) .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end -}}

{{/* What a Service and a policy select by: (root, component, site) */}}
{{- define "fedward.selector" -}}
app.kubernetes.io/name: fedward
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .site }}
fedward.dev/site: {{ . }}
{{- end }}
{{- end -}}

{{/* (root, component, site) */}}
{{- define "fedward.labels" -}}
{{ include "fedward.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fedward
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* metadata of everything but pods: (root, component, site, part) */}}
{{- define "fedward.metadata" -}}
name: {{ include "fedward.part" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "fedward.labels" . | nindent 2 }}
{{- end -}}

{{/* (root, name) -> registry/repository:tag or @digest */}}
{{- define "fedward.image" -}}
{{- $image := .root.Values.image -}}
{{- $own := index $image .name -}}
{{- $name := $own.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" $image.registry) $name -}}{{- end -}}
{{- if $own.digest -}}
{{- printf "%s@%s" $name $own.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($own.tag | default $image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What holds for every container: (root, name, resources) */}}
{{- define "fedward.container" -}}
image: {{ include "fedward.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: ["ALL"]
  privileged: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  {{- include "fedward.user" .root | nindent 2 }}
resources:
  {{- toYaml .resources | nindent 2 }}
{{- end -}}

{{/* Null where the cluster gives users of its own, as OpenShift does. */}}
{{- define "fedward.user" -}}
{{- $user := list -}}
{{- if not (kindIs "invalid" .Values.pods.user) }}{{ $user = append $user (printf "runAsUser: %d" (int64 .Values.pods.user)) }}{{ end -}}
{{- if not (kindIs "invalid" .Values.pods.group) }}{{ $user = append $user (printf "runAsGroup: %d" (int64 .Values.pods.group)) }}{{ end -}}
{{- join "\n" $user -}}
{{- end -}}

{{/* metadata of a pod: (root, component, site, pod, checksums) */}}
{{- define "fedward.podMetadata" -}}
labels:
  {{- $labels := include "fedward.labels" . | fromYaml }}
  {{- toYaml (merge $labels (deepCopy .pod.labels) (deepCopy .root.Values.pods.labels)) | nindent 2 }}
{{- $annotations := merge (dict) (deepCopy .pod.annotations) (deepCopy .root.Values.pods.annotations) }}
{{- with .checksum }}
{{- $_ := set $annotations "fedward.dev/settings" (sha256sum . | trunc 16) }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The head of every pod's spec: (root, component, pod) */}}
{{- define "fedward.podSpec" -}}
{{- $pods := .root.Values.pods -}}
serviceAccountName: {{ include "fedward.name" .root }}
automountServiceAccountToken: false
# The environment stays free of what other Services happen to be called.
enableServiceLinks: false
securityContext:
  {{- if not (kindIs "invalid" $pods.group) }}
  fsGroup: {{ int64 $pods.group }}
  {{- end }}
  # A volume of many files would otherwise be walked at every start.
  fsGroupChangePolicy: OnRootMismatch
  runAsNonRoot: true
  {{- include "fedward.user" .root | nindent 2 }}
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .pod.priorityClassName | default $pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with merge (dict) (deepCopy .pod.nodeSelector) (deepCopy $pods.nodeSelector) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $pods.tolerations .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationGracePeriodSeconds: {{ .pod.terminationGracePeriodSeconds }}
{{- end -}}

{{/* A root that cannot be written needs a /tmp; HOME lies there too, for libraries that insist. */}}
{{- define "fedward.environment" -}}
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
- name: FLWR_TELEMETRY_ENABLED
  value: "0"
{{- with concat .root.Values.pods.extraEnv .pod.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedward.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- with .pod.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedward.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .root.Values.pods.tmpSize }}
{{- with .pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Secrets: made by the chart under a fixed name, or the name that was given: (root, part) */}}
{{- define "fedward.secret" -}}
{{- $given := dict
  "aggregator" .root.Values.certs.existingSecrets.aggregator
  "edge" .root.Values.certs.existingSecrets.edge
  "control-plane" .root.Values.certs.existingSecrets.controlPlane
  "tokens" .root.Values.certs.existingSecrets.tokens
  "operator" .root.Values.certs.existingSecrets.operator -}}
{{- index $given .part | default (include "fedward.part" .) -}}
{{- end -}}

{{/* The ConfigMap of public certificates and of the list of hospitals. */}}
{{- define "fedward.public" -}}
{{- .Values.certs.existingSecrets.publicConfigMap | default (include "fedward.part" (dict "root" . "part" "public")) -}}
{{- end -}}

{{/* A volume of chosen keys of a Secret. 0440: the pod's user reads it through the fsGroup. */}}
{{- define "fedward.secretVolume" -}}
secret:
  secretName: {{ .secret }}
  defaultMode: 0440
  {{- with .keys }}
  items:
    {{- range . }}
    - key: {{ . }}
      path: {{ . }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* A StatefulSet's own volume, or the claim that was given: (root, persistence) */}}
{{- define "fedward.claimTemplate" -}}
metadata:
  name: state
  labels:
    {{- include "fedward.selector" . | nindent 4 }}
  {{- with .persistence.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  accessModes: [{{ .persistence.accessMode }}]
  {{- with .persistence.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .persistence.size }}
{{- end -}}

{{/* APIs that moved. `helm template` asks no cluster, and knows its version only. */}}
{{- define "fedward.api.newest" -}}
{{- if or (.root.Capabilities.APIVersions.Has (printf "%s/%s" .api .kind)) (semverCompare .since .root.Capabilities.KubeVersion.Version) -}}
{{ .api }}
{{- else -}}
{{ .before }}
{{- end -}}
{{- end -}}
{{- define "fedward.api.pdb" -}}
{{- include "fedward.api.newest" (dict "root" . "api" "policy/v1" "kind" "PodDisruptionBudget" "since" ">=1.21-0" "before" "policy/v1beta1") -}}
{{- end -}}
{{- define "fedward.api.cronjob" -}}
{{- include "fedward.api.newest" (dict "root" . "api" "batch/v1" "kind" "CronJob" "since" ">=1.21-0" "before" "batch/v1beta1") -}}
{{- end -}}
{{- define "fedward.api.tlsroute" -}}
{{- $group := "gateway.networking.k8s.io" -}}
{{- $found := "" -}}
{{- range list "v1" "v1alpha3" "v1alpha2" -}}
{{- if and (not $found) ($.Capabilities.APIVersions.Has (printf "%s/%s/TLSRoute" $group .)) -}}
{{- $found = printf "%s/%s" $group . -}}
{{- end -}}
{{- end -}}
{{- $found | default (printf "%s/v1alpha2" $group) -}}
{{- end -}}

{{/* A PodDisruptionBudget: (root, component, site, part, budget) */}}
{{- define "fedward.budget" -}}
{{- if .budget.enabled }}
---
apiVersion: {{ include "fedward.api.pdb" .root }}
kind: PodDisruptionBudget
metadata:
  {{- include "fedward.metadata" . | nindent 2 }}
spec:
  {{- if kindIs "invalid" .budget.maxUnavailable }}
  minAvailable: {{ .budget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ .budget.maxUnavailable }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "fedward.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* TOML's basic strings and arrays are written as JSON's are. */}}
{{- define "fedward.toml" -}}
{{- toJson . -}}
{{- end -}}

{{/*
The hospitals of this release, as a list of: site, the values that hold for it, and where its
aggregator is. A demo hospital is `hospital` with demo data and a CPU.
*/}}
{{- define "fedward.sites" -}}
{{- $root := . -}}
{{- $sites := list -}}
{{- if and .Values.aggregator.enabled .Values.demo.enabled -}}
{{- range .Values.demo.hospitals -}}
{{- $values := deepCopy $root.Values.hospital -}}
{{- $data := $values.data -}}
{{- $_ := set $data "demo" true -}}
{{- range list "existingClaim" "hostPath" -}}
{{- $_ := set $data . "" -}}
{{- $_ := set $values.model . "" -}}
{{- end -}}
{{- $_ := set $data "volume" dict -}}
{{- $_ := set $values.model "volume" dict -}}
{{- $_ := set $values.model "sha256" "" -}}
{{- $_ := set $values.model.hub "enabled" false -}}
{{- $_ := set $values.gpu "count" 0 -}}
{{- $_ := set $values.existingSecrets "link" "" -}}
{{- $_ := set $values.existingSecrets "trainer" "" -}}
{{- $_ := set $values "limits" dict -}}
{{- $_ := set $values.trainer "threads" $root.Values.demo.threads -}}
{{- $_ := set $values.trainer "resources" $root.Values.demo.resources -}}
{{- $sites = append $sites (dict "site" . "values" $values) -}}
{{- end -}}
{{- end -}}
{{- if .Values.hospital.enabled -}}
{{- $sites = append $sites (dict "site" .Values.hospital.name "values" .Values.hospital) -}}
{{- end -}}
{{- toYaml $sites -}}
{{- end -}}

{{/* Whether a hospital can start: it is this release's own, or enrolled, or brings its Secrets. */}}
{{- define "fedward.enrolled" -}}
{{- $hospital := .Values.hospital -}}
{{- if or .Values.aggregator.enabled $hospital.enrolment.bundle (eq .Values.certs.mode "existing") -}}yes{{- end -}}
{{- end -}}

{{/* host:port of the aggregator's edge, for the links of this release. */}}
{{- define "fedward.edgeAddress" -}}
{{- if .Values.aggregator.enabled -}}
{{- printf "%s:%v" (include "fedward.host" (dict "root" . "part" "edge")) .Values.edge.service.port -}}
{{- else -}}
{{- .Values.hospital.aggregator.address -}}
{{- end -}}
{{- end -}}

{{/* host:port of the aggregator's edge as hospitals elsewhere reach it. */}}
{{- define "fedward.publicAddress" -}}
{{- if .Values.edge.hostname -}}
{{- printf "%s:%v" .Values.edge.hostname .Values.edge.publicPort -}}
{{- else -}}
{{- printf "%s:%v" (include "fedward.host" (dict "root" . "part" "edge")) .Values.edge.service.port -}}
{{- end -}}
{{- end -}}

{{- define "fedward.caSecretName" -}}
{{- include "fedward.part" (dict "root" . "part" "ca") -}}
{{- end -}}

{{/*
What becomes of a StatefulSet's volume when the release goes: (root, persistence). Kubernetes before
1.27 keeps it always, and knows no such field.
*/}}
{{- define "fedward.retention" -}}
{{- if semverCompare ">=1.27-0" .root.Capabilities.KubeVersion.Version -}}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: {{ .persistence.retain | ternary "Retain" "Delete" }}
  whenScaled: Retain
{{- end -}}
{{- end -}}
