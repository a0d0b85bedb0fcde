"""The chart on a real cluster: docs/kubernetes.md. No part of CI."""
