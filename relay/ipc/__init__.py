"""What supervisor and workers share: messages, the control channel, and shared memory. It imports neither of them."""
