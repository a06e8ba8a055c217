"""What a person types. Commands that ask a running relay talk to its admin port over HTTP."""
