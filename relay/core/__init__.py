"""Decisions without I/O: no sockets, no event loop, no files, no clock of their own: every value is an argument."""
