"""A study: backbones x retrievers x benchmarks x methods x seeds, from one settings file."""
