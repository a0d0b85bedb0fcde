{{/* Names and labels. */}}

{{- define "ares.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimAll "-." -}}
{{- end -}}

{{- define "ares.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimAll "-." -}}
{{- else if contains (include "ares.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimAll "-." -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "ares.name" .) | trunc 40 | trimAll "-." -}}
{{- end -}}
{{- end -}}

{{/* dict root component: the labels that select pods, which never change. */}}
{{- define "ares.selector" -}}
app.kubernetes.io/name: {{ include "ares.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{/* dict root component: all recommended labels. */}}
{{- define "ares.labels" -}}
{{ include "ares.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ares-stream
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | quote }}
{{- with .root.Values.commonLabels }}
{{ include "ares.texts" . }}
{{- end }}
{{- end -}}

{{/* A mapping whose values Kubernetes takes as text alone: 1, 1.5 and true are written so. */}}
{{- define "ares.texts" -}}
{{- $texts := dict -}}
{{- range $name, $value := . -}}
{{- $_ := set $texts $name (ternary $value (toJson $value) (kindIs "string" $value)) -}}
{{- end -}}
{{- toYaml $texts -}}
{{- end -}}

{{/* dict root component: all labels of a pod. */}}
{{- define "ares.podLabels" -}}
{{ include "ares.labels" . }}
{{- with .root.Values.podLabels }}
{{ include "ares.texts" . }}
{{- end }}
{{- end -}}

{{/* Names of secrets with a registry's credentials, as text or as Kubernetes writes them. */}}
{{- define "ares.pullSecrets" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ if kindIs "map" . }}{{ quote .name }}{{ else }}{{ quote . }}{{ end }}
{{- end }}
{{- end -}}

{{/* The console's Service: its name is a DNS label, which a release's need not be. */}}
{{- define "ares.consoleService" -}}
{{- printf "%s-console" (include "ares.fullname" .) | replace "." "-" -}}
{{- end -}}

{{/* dict root target: an image's whole name. */}}
{{- define "ares.image" -}}
{{- $tag := default .root.Chart.AppVersion .root.Values.image.tag -}}
{{- $name := printf "ares-stream-%s:%s" .target $tag -}}
{{- with get .root.Values.image.digests .target -}}
{{- $name = printf "ares-stream-%s@%s" $.target . -}}
{{- end -}}
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
{{- $_ := set $all $lane (fromYaml (include "ares.kept" (mergeOverwrite (deepCopy $.Values.scorer.defaults) (deepCopy $own)))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* A mapping without its nulls, which take a default away; those of settings are the service's. */}}
{{- define "ares.kept" -}}
{{- $kept := dict -}}
{{- range $name, $value := . -}}
{{- if and (kindIs "map" $value) (ne $name "settings") -}}
{{- $_ := set $kept $name (fromYaml (include "ares.kept" $value)) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $kept $name $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end -}}
