"""Ways to move bytes. `contract` says what an engine is; each engine is a module or package of its own."""
