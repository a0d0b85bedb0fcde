{{/* Names and labels. */}}

{{- define "ares.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "ares.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "ares.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "ares.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* dict root component: the labels that select pods, which never change. */}}
{{- define "ares.selector" -}}
app.kubernetes.io/name: {{ include "ares.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* dict root component: all recommended labels. */}}
{{- define "ares.labels" -}}
{{ include "ares.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ares-stream
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* dict root target: an image's whole name. */}}
{{- define "ares.image" -}}
{{- $tag := default .root.Chart.AppVersion .root.Values.image.tag -}}
{{- $name := printf "ares-stream-%s:%s" .target $tag -}}
{{- if .root.Values.image.registry -}}
{{- printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $name -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* Every lane with the defaults under it, as YAML: lane name to values. Disabled lanes are left out. */}}
{{- define "ares.lanes" -}}
{{- $all := dict -}}
{{- range $lane, $own := .Values.scorer.lanes -}}
{{- if (default dict $own).enabled -}}
{{- $_ := set $all $lane (mergeOverwrite (deepCopy $.Values.scorer.defaults) (deepCopy $own)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}
