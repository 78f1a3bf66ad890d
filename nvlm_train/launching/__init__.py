"""Runs as Slurm jobs: planned, rendered as batch scripts, submitted. Imports neither torch nor Megatron."""
