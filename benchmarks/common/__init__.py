"""What several benchmarks need: models and traffic, options of commands, memory, and how results are written."""
