"""A study as people run it: its parameters, the notebooks it needs, and what a notebook sees of it.

Takes a parameter file or a notebook's parameters cell; gives executed notebooks, records and pages.
"""
