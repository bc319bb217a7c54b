{{/* Names and labels. Roles are components of one release. */}}

{{- define "hydrant.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/* What never changes, so selectors may rest on it. Takes {root, role}. */}}
{{- define "hydrant.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .role }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "hydrant.labels" -}}
{{ include "hydrant.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "hydrant.image" -}}
{{- $image := .Values.image -}}
{{- $repository := required "image.repository is empty: build deploy/Dockerfile, push it to a registry of yours, and name it, for example --set image.repository=registry.example.com/hydrant" $image.repository -}}
{{- if $image.digest }}{{ $repository }}@{{ $image.digest }}{{ else }}{{ $repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end }}

{{- define "hydrant.natsUrl" -}}
{{- if .Values.bundled.nats.enabled -}}
nats://{{ include "hydrant.name" . }}-nats:4222
{{- else -}}
{{- required "nats.url is empty: name your NATS, for example --set nats.url=nats://nats.nats.svc:4222 (or nats.urlSecret.name), or set bundled.nats.enabled=true for a trial" .Values.nats.url -}}
{{- end -}}
{{- end }}

{{- define "hydrant.natsMonitoring" -}}
{{- if .Values.bundled.nats.enabled -}}
{{ include "hydrant.name" . }}-nats.{{ .Release.Namespace }}.svc.cluster.local:8222
{{- else -}}
{{- required "nats.monitoring is empty: importer.keda reads the queue from NATS's monitoring port, for example nats-headless.nats.svc.cluster.local:8222" .Values.nats.monitoring -}}
{{- end -}}
{{- end }}

{{- define "hydrant.storeEndpoint" -}}
{{- if .Values.bundled.store.enabled -}}
http://{{ include "hydrant.name" . }}-store:8333
{{- else -}}
{{- .Values.store.endpoint -}}
{{- end -}}
{{- end }}

{{- define "hydrant.storeUrl" -}}
{{- if .Values.bundled.store.enabled -}}
s3://hydrant
{{- else -}}
{{- $bucket := required "store.bucket is empty: name the bucket, or set bundled.store.enabled=true for a trial" .Values.store.bucket -}}
s3://{{ $bucket }}{{ with .Values.store.prefix }}/{{ trimAll "/" . }}{{ end }}
{{- end -}}
{{- end }}

{{- define "hydrant.storeSecret" -}}
{{- if .Values.bundled.store.enabled }}{{ include "hydrant.name" . }}-store{{ else }}{{ .Values.store.credentials.secret }}{{ end -}}
{{- end }}

{{- define "hydrant.tokenSecret" -}}
{{- .Values.adminToken.secret | default (printf "%s-admin" (include "hydrant.name" .)) -}}
{{- end }}

{{/* The port an address leads to. */}}
{{- define "hydrant.port" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- if $port }}{{ $port }}{{ else if eq $url.scheme "http" }}80{{ else if or (eq $url.scheme "nats") (eq $url.scheme "tls") }}4222{{ else }}443{{ end -}}
{{- end }}

{{/* Names what is missing in the order in which one would give it. */}}
{{- define "hydrant.complete" -}}
{{- $_ := include "hydrant.image" . -}}
{{- if not .Values.nats.urlSecret.name }}{{ $_ = include "hydrant.natsUrl" . }}{{ end -}}
{{- $_ = include "hydrant.storeUrl" . -}}
{{- end }}
