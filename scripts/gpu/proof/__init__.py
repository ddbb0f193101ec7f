"""What only a CUDA device can show, as independent parts, each in a process of its own."""
