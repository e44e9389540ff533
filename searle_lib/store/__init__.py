"""Where results are kept: artefacts named by a hash, records of notebooks, shards, checkpoints, random streams.

Takes facts and functions that build. Gives folders that are whole or absent. Imports no other room.
"""
