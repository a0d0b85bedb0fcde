"""Repair: plan, train, gate and export a joint fine-tune of policy and reward model."""
