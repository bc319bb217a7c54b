{{/* The pod of a role. Takes {root, role, values}; everything roles differ in is decided here. */}}
{{- define "hydrant.pod" -}}
{{- $root := .root -}}{{- $role := .role -}}{{- $values := .values -}}{{- $v := $root.Values -}}
{{- $fetches := has $role (list "frontend" "importer") -}}
metadata:
  labels:
    {{- include "hydrant.labels" . | nindent 4 }}
    hydrant/scrape: "true"
    {{- with $v.pod.labels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ $role }}
    {{- with $v.pod.annotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "hydrant.name" $root }}-{{ $role }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $v.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- include "hydrant.podSecurity" $root | nindent 4 }}
  # Then SIGTERM: readiness goes off, after drainDelay nothing new is accepted, after drainDeadline
  # what is open is closed.
  terminationGracePeriodSeconds: {{ add $v.pod.preStopSleep $values.drainDelay $values.drainDeadline 20 }}
  {{- with $v.pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with merge (dict) $values.nodeSelector $v.pod.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with concat $v.pod.tolerations $values.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.pod.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "hydrant.selector" (dict "root" $root "role" $role) | nindent 10 }}
      # Of one revision, so that a rollout is spread as well.
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  containers:
    - name: {{ $role }}
      image: {{ include "hydrant.image" $root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [{{ $role }}]
      env:
        {{- include "hydrant.env" . | nindent 8 }}
      ports:
        - {name: admin, containerPort: 9464}
        {{- if $fetches }}
        - {name: peer, containerPort: {{ $v.pod.peerPort }}}
        {{- end }}
        {{- if eq $role "frontend" }}
        - {name: registry, containerPort: {{ $values.listenPort }}}
        {{- end }}
      {{- with int $v.pod.preStopSleep }}
      {{- if semverCompare "<1.30.0-0" $root.Capabilities.KubeVersion.Version }}{{ fail (printf "pod.preStopSleep needs Kubernetes 1.30, and this is %s: leave it 0; drainDelay does the same after SIGTERM" $root.Capabilities.KubeVersion.Version) }}{{ end }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ . }}}
      {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: admin}
        periodSeconds: 1
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: admin}
        periodSeconds: 10
        timeoutSeconds: 3
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      securityContext:
        {{- include "hydrant.containerSecurity" . | nindent 8 }}
      resources:
        {{- $requests := $values.resources.requests | default dict }}
        {{- if $fetches }}
        {{- $requests = merge (dict) $requests (dict "ephemeral-storage" (printf "%dGi" (int $values.spoolGiB))) }}
        {{- end }}
        requests: {{ toYaml $requests | nindent 10 }}
        {{- with $values.resources.limits }}
        limits: {{ toYaml . | nindent 10 }}
        {{- end }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/hydrant}
        - {name: config, mountPath: /etc/hydrant/config, readOnly: true}
        {{- range include "hydrant.secrets" . | fromJsonArray }}
        - {name: {{ printf "secret-%s" . }}, mountPath: {{ printf "/etc/hydrant/secrets/%s" . }}, readOnly: true}
        {{- end }}
        {{- if $v.nats.credentials.secret }}
        - {name: nats-credentials, mountPath: /etc/hydrant/nats, readOnly: true}
        {{- end }}
        {{- if $v.nats.ca.secret }}
        - {name: nats-ca, mountPath: /etc/hydrant/nats-ca, readOnly: true}
        {{- end }}
  volumes:
    - name: data
      emptyDir:
        sizeLimit: {{ if $fetches }}{{ add $values.spoolGiB 1 }}Gi{{ else }}64Mi{{ end }}
    - name: config
      configMap: {name: {{ include "hydrant.name" $root }}-config}
    {{- range include "hydrant.secrets" . | fromJsonArray }}
    - name: {{ printf "secret-%s" . }}
      secret: {secretName: {{ . }}}
    {{- end }}
    {{- with $v.nats.credentials }}{{ if .secret }}
    - name: nats-credentials
      secret: {secretName: {{ .secret }}, items: [{key: {{ .key }}, path: nats.creds}]}
    {{- end }}{{ end }}
    {{- with $v.nats.ca }}{{ if .secret }}
    - name: nats-ca
      secret: {secretName: {{ .secret }}, items: [{key: {{ .key }}, path: ca.crt}]}
    {{- end }}{{ end }}
{{- end }}

{{/* Secrets that are mounted because the configuration names files of them. */}}
{{- define "hydrant.secrets" -}}
{{- $secrets := .root.Values.secrets -}}
{{- if has .role (list "frontend" "importer") }}{{ toJson $secrets.upstreams }}{{ else if eq .role "notifier" }}{{ toJson $secrets.webhooks }}{{ else }}[]{{ end -}}
{{- end }}

{{/* What Pod Security's `restricted` asks for, and a read-only root file system. */}}
{{- define "hydrant.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.pod.runAsUser }}
runAsGroup: {{ .Values.pod.runAsUser }}
fsGroup: {{ .Values.pod.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hydrant.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "hydrant.env" -}}
{{- $root := .root -}}{{- $role := .role -}}{{- $values := .values -}}{{- $v := $root.Values -}}
- {name: HYDRANT_ADMIN, value: "0.0.0.0:9464"}
- {name: HYDRANT_DATA, value: /var/lib/hydrant}
{{- if ne $role "control" }}
# Until the shared configuration arrives; the hook job writes that.
- {name: HYDRANT_CONFIG, value: /etc/hydrant/config/hydrant.toml}
{{- end }}
- {name: HYDRANT_DRAIN_DELAY, value: {{ printf "%ds" (int $values.drainDelay) }}}
- {name: HYDRANT_DRAIN_DEADLINE, value: {{ printf "%ds" (int $values.drainDeadline) }}}
{{- if eq $role "frontend" }}
- {name: HYDRANT_LISTEN, value: {{ printf "0.0.0.0:%d" (int $values.listenPort) | quote }}}
{{- end }}
{{- if eq $role "importer" }}
- {name: HYDRANT_JOBS, value: {{ $values.jobs | quote }}}
{{- end }}
{{- if has $role (list "frontend" "importer") }}
- {name: HYDRANT_SPOOL, value: {{ printf "%dGiB" (int $values.spoolGiB) }}}
# The others are told the pod's own address, the one it has towards NATS.
- {name: HYDRANT_PEER, value: {{ printf "0.0.0.0:%d" (int $v.pod.peerPort) | quote }}}
{{- end }}
- {name: HYDRANT_STORE, value: {{ include "hydrant.storeUrl" $root | quote }}}
- {name: AWS_REGION, value: {{ $v.store.region | quote }}}
{{- with include "hydrant.storeEndpoint" $root }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- if or $v.store.allowHttp $v.bundled.store.enabled }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
{{- with $v.store.publicEndpoint }}
- {name: HYDRANT_S3_PUBLIC_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with include "hydrant.storeSecret" $root }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $v.store.credentials.accessKeyId }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $v.store.credentials.secretAccessKey }}}}
{{- end }}
{{- if $v.nats.urlSecret.name }}
- name: HYDRANT_NATS_URL
  valueFrom: {secretKeyRef: {name: {{ $v.nats.urlSecret.name }}, key: {{ $v.nats.urlSecret.key }}}}
{{- else }}
- {name: HYDRANT_NATS_URL, value: {{ include "hydrant.natsUrl" $root | quote }}}
{{- end }}
{{- if $v.nats.credentials.secret }}
- {name: HYDRANT_NATS_CREDENTIALS, value: /etc/hydrant/nats/nats.creds}
{{- end }}
{{- if $v.nats.ca.secret }}
- {name: HYDRANT_NATS_CA, value: /etc/hydrant/nats-ca/ca.crt}
{{- end }}
- {name: HYDRANT_NATS_REPLICAS, value: {{ ternary 1 $v.nats.replicas $v.bundled.nats.enabled | quote }}}
{{- if eq $role "control" }}
- name: HYDRANT_ADMIN_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "hydrant.tokenSecret" $root }}, key: {{ $v.adminToken.key }}}}
{{- end }}
- {name: HYDRANT_LOG_FORMAT, value: {{ $v.telemetry.logFormat }}}
- {name: HYDRANT_LOG, value: {{ $v.telemetry.logFilter | quote }}}
{{- with $v.telemetry.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: {{ $v.telemetry.tracesSampler }}}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ $v.telemetry.tracesSamplerArg | quote }}}
{{- end }}
{{- if $v.telemetry.otlpEndpoint }}
- name: HYDRANT_POD
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: HYDRANT_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: "k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(HYDRANT_POD),k8s.node.name=$(HYDRANT_NODE),service.instance.id=$(HYDRANT_POD)"
{{- end }}
{{- with $v.pod.env }}
{{ toYaml . }}
{{- end }}
{{- end }}
