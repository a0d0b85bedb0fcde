{{/* Settings files. */}}

{{/* The section kafka: secrets are files under /secrets/kafka. */}}
{{- define "ares.kafka" -}}
{{- $kafka := .Values.kafka -}}
bootstrap: {{ $kafka.bootstrap | quote }}
protocol: {{ $kafka.protocol }}
{{- if eq $kafka.protocol "SASL_SSL" }}
mechanism: {{ $kafka.mechanism }}
{{- if eq $kafka.mechanism "OAUTHBEARER" }}
token_file: /secrets/kafka/{{ $kafka.passwordKey }}
{{- else }}
username: {{ $kafka.username | quote }}
password_file: /secrets/kafka/{{ $kafka.passwordKey }}
{{- end }}
{{- end }}
{{- if $kafka.allowPlaintext }}
allow_plaintext: true
{{- end }}
{{- if $kafka.ca.existingSecret }}
ca_file: /secrets/kafka-ca/{{ $kafka.ca.key }}
{{- end }}
{{- if $kafka.certificate.existingSecret }}
certificate_file: /secrets/kafka-certificate/tls.crt
key_file: /secrets/kafka-certificate/tls.key
{{- end }}
{{- end -}}

{{/* What every service's file begins with. */}}
{{- define "ares.settings" -}}
kafka:
  {{- include "ares.kafka" . | nindent 2 }}
topic_prefix: {{ .Values.topics.prefix | quote }}
log_level: {{ .Values.logLevel }}
http:
  host: 0.0.0.0
  port: 9464
registry:
  root: {{ .Values.registry.root | quote }}
{{- end -}}
