"""Storage of results: artefacts named by a hash, records of notebooks, shards, checkpoints, random streams.

Takes facts and functions that build, and returns folders that are complete or absent. Imports no other package of the
library.
"""
