"""Azure Scheduled Events for this machine, and the drains that they cause."""
