"""The demo: a service, its clients, a table of what its page says, and Prometheus where it is installed."""
