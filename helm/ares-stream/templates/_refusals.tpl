{{/* Values that cannot work are refused here, in words, before anything is rendered. */}}
{{- define "ares.refuse" -}}
{{- $values := .Values -}}
{{- $kafka := $values.kafka -}}
{{- if not $kafka.bootstrap -}}
{{- fail "kafka.bootstrap: no brokers named; set host:port, several with commas" -}}
{{- end -}}
{{- range splitList "," $kafka.bootstrap -}}
{{- if not (regexMatch "^(\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9._-]+):[0-9]{1,5}$" (trim .)) -}}
{{- fail (printf "kafka.bootstrap: %q is no host:port (an IPv6 address stands in brackets)" (trim .)) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[A-Za-z0-9._-]*$" $values.topics.prefix) -}}
{{- fail (printf "topics.prefix: %q has characters that no topic's name may have; letters, digits, ., _ and - are allowed" $values.topics.prefix) -}}
{{- end -}}
{{- range $name := list "commonLabels" "podLabels" -}}
{{- range $label, $_ := get $values $name -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/part-of" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
{{- fail (printf "%s: %s is the chart's own label, by which pods are found; choose another name" $name $label) -}}
{{- end -}}
{{- if and (eq $name "podLabels") (hasKey (default dict $values.commonLabels) $label) -}}
{{- fail (printf "podLabels: %s stands in commonLabels, which pods carry too" $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $target, $digest := $values.image.digests -}}
{{- if not (has $target (list "scorer-cpu" "scorer-gpu" "repairer" "prober" "monitor" "notary" "console" "tools")) -}}
{{- fail (printf "image.digests: there is no image %s" $target) -}}
{{- end -}}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" $digest) -}}
{{- fail (printf "image.digests.%s: %q is no digest; expected sha256: and 64 hexadecimal digits" $target $digest) -}}
{{- end -}}
{{- end -}}
{{- if eq $kafka.protocol "PLAINTEXT" -}}
{{- if not $kafka.allowPlaintext -}}
{{- range splitList "," $kafka.bootstrap -}}
{{- $host := regexReplaceAll ":[0-9]+$" (trim .) "" -}}
{{- if not (or (eq $host "localhost") (hasPrefix "127." $host) (eq $host "[::1]")) -}}
{{- fail (printf "kafka.protocol: PLAINTEXT to %s would send conversations readable over the network; set SSL or SASL_SSL, or kafka.allowPlaintext: true where a mesh encrypts" $host) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $values.strimzi.users -}}
{{- if $values.topics.create -}}
{{- fail "topics.create and strimzi.users: the job would run before its user exists; set strimzi.topics, or make the topics yourself" -}}
{{- end -}}
{{- if and (eq $values.strimzi.authentication "scram-sha-512") (not (and (eq $kafka.protocol "SASL_SSL") (eq $kafka.mechanism "SCRAM-SHA-512"))) -}}
{{- fail "strimzi.authentication: scram-sha-512 needs kafka.protocol SASL_SSL and kafka.mechanism SCRAM-SHA-512" -}}
{{- end -}}
{{- if and (eq $values.strimzi.authentication "tls") (ne $kafka.protocol "SSL") -}}
{{- fail "strimzi.authentication: tls needs kafka.protocol SSL" -}}
{{- end -}}
{{- else if eq $kafka.protocol "SASL_SSL" -}}
{{- $given := $kafka.existingSecret -}}
{{- range ternary (list "token_file" "token_endpoint") (list "password_file") (eq $kafka.mechanism "OAUTHBEARER") -}}
{{- $given = or $given (get $kafka.settings .) -}}
{{- end -}}
{{- if not $given -}}
{{- fail "kafka.existingSecret: SASL_SSL needs a secret with the password or token; create it and name it here (or name a file in kafka.settings)" -}}
{{- end -}}
{{- if and (ne $kafka.mechanism "OAUTHBEARER") (not (or $kafka.username (get $kafka.settings "username"))) -}}
{{- fail (printf "kafka.username: %s needs a user" $kafka.mechanism) -}}
{{- end -}}
{{- end -}}
{{- if and $values.topics.create $values.strimzi.topics -}}
{{- fail "topics.create and strimzi.topics: both would make the topics; switch one off" -}}
{{- end -}}
{{- if and (or $values.strimzi.topics $values.strimzi.users) (not $values.strimzi.cluster) -}}
{{- fail "strimzi.cluster: name the Kafka resource that topics and users belong to" -}}
{{- end -}}
{{- if and (eq $values.models.source "pvc") (not $values.models.pvc.existingClaim) -}}
{{- fail "models.pvc.existingClaim: models.source is pvc, so name the claim that holds the bundles (or choose image or init)" -}}
{{- end -}}
{{- if and (eq $values.models.source "image") (not $values.models.image.reference) -}}
{{- fail "models.image.reference: models.source is image, so name the image that holds the bundles" -}}
{{- end -}}
{{- if and (eq $values.models.source "init") (not $values.models.init.image) -}}
{{- fail "models.init.image: models.source is init, so name the image that fetches the bundles" -}}
{{- end -}}
{{- $lanes := fromYaml (include "ares.lanes" .) -}}
{{- range $lane, $scorer := $lanes -}}
{{- $at := printf "scorer.lanes.%s" $lane -}}
{{- if not (has $lane (list "production" "probe" "anchor")) -}}
{{- fail (printf "%s: no such lane; there are production, probe and anchor" $at) -}}
{{- end -}}
{{- if not $scorer.harm -}}
{{- fail (printf "%s.harm: names no bundle, so that nothing could be judged" $at) -}}
{{- end -}}
{{- if not $scorer.reward -}}
{{- fail (printf "%s.reward: names no bundle" $at) -}}
{{- end -}}
{{- if and $scorer.keda.enabled $scorer.hpa.enabled -}}
{{- fail (printf "%s: keda and hpa would both scale it; switch one off" $at) -}}
{{- end -}}
{{- if and $scorer.keda.enabled (eq $kafka.protocol "SASL_SSL") (eq $kafka.mechanism "OAUTHBEARER") (not $scorer.keda.authentication) -}}
{{- fail (printf "%s.keda.authentication: with OAUTHBEARER name a TriggerAuthentication of yours, since KEDA fetches tokens itself" $at) -}}
{{- end -}}
{{- $files := or (get $kafka.settings "password_file") (get $kafka.settings "ca_file") (get $kafka.settings "certificate_file") -}}
{{- if and $scorer.keda.enabled $files (not $scorer.keda.authentication) -}}
{{- fail (printf "%s.keda.authentication: kafka.settings names files, which KEDA cannot read; name a TriggerAuthentication of yours" $at) -}}
{{- end -}}
{{- range $kind := list "keda" "hpa" -}}
{{- $scale := get $scorer $kind -}}
{{- if $scale.enabled -}}
{{- if gt (int $scale.maxReplicas) (int $values.topics.partitions) -}}
{{- fail (printf "%s.%s.maxReplicas: %d replicas, but a topic has %d partitions (topics.partitions): the rest would idle" $at $kind (int $scale.maxReplicas) (int $values.topics.partitions)) -}}
{{- end -}}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) -}}
{{- fail (printf "%s.%s: minReplicas %d is above maxReplicas %d" $at $kind (int $scale.minReplicas) (int $scale.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $scorer.hpa.enabled (lt (int $scorer.hpa.minReplicas) 1) -}}
{{- fail (printf "%s.hpa.minReplicas: an HPA cannot scale to 0; keda can" $at) -}}
{{- end -}}
{{- if and (not $scorer.keda.enabled) (not $scorer.hpa.enabled) (gt (int $scorer.replicas) (int $values.topics.partitions)) -}}
{{- fail (printf "%s.replicas: %d replicas, but a topic has %d partitions (topics.partitions): the rest would idle" $at (int $scorer.replicas) (int $values.topics.partitions)) -}}
{{- end -}}
{{- if eq $scorer.provider "cuda" -}}
{{- $limits := default dict (get (default dict $scorer.gpu.resources) "limits") -}}
{{- $requests := default dict (get (default dict $scorer.gpu.resources) "requests") -}}
{{- if and (not $scorer.gpu.resourceClaimTemplate) (not (get $limits "nvidia.com/gpu")) -}}
{{- fail (printf "%s.gpu.resources: provider cuda without a GPU; set limits nvidia.com/gpu or gpu.resourceClaimTemplate" $at) -}}
{{- end -}}
{{- if and (get $limits "nvidia.com/gpu") (get $requests "nvidia.com/gpu") (ne (toString (get $limits "nvidia.com/gpu")) (toString (get $requests "nvidia.com/gpu"))) -}}
{{- fail (printf "%s.gpu.resources: requests and limits of nvidia.com/gpu differ; Kubernetes wants them equal" $at) -}}
{{- end -}}
{{- else if get (default dict (get (default dict $scorer.resources) "limits")) "nvidia.com/gpu" -}}
{{- fail (printf "%s.resources: a GPU is asked for, but provider is cpu; set provider: cuda" $at) -}}
{{- end -}}
{{- $processing := default dict (get (default dict $scorer.settings) "processing") -}}
{{- $drain := default 25 (get $processing "drain_seconds") -}}
{{- if lt (int $scorer.terminationGracePeriodSeconds) (add (int $drain) 30 | int) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds: %d is below the %d seconds that a drain may take (processing.drain_seconds + 30)" $at (int $scorer.terminationGracePeriodSeconds) (add (int $drain) 30 | int)) -}}
{{- end -}}
{{- end -}}
{{- if $values.repairer.enabled -}}
{{- if not $values.repairer.existingClaim -}}
{{- fail "repairer.existingClaim: name the claim that keeps the repairs' folders" -}}
{{- end -}}
{{- if and $values.repairer.jobs.enabled $values.repairer.jobs.gpu (not (get (default dict (get (default dict $values.repairer.jobs.resources) "limits")) "nvidia.com/gpu")) -}}
{{- fail "repairer.jobs.resources: jobs.gpu without limits nvidia.com/gpu; set it, or jobs.gpu: false" -}}
{{- end -}}
{{- $train := $values.repairer.jobs.trainJob -}}
{{- if and $train.enabled (not $values.repairer.jobs.enabled) -}}
{{- fail "repairer.jobs.trainJob.enabled: without jobs.enabled every step runs in the repairer's own pod; set repairer.jobs.enabled" -}}
{{- end -}}
{{- if and $train.enabled (get (default dict $values.repairer.settings) "train_command") -}}
{{- fail "repairer.jobs.trainJob.enabled: repairer.settings.train_command would train in its place; set one of the two" -}}
{{- end -}}
{{- $gpus := get (default dict (get (default dict $values.repairer.jobs.resources) "limits")) "nvidia.com/gpu" -}}
{{- if and $train.enabled $values.repairer.jobs.gpu (lt (int $gpus) (int $train.processesPerNode)) -}}
{{- fail (printf "repairer.jobs.trainJob.processesPerNode: %d processes on each node, but resources asks for %d GPUs: each takes one" (int $train.processesPerNode) (int $gpus)) -}}
{{- end -}}
{{- end -}}
{{- if and $values.prober.enabled (not $values.prober.campaign) -}}
{{- fail "prober.campaign: the prober is enabled without a campaign; see docs/probes.md" -}}
{{- end -}}
{{- if and (hasPrefix "/" $values.registry.root) $values.repairer.enabled (not $values.registry.pvc.existingClaim) -}}
{{- fail "registry.pvc.existingClaim: registry.root is a path, so name the claim that holds it (or use an object store's URL)" -}}
{{- end -}}
{{- if $values.notary.enabled -}}
{{- if not $values.notary.existingSecret -}}
{{- fail "notary.existingSecret: name the secret with the private keys of `ares audit key`" -}}
{{- end -}}
{{- if not $values.notary.keys -}}
{{- fail "notary.keys: names no key of the secret, so that nothing would be signed" -}}
{{- end -}}
{{- end -}}
{{- if $values.console.enabled -}}
{{- if not (regexMatch "^[a-z]" (include "ares.consoleService" .)) -}}
{{- fail (printf "fullnameOverride: the console's Service would be %s, but a Service's name begins with a letter" (include "ares.consoleService" .)) -}}
{{- end -}}
{{- $identity := default dict (get $values.console.settings "identity") -}}
{{- if not (or (get $identity "jwt") (get $identity "tokens") (get $identity "header")) -}}
{{- fail "console.settings.identity: names no way in; set jwt, tokens or header (docs/review.md)" -}}
{{- end -}}
{{- end -}}
{{- if $values.console.ingress.enabled -}}
{{- if not $values.console.enabled -}}
{{- fail "console.ingress.enabled: there is no console to serve; set console.enabled" -}}
{{- end -}}
{{- if not $values.console.ingress.host -}}
{{- fail "console.ingress.host: name the host under which people reach the console" -}}
{{- end -}}
{{- if not (or $values.console.ingress.tlsSecret $values.console.ingress.allowPlaintext) -}}
{{- fail "console.ingress.tlsSecret: without TLS conversations would cross the network readable; name a secret, or set console.ingress.allowPlaintext: true where a load balancer ends TLS" -}}
{{- end -}}
{{- end -}}
{{- if and (or $values.replayer.nightly.enabled $values.replayer.job.enabled) (not $values.replayer.existingClaim) -}}
{{- fail "replayer.existingClaim: name the claim that keeps signed heads and reports" -}}
{{- end -}}
{{- if and $values.replayer.job.enabled (or (lt (int $values.replayer.job.parts) 1) (gt (int $values.replayer.job.parts) (int $values.topics.partitions))) -}}
{{- fail (printf "replayer.job.parts: %d pods, but a topic has %d partitions (topics.partitions): each takes one at least" (int $values.replayer.job.parts) (int $values.topics.partitions)) -}}
{{- end -}}
{{- if $values.replayer.nightly.enabled -}}
{{- if not $values.replayer.nightly.keys -}}
{{- fail "replayer.nightly.keys: names no public key of the notary, so that nothing could be verified" -}}
{{- end -}}
{{- end -}}
{{- end -}}
