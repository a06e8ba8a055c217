"""relay under systemd: `notify` is what it says, `listening` what it is given. Neither needs systemd's library."""
