"""The commands, and the launcher of one process per device."""
