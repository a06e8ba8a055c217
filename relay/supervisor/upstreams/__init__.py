"""Where upstreams are and whether they answer: names, addresses, checks."""
