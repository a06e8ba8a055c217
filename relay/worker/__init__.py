"""The worker process, which carries client traffic and does nothing else. Its program is `python -m relay.worker`."""
