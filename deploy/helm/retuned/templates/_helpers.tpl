{{/* Name of the daemon's objects; those of gateways end in -gateway. */}}
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

{{- define "retuned.daemonConfig" -}}
{{ omit .Values.config "gateway" | toYaml }}
{{- end }}

{{- define "retuned.gatewayConfig" -}}
{{- $url := printf "%s://%s:8321" (include "retuned.scheme" .) (include "retuned.host" .) }}
{{- $gateway := merge (deepCopy .Values.config.gateway) (dict "daemon_url" $url) }}
{{- merge (dict "gateway" $gateway) (pick .Values.config "kafka" "ingest" "logging") | toYaml }}
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

{{- define "retuned.volumeMounts" -}}
- {name: data, mountPath: /data}
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
