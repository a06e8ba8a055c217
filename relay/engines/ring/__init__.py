"""The `ring` engine: asyncio with a selector that waits in an io_uring."""
