"""A study: its parameters, its plan, its run, and what a notebook sees of it.

Takes a parameter file and the notebooks. Gives executed notebooks, records and pages.
"""
