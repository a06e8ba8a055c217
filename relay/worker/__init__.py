"""A worker process: client traffic, and nothing else. `python -m relay.worker` is its program."""
