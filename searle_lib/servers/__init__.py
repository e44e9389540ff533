"""Files for the test servers of CIRR and CIRCO: written, validated, and scored on validation splits.

Takes rankings, or a file of predictions that somebody brings. Gives JSON files, and sentences on what is wrong.
"""
