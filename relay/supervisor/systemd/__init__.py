"""relay under systemd: `notify` tells it, `socket_activation` takes its sockets. Neither needs systemd's library."""
