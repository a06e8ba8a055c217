"""Decisions without I/O: no sockets, no event loop, no files, no clock of their own. Every value comes in as an argument."""
