"""What the data sets contain: annotations and benchmarks as tables, and images from disk to pixels.

Takes a data root in the authors' layout. Returns benchmarks, each a gallery and queries, and pixels.
"""
