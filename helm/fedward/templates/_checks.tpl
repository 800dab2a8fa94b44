{{/*
Combinations that the schema cannot refuse in words. Each names the key and what would be right;
all of them are told at once.
*/}}
{{- define "fedward.checks" -}}
{{- $faults := list -}}
{{- $values := .Values -}}
{{- $hospital := $values.hospital -}}
{{- $data := $hospital.data -}}

{{- if not (or $values.aggregator.enabled $hospital.enabled) -}}
{{- $faults = append $faults "aggregator.enabled and hospital.enabled are both false, so there is nothing to install: set one of them to true" -}}
{{- end -}}

{{- if $hospital.enabled -}}
{{- if not $hospital.name -}}
{{- $faults = append $faults "hospital.name is empty: give the name agreed with the coordinator, lower-case letters, digits and dashes, such as st-mary" -}}
{{- end -}}
{{- if and $values.aggregator.enabled $values.demo.enabled (has $hospital.name $values.demo.hospitals) -}}
{{- $faults = append $faults (printf "hospital.name = %q is also in demo.hospitals: use another name, or take it out there" $hospital.name) -}}
{{- end -}}
{{- if and (not $values.aggregator.enabled) (not $hospital.aggregator.address) -}}
{{- $faults = append $faults "hospital.aggregator.address is empty and this release has no aggregator: give host:port of the coordinator's edge, such as fl.example.org:443" -}}
{{- end -}}
{{- if and $values.aggregator.enabled $hospital.aggregator.address -}}
{{- $faults = append $faults (printf "hospital.aggregator.address = %q, but this release has an aggregator of its own: leave it empty, or set aggregator.enabled to false" $hospital.aggregator.address) -}}
{{- end -}}
{{- $sources := 0 -}}
{{- if $data.demo }}{{ $sources = add1 $sources }}{{ end -}}
{{- if $data.existingClaim }}{{ $sources = add1 $sources }}{{ end -}}
{{- if $data.hostPath }}{{ $sources = add1 $sources }}{{ end -}}
{{- if $data.volume }}{{ $sources = add1 $sources }}{{ end -}}
{{- if ne (int $sources) 1 -}}
{{- $faults = append $faults (printf "hospital.data has %d sources: give exactly one of demo, existingClaim, hostPath, volume" (int $sources)) -}}
{{- end -}}
{{- if and (not $data.demo) (not $data.train) -}}
{{- $faults = append $faults "hospital.data.train is empty: name the JSONL, CSV or Parquet files in the data volume, such as [notes.jsonl]" -}}
{{- end -}}
{{- range $file := $data.train -}}
{{- if has $file $data.heldout -}}
{{- $faults = append $faults (printf "hospital.data.heldout names %q, which is also in hospital.data.train: rows that were trained on say nothing about held-out accuracy" $file) -}}
{{- end -}}
{{- end -}}
{{- $models := 0 -}}
{{- $model := $hospital.model -}}
{{- if $model.existingClaim }}{{ $models = add1 $models }}{{ end -}}
{{- if $model.hostPath }}{{ $models = add1 $models }}{{ end -}}
{{- if $model.volume }}{{ $models = add1 $models }}{{ end -}}
{{- if $model.hub.enabled }}{{ $models = add1 $models }}{{ end -}}
{{- if gt (int $models) 1 -}}
{{- $faults = append $faults (printf "hospital.model has %d sources: give one of existingClaim, hostPath, volume, hub" (int $models)) -}}
{{- end -}}
{{- if and (eq (int $models) 0) (not $data.demo) -}}
{{- $faults = append $faults "hospital.model has no source: give one of existingClaim, hostPath, volume, hub; the trainer has no network to fetch a base model itself" -}}
{{- end -}}
{{- if and $model.hub.enabled (not $model.hub.id) -}}
{{- $faults = append $faults "hospital.model.hub.id is empty: give the model's name on the hub, such as mistralai/Mistral-7B-v0.3" -}}
{{- end -}}
{{- if and $model.hub.enabled (not $model.sha256) -}}
{{- $faults = append $faults "hospital.model.sha256 is empty: what a hub sends is used only if its weights have the hash that you expect; the study's model.sha256 is one, and docs/kubernetes.md says how to take it" -}}
{{- end -}}
{{- if and (eq $hospital.trainer.device "cuda") (eq (int $hospital.gpu.count) 0) -}}
{{- $faults = append $faults "hospital.trainer.device is cuda and hospital.gpu.count is 0: ask for at least one GPU, or let device be auto" -}}
{{- end -}}
{{- if and (contains "/mig-" $hospital.gpu.resource) (gt (int $hospital.gpu.count) 1) -}}
{{- $faults = append $faults (printf "hospital.gpu.count = %d of %s: CUDA shows a process one slice, and the others would stay idle: set it to 1, and ask for a larger slice or for whole GPUs (nvidia.com/gpu)" (int $hospital.gpu.count) $hospital.gpu.resource) -}}
{{- end -}}
{{- if and (eq $hospital.trainer.device "cpu") (gt (int $hospital.gpu.count) 0) -}}
{{- $faults = append $faults (printf "hospital.trainer.device is cpu, but hospital.gpu.count = %d would hold GPUs that nobody uses: set it to 0, or device to auto" (int $hospital.gpu.count)) -}}
{{- end -}}
{{- if and (eq $values.certs.mode "existing") (not $values.aggregator.enabled) -}}
{{- range $half := list "link" "trainer" -}}
{{- if not (index $hospital.existingSecrets $half) -}}
{{- $faults = append $faults (printf "certs.mode is existing, but hospital.existingSecrets.%s is empty: name the Secret, or use certs.mode=generate" $half) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (not $values.aggregator.enabled) $hospital.enrolment.bundle (not $hospital.enrolment.caFingerprint) -}}
{{- $faults = append $faults "hospital.enrolment.caFingerprint is empty: ask the coordinator to read the CA's fingerprint aloud; without it anybody could have made the bundle" -}}
{{- end -}}
{{- if and (not $values.aggregator.enabled) $hospital.aggregator.proxy (not $hospital.aggregator.proxyCidrs) $values.networkPolicy.enabled -}}
{{- $faults = append $faults "hospital.aggregator.proxyCidrs is empty: name the addresses of the proxy, such as [10.0.0.7/32]; the link may reach nothing else" -}}
{{- end -}}
{{- end -}}

{{- if $values.aggregator.enabled -}}
{{- range $key := list "ingress" "tlsRoute" -}}
{{- if and (index $values.edge $key "enabled") (not $values.edge.hostname) -}}
{{- $faults = append $faults (printf "edge.%s is enabled and edge.hostname is empty: give the name that hospitals connect to, such as fl.example.org" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $values.edge.tlsRoute.enabled (not $values.edge.tlsRoute.parentRefs) -}}
{{- $faults = append $faults "edge.tlsRoute.parentRefs is empty: name the Gateway, such as [{name: public, sectionName: tls}]" -}}
{{- end -}}
{{- if and $values.controlPlane.ingress.enabled (not $values.controlPlane.ingress.hostname) -}}
{{- $faults = append $faults "controlPlane.ingress.hostname is empty: give the name of the web page, such as fedward.example.org" -}}
{{- end -}}
{{- $service := $values.edge.service -}}
{{- if and $service.nodePort (eq $service.type "ClusterIP") -}}
{{- $faults = append $faults (printf "edge.service.nodePort = %d needs edge.service.type NodePort or LoadBalancer; it is ClusterIP" (int $service.nodePort)) -}}
{{- end -}}
{{- if and (or $service.loadBalancerClass $service.loadBalancerSourceRanges) (ne $service.type "LoadBalancer") -}}
{{- $faults = append $faults (printf "edge.service.loadBalancerClass and loadBalancerSourceRanges need edge.service.type LoadBalancer; it is %s" $service.type) -}}
{{- end -}}
{{- if and $service.externalTrafficPolicy (eq $service.type "ClusterIP") -}}
{{- $faults = append $faults "edge.service.externalTrafficPolicy needs edge.service.type NodePort or LoadBalancer; it is ClusterIP" -}}
{{- end -}}
{{- if and $values.controlPlane.database.url $values.networkPolicy.enabled (not $values.networkPolicy.database) -}}
{{- $faults = append $faults "controlPlane.database.url is given and networkPolicy.database is empty: say where the database is, such as [{ipBlock: {cidr: 10.0.0.9/32}}]" -}}
{{- end -}}
{{- if and $values.controlPlane.database.passwordSecret (not $values.controlPlane.database.url) -}}
{{- $faults = append $faults "controlPlane.database.passwordSecret is given and controlPlane.database.url is empty, which is an SQLite file without a password: give the URL, such as postgresql+psycopg://fedward@db.example.org/fedward" -}}
{{- end -}}
{{- if and (eq $values.certs.mode "cert-manager") (not $values.certs.certManager.issuerRef.name) -}}
{{- $faults = append $faults "certs.certManager.issuerRef.name is empty: name the Issuer that certs.mode=cert-manager is to use" -}}
{{- end -}}
{{- range $site, $_ := $values.certs.enrol -}}
{{- if or (and $values.demo.enabled (has $site $values.demo.hospitals)) (and $hospital.enabled (eq $site $hospital.name)) -}}
{{- $faults = append $faults (printf "certs.enrol.%s is a hospital of this release, which is enrolled already: take it out" $site) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $faults -}}
{{- fail (printf "\n\nThe values do not fit together:\n  - %s\n" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}
