"""The process that an operator sees: it starts and watches workers, and carries no client traffic."""
