"""Benchmarks: each compares inside one run, prints a table and writes bench/results/NAME.json."""
