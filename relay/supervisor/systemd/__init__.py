"""systemd: `notify` reports relay's state, `socket_activation` takes sockets over; neither needs libsystemd."""
