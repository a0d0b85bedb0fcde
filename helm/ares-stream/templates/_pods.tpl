{{/* Pods: restricted, without a token, with a read-only root. */}}

{{- define "ares.podSecurity" -}}
runAsNonRoot: true
{{- with int .Values.runAsUser }}
runAsUser: {{ . | int64 }}
runAsGroup: {{ . | int64 }}
fsGroup: {{ . | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ares.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Volumes that every service mounts. dict root component config models registry. */}}
{{- define "ares.volumes" -}}
{{- $values := .root.Values -}}
{{- $user := dict "root" .root "service" (splitList "-" .component | first) -}}
{{- $secret := include "ares.kafkaSecret" $user -}}
{{- $certificate := include "ares.kafkaCertificate" $user -}}
- name: tmp
  emptyDir: {}
- name: settings
  configMap:
    name: {{ .config | quote }}
{{- if $secret }}
- name: kafka
  secret:
    secretName: {{ $secret | quote }}
    items:
      - key: {{ ternary "password" $values.kafka.passwordKey $values.strimzi.users | quote }}
        path: {{ $values.kafka.passwordKey | quote }}
{{- end }}
{{- if $values.kafka.ca.existingSecret }}
- name: kafka-ca
  secret:
    secretName: {{ $values.kafka.ca.existingSecret | quote }}
    items:
      - key: {{ $values.kafka.ca.key | quote }}
        path: {{ $values.kafka.ca.key | quote }}
{{- end }}
{{- if $certificate }}
- name: kafka-certificate
  secret:
    secretName: {{ $certificate | quote }}
    items:
      - {key: {{ ternary "user.crt" $values.kafka.certificate.certificateKey $values.strimzi.users | quote }}, path: tls.crt}
      - {key: {{ ternary "user.key" $values.kafka.certificate.privateKey $values.strimzi.users | quote }}, path: tls.key}
{{- end }}
{{- if and $values.tracing.endpoint $values.tracing.existingSecret }}
- name: tracing
  secret:
    secretName: {{ $values.tracing.existingSecret | quote }}
{{- end }}
{{- if .models }}
- name: models
  {{- if eq $values.models.source "pvc" }}
  persistentVolumeClaim:
    claimName: {{ $values.models.pvc.existingClaim | quote }}
    readOnly: true
  {{- else if eq $values.models.source "image" }}
  image:
    reference: {{ $values.models.image.reference | quote }}
    pullPolicy: {{ $values.models.image.pullPolicy | quote }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $values.models.init.sizeLimit | quote }}
  {{- end }}
{{- end }}
{{- if and .registry $values.registry.pvc.existingClaim }}
- name: registry
  persistentVolumeClaim:
    claimName: {{ $values.registry.pvc.existingClaim | quote }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ares.mounts" -}}
{{- $values := .root.Values -}}
{{- $user := dict "root" .root "service" (splitList "-" .component | first) -}}
- name: tmp
  mountPath: /tmp
- name: settings
  mountPath: /etc/ares
  readOnly: true
{{- if include "ares.kafkaSecret" $user }}
- name: kafka
  mountPath: /secrets/kafka
  readOnly: true
{{- end }}
{{- if $values.kafka.ca.existingSecret }}
- name: kafka-ca
  mountPath: /secrets/kafka-ca
  readOnly: true
{{- end }}
{{- if include "ares.kafkaCertificate" $user }}
- name: kafka-certificate
  mountPath: /secrets/kafka-certificate
  readOnly: true
{{- end }}
{{- if and $values.tracing.endpoint $values.tracing.existingSecret }}
- name: tracing
  mountPath: /secrets/tracing
  readOnly: true
{{- end }}
{{- if .models }}
- name: models
  mountPath: {{ $values.models.mountPath | quote }}
  readOnly: true
{{- end }}
{{- if and .registry $values.registry.pvc.existingClaim }}
- name: registry
  mountPath: /registry
  readOnly: {{ default false .registryReadOnly }}
{{- end }}
{{- with $values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Annotations of a pod that were asked for. */}}
{{- define "ares.podAnnotations" -}}
{{- with .root.Values.podAnnotations }}
annotations:
  {{- include "ares.texts" . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Each name once: what extraEnv names is in the place of ours. */}}
{{- define "ares.environment" -}}
{{- $own := list (dict "name" "HOME" "value" "/tmp") (dict "name" "POD_NAME" "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.name"))) -}}
{{- $names := dict -}}
{{- range .root.Values.extraEnv -}}
{{- $_ := set $names .name true -}}
{{- end -}}
{{- $all := default list .root.Values.extraEnv -}}
{{- range reverse $own -}}
{{- if not (hasKey $names .name) -}}
{{- $all = prepend $all . -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* On which nodes: a pod's own selector, tolerations and affinity, else those of all. */}}
{{- define "ares.place" -}}
{{- with default .root.Values.nodeSelector .nodeSelector }}
nodeSelector:
  {{- include "ares.texts" . | nindent 2 }}
{{- end }}
{{- with default .root.Values.tolerations .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default .root.Values.affinity .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The init container that brings the models. */}}
{{- define "ares.fetchModels" -}}
{{- $values := .root.Values -}}
{{- if and .models (eq $values.models.source "init") }}
initContainers:
  - name: models
    image: {{ $values.models.init.image | quote }}
    {{- with $values.models.init.command }}
    command:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $values.models.init.env }}
    env:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    imagePullPolicy: {{ $values.image.pullPolicy | quote }}
    resources:
      requests: {cpu: 100m, memory: 128Mi}
      limits: {memory: 1Gi}
    securityContext:
      {{- include "ares.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: models
        mountPath: {{ $values.models.mountPath | quote }}
      {{- with $values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
{{- end -}}

{{/*
A Deployment's pod template.
dict root component target args config models registry resources grace startup
     [account token volumes mounts ports nodeSelector tolerations affinity runtimeClass claims checksum]
*/}}
{{- define "ares.podTemplate" -}}
{{- $values := .root.Values -}}
metadata:
  annotations:
    ares-stream/settings: {{ .checksum | quote }}
    {{- with $values.podAnnotations }}
    {{- include "ares.texts" . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "ares.podLabels" . | nindent 4 }}
spec:
  serviceAccountName: {{ default (include "ares.fullname" .root) .account | quote }}
  automountServiceAccountToken: {{ default false .token }}
  terminationGracePeriodSeconds: {{ .grace | int64 }}
  {{- with include "ares.pullSecrets" .root }}
  imagePullSecrets:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with .runtimeClass }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  securityContext:
    {{- include "ares.podSecurity" .root | nindent 4 }}
  {{- include "ares.fetchModels" . | nindent 2 }}
  containers:
    - name: {{ .container | quote }}
      image: {{ include "ares.image" . | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy | quote }}
      args:
        {{- toYaml .args | nindent 8 }}
      env:
        {{- include "ares.environment" . | nindent 8 }}
        {{- with .environment }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if and .registry $values.registry.existingSecret }}
      envFrom:
        - secretRef:
            name: {{ $values.registry.existingSecret | quote }}
      {{- end }}
      ports:
        - name: http
          containerPort: 9464
          protocol: TCP
        {{- with .ports }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      startupProbe:
        httpGet:
          path: /livez
          port: http
        periodSeconds: 5
        failureThreshold: {{ max 1 (div (default 60 .startup | int) 5) }}
      livenessProbe:
        httpGet:
          path: /livez
          port: http
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: http
        periodSeconds: 5
        timeoutSeconds: 5
      {{- if .claims }}
      resources:
        {{- toYaml (merge (dict "claims" (list (dict "name" "gpu"))) (default dict .resources)) | nindent 8 }}
      {{- else }}
      resources:
        {{- toYaml (default dict .resources) | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "ares.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "ares.mounts" . | nindent 8 }}
        {{- with .mounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- with .claims }}
  resourceClaims:
    - name: gpu
      resourceClaimTemplateName: {{ . | quote }}
  {{- end }}
  {{- include "ares.place" . | nindent 2 }}
  {{- if $values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . | quote }}
      whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable | quote }}
      labelSelector:
        matchLabels:
          {{- include "ares.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  volumes:
    {{- include "ares.volumes" . | nindent 4 }}
    {{- with .volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}


{{/*
The pod template of a Job that runs `ares` once for each of its steps, one after the other.
dict root component steps (list of dict name args) config models registry resources
     [account volumes mounts nodeSelector tolerations]
*/}}
{{- define "ares.jobPod" -}}
{{- $values := .root.Values -}}
metadata:
  {{- include "ares.podAnnotations" . | nindent 2 }}
  labels:
    {{- include "ares.podLabels" . | nindent 4 }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ default (include "ares.fullname" .root) .account | quote }}
  automountServiceAccountToken: false
  {{- with include "ares.pullSecrets" .root }}
  imagePullSecrets:
    {{- . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "ares.podSecurity" .root | nindent 4 }}
  {{- $fetched := include "ares.fetchModels" . }}
  {{- $before := initial .steps }}
  {{- if or $fetched $before }}
  {{- $init := list }}
  {{- with $fetched }}
  {{- $init = (fromYaml .).initContainers }}
  {{- end }}
  {{- range $before }}
  {{- $init = append $init (include "ares.step" (merge (dict "step" .) $) | fromYaml) }}
  {{- end }}
  initContainers:
    {{- toYaml $init | nindent 4 }}
  {{- end }}
  containers:
    {{- list (include "ares.step" (merge (dict "step" (last .steps)) .) | fromYaml) | toYaml | nindent 4 }}
  {{- include "ares.place" . | nindent 2 }}
  volumes:
    {{- include "ares.volumes" . | nindent 4 }}
    {{- with .volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* One container of a Job: what jobPod has, and step. */}}
{{- define "ares.step" -}}
{{- $values := .root.Values -}}
name: {{ .step.name | quote }}
image: {{ include "ares.image" (dict "root" .root "target" "tools") | quote }}
imagePullPolicy: {{ $values.image.pullPolicy | quote }}
args:
  {{- toYaml .step.args | nindent 2 }}
env:
  {{- include "ares.environment" . | nindent 2 }}
{{- if and .registry $values.registry.existingSecret }}
envFrom:
  - secretRef:
      name: {{ $values.registry.existingSecret | quote }}
{{- end }}
resources:
  {{- toYaml (default dict .resources) | nindent 2 }}
securityContext:
  {{- include "ares.containerSecurity" . | nindent 2 }}
volumeMounts:
  {{- include "ares.mounts" . | nindent 2 }}
  {{- with .mounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
