{{/* What all pods of the release have in common. */}}

{{/* What the `restricted` Pod Security Standard asks of a pod. */}}
{{- define "warmkey.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* And of a container. */}}
{{- define "warmkey.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where replicas listen, how long they drain, and where the trial stores are: over `config` and `extraEnvFrom`. */}}
{{- define "warmkey.env" -}}
{{- $config := include "warmkey.config" . | fromJson -}}
- name: WARMKEY__SERVER__LISTEN
  value: 0.0.0.0:8080
- name: WARMKEY__SERVER__ADMIN_LISTEN
  value: 0.0.0.0:9090
- name: WARMKEY__SERVER__DRAIN
  value: {{ dig "server" "drain" "1800s" $config | quote }}
- name: WARMKEY__SERVER__DRAIN_DELAY
  value: {{ dig "server" "drain_delay" "15s" $config | quote }}
{{- if .Values.redis.enabled }}
- name: WARMKEY__STORE__URL
  value: redis://{{ include "warmkey.fullname" . }}-redis:6379
{{- end }}
{{- if .Values.postgresql.enabled }}
- name: WARMKEY_POSTGRESQL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "warmkey.fullname" . }}-postgresql
      key: password
- name: WARMKEY__LEDGER__URL
  value: postgres://warmkey:$(WARMKEY_POSTGRESQL_PASSWORD)@{{ include "warmkey.fullname" . }}-postgresql:5432/warmkey
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The configuration and the Secrets, whole folders: a file that is mounted by subPath never changes. */}}
{{- define "warmkey.mounts" -}}
- name: config
  mountPath: /etc/warmkey
  readOnly: true
{{- range $at, $secret := .Values.secrets }}
- name: secret-{{ $at }}
  mountPath: {{ $secret.mountPath }}
  readOnly: true
{{- end }}
- name: state
  mountPath: /var/lib/warmkey
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "warmkey.volumes" -}}
- name: config
  configMap:
    name: {{ include "warmkey.fullname" . }}
{{- range $at, $secret := .Values.secrets }}
- name: secret-{{ $at }}
  secret:
    secretName: {{ $secret.name }}
    defaultMode: 288 # 0440, for the group of fsGroup
{{- end }}
- name: state
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- end -}}
