"""A study: its parameters, its plan, its run, and the study as a notebook sees it.

Takes a parameter file and the notebooks, and makes executed notebooks, records and pages.
"""
