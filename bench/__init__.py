"""Measuring relay beside HAProxy. Run as programs; nothing here is installed."""
