"""`ares bench throughput`: what the scorer costs beside a raw loop and beside other frameworks."""
