"""From scores to a decision, from decisions to estimates and alarms: pure."""
