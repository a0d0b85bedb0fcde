{{/* Settings files. */}}

{{/* dict root service: the user that the service is for the brokers; Strimzi names its secret so. */}}
{{- define "ares.kafkaUser" -}}
{{- if .root.Values.strimzi.users -}}
{{- printf "%s-%s" (include "ares.fullname" .root) .service -}}
{{- else -}}
{{- .root.Values.kafka.username -}}
{{- end -}}
{{- end -}}

{{/* dict root service: the secret with the password or token, if there is one. */}}
{{- define "ares.kafkaSecret" -}}
{{- $strimzi := .root.Values.strimzi -}}
{{- if not $strimzi.users -}}
{{- .root.Values.kafka.existingSecret -}}
{{- else if eq $strimzi.authentication "scram-sha-512" -}}
{{- include "ares.kafkaUser" . -}}
{{- end -}}
{{- end -}}

{{/* dict root service: the secret with the client's certificate, if there is one. */}}
{{- define "ares.kafkaCertificate" -}}
{{- $strimzi := .root.Values.strimzi -}}
{{- if not $strimzi.users -}}
{{- .root.Values.kafka.certificate.existingSecret -}}
{{- else if eq $strimzi.authentication "tls" -}}
{{- include "ares.kafkaUser" . -}}
{{- end -}}
{{- end -}}

{{/* dict root service: the section kafka: secrets are files under /secrets/kafka. */}}
{{- define "ares.kafka" -}}
{{- $kafka := .root.Values.kafka -}}
{{- $own := dict "bootstrap" $kafka.bootstrap "protocol" $kafka.protocol -}}
{{- $secret := include "ares.kafkaSecret" . -}}
{{- if eq $kafka.protocol "SASL_SSL" -}}
{{- $_ := set $own "mechanism" $kafka.mechanism -}}
{{- if ne $kafka.mechanism "OAUTHBEARER" -}}
{{- $_ := set $own "username" (include "ares.kafkaUser" .) -}}
{{- if $secret -}}
{{- $_ := set $own "password_file" (printf "/secrets/kafka/%s" $kafka.passwordKey) -}}
{{- end -}}
{{- else if and $secret (not (hasKey $kafka.settings "token_endpoint")) -}}
{{- $_ := set $own "token_file" (printf "/secrets/kafka/%s" $kafka.passwordKey) -}}
{{- end -}}
{{- end -}}
{{- if $kafka.allowPlaintext -}}
{{- $_ := set $own "allow_plaintext" true -}}
{{- end -}}
{{- if $kafka.ca.existingSecret -}}
{{- $_ := set $own "ca_file" (printf "/secrets/kafka-ca/%s" $kafka.ca.key) -}}
{{- end -}}
{{- if include "ares.kafkaCertificate" . -}}
{{- $_ := set $own "certificate_file" "/secrets/kafka-certificate/tls.crt" -}}
{{- $_ := set $own "key_file" "/secrets/kafka-certificate/tls.key" -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own (deepCopy $kafka.settings)) -}}
{{- end -}}

{{/* dict root service: what every service's file begins with. */}}
{{- define "ares.settings" -}}
kafka:
  {{- include "ares.kafka" . | nindent 2 }}
topic_prefix: {{ .root.Values.topics.prefix | quote }}
log_level: {{ .root.Values.logLevel }}
http:
  # Every address of the pod, of IPv4 and IPv6.
  host: "::"
  port: 9464
{{- with .root.Values.tracing }}
{{- if .endpoint }}
tracing:
  endpoint: {{ .endpoint | quote }}
  {{- if .existingSecret }}
  token_file: /secrets/tracing/{{ .tokenKey }}
  {{- end }}
{{- end }}
{{- end }}
{{ toYaml (dict "registry" (mergeOverwrite (dict "root" .root.Values.registry.root) (deepCopy .root.Values.registry.settings))) }}
{{- end -}}
