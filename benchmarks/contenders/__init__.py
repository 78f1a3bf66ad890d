"""Who is compared in benchmarks/train.py, on the same samples and the same shapes; each runs in a process of its own."""
