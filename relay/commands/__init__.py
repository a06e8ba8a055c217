"""The commands that a person types. Those about a running relay talk to its admin port over HTTP."""
