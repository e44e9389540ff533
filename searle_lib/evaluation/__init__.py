"""From queries to numbers: composers, rankings, metrics, scores of single queries, intervals and comparisons.

Takes benchmarks and what the methods made. Gives scores per query, and means with bootstrap intervals.
"""
