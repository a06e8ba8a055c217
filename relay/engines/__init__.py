"""Ways to move bytes. `contract` defines what an engine is; `stream` and `ring` are the two engines."""
