"""The world of a run: its devices, its processes and their memory; accelerate is imported nowhere else."""
