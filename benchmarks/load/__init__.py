"""Measuring a running server from outside: throughput of mixed batches, and a long soak."""
