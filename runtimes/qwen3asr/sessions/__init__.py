"""What runs the graphs: one protocol, one module a backend."""
