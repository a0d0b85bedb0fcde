# What `make rules` asks of every rule beside pint's own checks, where pint is installed.
rule {
  match {
    kind = "alerting"
  }
  annotation "summary" {
    severity = "bug"
    required = true
  }
  annotation "description" {
    severity = "bug"
    required = true
  }
  annotation "runbook_url" {
    severity = "bug"
    value    = "https://github\\.com/ares-stream/ares-stream/blob/main/docs/runbook\\.md#ares[a-z]+"
    required = true
  }
  label "severity" {
    severity = "bug"
    values   = ["critical", "warning", "info"]
    required = true
  }
  for {
    severity = "bug"
    max      = "4h"
  }
}

# One Prometheus watches several releases: what is recorded of one must not join another's.
rule {
  match {
    kind = "recording"
  }
  aggregate ".+" {
    severity = "bug"
    keep     = ["namespace"]
  }
}
