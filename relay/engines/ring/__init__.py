"""The `ring` engine: asyncio whose selector is an io_uring."""
