"""Speed, load and soak of raggd, measured from outside: `python -m benchmarks`, `make bench`."""
