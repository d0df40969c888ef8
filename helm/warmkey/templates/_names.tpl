{{/* Names and labels. 63 characters at most, with the longest suffix (-postgresql). */}}

{{- define "warmkey.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "warmkey.fullname" -}}
{{- $name := include "warmkey.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes in the life of a release, and nothing else: Kubernetes refuses another selector. */}}
{{- define "warmkey.selector" -}}
app.kubernetes.io/name: {{ include "warmkey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "warmkey.replicas" -}}
{{ include "warmkey.selector" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "warmkey.labels" -}}
{{ include "warmkey.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "warmkey.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "warmkey.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "warmkey.image" -}}
{{- include "warmkey.tagged" (dict "repository" .Values.image.repository "tag" (default .Chart.AppVersion .Values.image.tag)) -}}
{{- end -}}

{{/* An image and its tag. Helm reads a number of a values file as float64, which a large one would be printed as. */}}
{{- define "warmkey.tagged" -}}
{{- printf "%s:%v" .repository (kindIs "float64" .tag | ternary (int64 .tag) .tag) -}}
{{- end -}}

{{/* The fewest and the most replicas that may run. */}}
{{- define "warmkey.fewest" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicaCount .Values.autoscaling.enabled | int -}}
{{- end -}}

{{- define "warmkey.most" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicaCount .Values.autoscaling.enabled | int -}}
{{- end -}}
