"""One client connection: its record, its transition tables, and the stages that decide about it."""
