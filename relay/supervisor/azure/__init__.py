"""What Azure announces for this machine: scheduled events, evictions."""
