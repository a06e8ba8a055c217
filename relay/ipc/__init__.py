"""What supervisor and workers share: messages, a channel, and memory. Imports neither of them."""
