"""Decisions without I/O: no sockets, no event loop, no files, no clock. Times and other inputs are arguments."""
