{{/* A trial store has a weak password or none: only the release's replicas reach it, and it reaches nobody. */}}
{{- define "warmkey.trialStorePolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "warmkey.fullname" .root }}-{{ .component }}
  labels:
    {{- include "warmkey.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  podSelector:
    matchLabels:
      {{- include "warmkey.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  policyTypes: [Ingress, Egress]
  ingress:
    - ports:
        - port: {{ .component }}
          protocol: TCP
      from:
        - podSelector:
            matchLabels:
              {{- include "warmkey.replicas" .root | nindent 14 }}
{{- end -}}
