{{/* Name of the daemon's objects; those of gateways end in -gateway, those of ingesters in -ingest. */}}
{{- define "retuned.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "retuned.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "retuned.labels" -}}
{{ include "retuned.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "retuned.scheme" -}}
{{- if .Values.config.http.tls_certificate_file }}https{{ else }}http{{ end }}
{{- end }}

{{/* Name by which the daemon is reached; its certificate has to hold it. */}}
{{- define "retuned.host" -}}
{{ include "retuned.name" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Not empty where ingesters read Kafka, and two daemons follow what they write. */}}
{{- define "retuned.cluster" -}}
{{- if eq "cluster" (dig "store" "kind" "file" .Values.config) }}true{{ end }}
{{- end }}

{{- define "retuned.daemonConfig" -}}
{{- $config := omit .Values.config "gateway" }}
{{- with .Values.config.http.hosts }}
{{- /* Gateways ask by a name of the Service, whatever browsers ask by. */}}
{{- $name := include "retuned.name" $ }}
{{- $host := include "retuned.host" $ }}
{{- $own := list $name (printf "%s.%s" $name $.Release.Namespace) $host (printf "%s.cluster.local" $host) }}
{{- $config = merge (dict "http" (dict "hosts" (concat . $own | uniq))) (deepCopy $config) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* What a gateway reads of the configuration; a change of it restarts gateways. */}}
{{- define "retuned.gatewayReads" -}}
{{- $url := printf "%s://%s:8321" (include "retuned.scheme" .) (include "retuned.host" .) }}
{{- $gateway := merge (deepCopy .Values.config.gateway) (dict "daemon_url" $url) }}
{{- $read := pick .Values.config "kafka" "ingest" "privacy" "incumbent" "cascade" "workloads" "logging" }}
{{- merge (dict "gateway" $gateway) $read | toYaml }}
{{- end }}

{{/*
And all that an entry of `workloads` may override (SECTIONS in daemon/overrides.py): each entry is checked over what holds for all
workloads, and over the defaults it might be wrong.
*/}}
{{- define "retuned.gatewayConfig" -}}
{{ include "retuned.gatewayReads" . }}
{{- with pick .Values.config "objective" "models" "metric" "dataset" "train" "evaluate" "gate" "rollout" "policy" "windows" "watch" "roi" "labels" "drift" "serving" "runner" "memory" "forget" "retention" }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Ingesters have no /data, and nobody signs in there. They need a principal beside Prometheus, or they would not listen to other
machines: the operator, or those of a file that their Secret or a volume of theirs holds.
*/}}
{{- define "retuned.ingestConfig" -}}
{{- $given := .Values.config.http }}
{{- $http := pick $given "metrics_token_file" "viewer_token_file" "operator_token_file" "trusted_proxies" "tls_certificate_file" "tls_key_file" }}
{{- if and $given.principals_file (not (hasPrefix "/data/" $given.principals_file)) }}
{{- $_ := set $http "principals_file" $given.principals_file }}
{{- else if not $given.operator_token_file }}
{{- fail "config.http.operator_token_file: expected a file in a cluster, for ingesters: they do not have the daemon's volume /data" }}
{{- end }}
{{- merge (dict "http" $http) (pick .Values.config "kafka" "ingest" "privacy" "store" "logging") | toYaml }}
{{- end }}

{{/* What a process of a cluster has of objects.secretName. */}}
{{- define "retuned.objects" -}}
{{- if and (include "retuned.cluster" .) .Values.objects.secretName -}}
envFrom: [{secretRef: {name: {{ .Values.objects.secretName }}}}]
{{- end }}
{{- end }}

{{/* Key of a Secret whose file in the pod this is; KEDA reads it there. */}}
{{- define "retuned.secretKey" -}}
{{- if ne (dir .file) "/run/secrets/retuned" }}
{{- fail (printf "config.kafka.%s: expected a key of the Secret ingest.secretName (/run/secrets/retuned/KEY) where ingest.keda is enabled, not %s" .key .file) }}
{{- end }}
{{- base .file }}
{{- end }}

{{/* What holds for every pod. 10001 is the user of the images. */}}
{{- define "retuned.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  # Files in the volume are 0600; the kubelet would make them readable for the group at every start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .own.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .own.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}

{{/* What holds for every container. */}}
{{- define "retuned.container" -}}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
# `kubectl exec POD -- retuned …` finds retuned.yaml here.
workingDir: /etc/retuned
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
  {{- toYaml .own.resources | nindent 2 }}
{{- end }}

{{/* Beside the volume at /data, of those that have one. */}}
{{- define "retuned.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: config, mountPath: /etc/retuned, readOnly: true}
- {name: secrets, mountPath: /run/secrets/retuned, readOnly: true}
{{- with .own.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "retuned.volumes" -}}
- name: tmp
  emptyDir: {}
- name: config
  configMap: {name: {{ .name }}}
- name: secrets
  secret: {secretName: {{ .own.secretName }}, defaultMode: 0440}
{{- with .own.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
