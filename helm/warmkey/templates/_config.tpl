{{/*
What the chart knows of `config`: that it is TOML, that no secret is written in it or in `extraEnv`, and how long a replica may drain.
*/}}

{{/* The configuration as JSON, once it is known to be fit for a ConfigMap. */}}
{{- define "warmkey.config" -}}
{{- $config := fromToml .Values.config -}}
{{- with $config.Error }}{{ fail (printf "config: %s" .) }}{{ end -}}
{{- range $name := list "server" "store" "ledger" "hop" "telemetry" -}}
{{- if not (kindIs "map" (dig $name dict $config)) }}{{ fail (printf "config: %s must be a section, [%s]" $name $name) }}{{ end -}}
{{- end -}}
{{- range $name := list "upstream" "key" "client" "operator" -}}
{{- range dig $name list $config -}}
{{- if not (kindIs "map" .) }}{{ fail (printf "config: %s must be a list of sections, [[%s]]" $name $name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $path := list (list "server" "secret") (list "server" "admin_token") (list "hop" "secret") -}}
{{- include "warmkey.refuseInline" (dict "name" (join "." $path) "value" (dig (first $path) (last $path) "" $config)) -}}
{{- end -}}
{{- range $section := list "store" "ledger" -}}
{{- $url := dig $section "url" "" $config -}}
{{- if and (kindIs "string" $url) (or (regexMatch "://.*@" $url) (include "warmkey.hasSecretParameter" $url)) -}}
{{- include "warmkey.refuseInline" (dict "name" (printf "%s.url" $section) "value" $url) -}}
{{- end -}}
{{- end -}}
{{- range $at, $upstream := dig "upstream" list $config -}}
{{- $proxy := dig "proxy" "" $upstream -}}
{{- if and (kindIs "string" $proxy) (contains "@" $proxy) -}}
{{- include "warmkey.refuseInline" (dict "name" (printf "upstream[%d].proxy" $at) "value" $proxy) -}}
{{- end -}}
{{- end -}}
{{- range $at, $key := dig "key" list $config -}}
{{- include "warmkey.refuseInline" (dict "name" (printf "key[%d].secret" $at) "value" (dig "secret" "" $key)) -}}
{{- end -}}
{{- range $list := list "client" "operator" -}}
{{- range $at, $one := dig $list list $config -}}
{{- include "warmkey.refuseInline" (dict "name" (printf "%s[%d].token" $list $at) "value" (dig "token" "" $one)) -}}
{{- end -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{- define "warmkey.refuseInline" -}}
{{- if and (kindIs "string" .value) .value -}}
{{- fail (printf "config: %s is written out, and a ConfigMap is no place for a secret: write { file = \"PATH\" } and mount a Secret by `secrets`, or { env = \"NAME\" } and set it by `extraEnv`" .name) -}}
{{- end -}}
{{- end -}}

{{/* Says `yes` of an address whose query has a password or a private key, however the names are encoded. */}}
{{- define "warmkey.hasSecretParameter" -}}
{{- $plain := . -}}
{{- range regexFindAll "%[0-9A-Fa-f]{2}" . -1 | uniq -}}
{{- $plain = replace . (printf "%c" (trimPrefix "%" . | printf "0x%s" | int64)) $plain -}}
{{- end -}}
{{- if regexMatch "(?i)[?&](pass|ssl-?key=[^&]*-----BEGIN)" $plain }}yes{{ end -}}
{{- end -}}

{{/* The names of all variables from which the configuration takes a secret, `{ env = "NAME" }`, as a JSON list. */}}
{{- define "warmkey.secretVariables" -}}
{{- $names := list -}}
{{- $inner := list -}}
{{- if kindIs "map" . -}}
{{- with .env }}{{ if kindIs "string" . }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- $inner = values . -}}
{{- else if kindIs "slice" . -}}
{{- $inner = . -}}
{{- end -}}
{{- range $inner }}{{ $names = concat $names (include "warmkey.secretVariables" . | fromJsonArray) }}{{ end -}}
{{- toJson ($names | uniq) -}}
{{- end -}}

{{/* Refuses what `extraEnv` must not hold: options that the chart decides, and secrets in plain text. */}}
{{- define "warmkey.checkEnv" -}}
{{- $config := include "warmkey.config" . | fromJson -}}
{{- $secrets := append (include "warmkey.secretVariables" (omit $config "sim") | fromJsonArray) "WARMKEY_SECRET" -}}
{{- range .Values.extraEnv -}}
{{- $name := .name -}}
{{- /* Warmkey reads the names of options in any case. */ -}}
{{- if regexMatch "(?i)^WARMKEY__SERVER__(DRAIN|LISTEN|ADMIN_LISTEN)" .name -}}
{{- fail (printf "extraEnv: %s: the grace and the ports of a pod follow from `config` and the chart" .name) -}}
{{- end -}}
{{- $isOption := regexMatch "(?i)^WARMKEY__(SERVER__SECRET|SERVER__ADMIN_TOKEN|HOP__SECRET)$" .name -}}
{{- $isHeader := regexMatch "^OTEL_EXPORTER_OTLP_(TRACES_)?HEADERS$" .name -}}
{{- $isSecret := or (has .name $secrets) $isOption $isHeader -}}
{{- $isAddress := regexMatch "(?i)^WARMKEY__(STORE|LEDGER)__URL$" .name -}}
{{- range $option, $store := dict "STORE" "redis" "LEDGER" "postgresql" -}}
{{- if and (get $.Values $store).enabled (eq (upper $name) (printf "WARMKEY__%s__URL" $option)) -}}
{{- fail (printf "extraEnv: %s: %s.enabled sets it already" $name $store) -}}
{{- end -}}
{{- end -}}
{{- /* Kubernetes writes another variable, which may come from a Secret, in place of $(NAME). */ -}}
{{- $plain := regexReplaceAll "[$][(][^()]*[)]" (dig "value" "" .) "" -}}
{{- $isOpen := or (regexMatch "://.*:.+@" $plain) (include "warmkey.hasSecretParameter" $plain) -}}
{{- if or (and $isSecret (not (dig "valueFrom" "secretKeyRef" dict .))) (and $isAddress $isOpen) -}}
{{- fail (printf "extraEnv: %s is a secret: take it from a Secret, by valueFrom.secretKeyRef" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The milliseconds of a span of time as Warmkey writes it. */}}
{{- define "warmkey.milliseconds" -}}
{{- if not (and (kindIs "string" .value) (regexMatch "^[0-9]{1,12}(ms|s|m|h|d)$" .value)) -}}
{{- fail (printf "config: %s: must be a span of time such as \"30s\"" .name) -}}
{{- end -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- mul (regexFind "^[0-9]+" .value | atoi) (get $units (regexFind "[a-z]+$" .value)) -}}
{{- end -}}

{{/* The bytes of a size: of Kubernetes ("2Gi", "500M", 1000), or as Warmkey writes it ("64MiB"). Empty: it is written otherwise. */}}
{{- define "warmkey.bytes" -}}
{{- $size := kindIs "float64" . | ternary (int64 .) . | toString -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- if regexMatch "^[0-9]{1,12}([kMG]|[KMG]i)?B?$" $size -}}
{{- mul (regexFind "^[0-9]+" $size | int64) (get $units (regexFind "[a-zA-Z]*$" $size | trimSuffix "B")) -}}
{{- end -}}
{{- end -}}

{{/* Seconds from SIGTERM to SIGKILL: what a replica may take by its configuration, and 15 s for its last words. */}}
{{- define "warmkey.grace" -}}
{{- $config := include "warmkey.config" . | fromJson -}}
{{- include "warmkey.checkEnv" . -}}
{{- $delay := include "warmkey.milliseconds" (dict "name" "server.drain_delay" "value" (dig "server" "drain_delay" "15s" $config)) | int64 -}}
{{- $drain := include "warmkey.milliseconds" (dict "name" "server.drain" "value" (dig "server" "drain" "1800s" $config)) | int64 -}}
{{- $least := add (div (add $delay $drain 999) 1000) 15 -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int64 .) (int64 $least) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d would cut turns: server.drain_delay + server.drain + 15 is %d" (int64 .) $least) -}}
{{- end -}}
{{- end -}}
{{- default $least .Values.terminationGracePeriodSeconds | int64 -}}
{{- end -}}

{{/* The TCP ports of the upstreams and of their egress proxies, as far as `config` says them, as a JSON list. */}}
{{- define "warmkey.upstreamPorts" -}}
{{- $config := include "warmkey.config" . | fromJson -}}
{{- $ports := list -}}
{{- range default (list dict) (dig "upstream" list $config) -}}
{{- $proxy := dig "proxy" "" . -}}
{{- $url := urlParse (ternary (toString $proxy) (dig "base_url" "https://api.openai.com/v1" .) (and (kindIs "string" $proxy) (ne $proxy ""))) -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $ports = append $ports (int (default (ternary 80 443 (eq $url.scheme "http")) $port)) -}}
{{- end -}}
{{- if .Values.redis.enabled }}{{ $ports = append $ports 6379 }}{{ end -}}
{{- if .Values.postgresql.enabled }}{{ $ports = append $ports 5432 }}{{ end -}}
{{- range .Values.networkPolicy.egressPorts }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- $sorted := list -}}
{{- range $ports | uniq }}{{ $sorted = append $sorted (printf "%05d" .) }}{{ end -}}
{{- toJson ($sorted | sortAlpha) -}}
{{- end -}}

{{/* How clients speak to the Service. */}}
{{- define "warmkey.scheme" -}}
{{- $config := include "warmkey.config" . | fromJson -}}
{{- ternary "https" "http" (not (empty (dig "server" "tls" "" $config))) -}}
{{- end -}}
