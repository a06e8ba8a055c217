"""The admin and the health port: HTTP, status, metrics."""
