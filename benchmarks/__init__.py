"""Benchmarks of bp, one file a family: shapes, and how bp and its peers do the work; `bp bench` runs them."""
