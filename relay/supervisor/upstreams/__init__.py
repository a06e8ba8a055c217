"""Upstream addresses: name resolution and health checks."""
