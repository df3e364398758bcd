"""Train on a GPU that is lent for minutes: `python -m benchmarks.gpu_visit`, see __main__.py."""
