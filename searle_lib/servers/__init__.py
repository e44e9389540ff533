"""Files for the test servers of CIRR and CIRCO: written, checked, and scored on validation splits.

Takes rankings, or a file of predictions by any method. Returns JSON files, scores, and sentences on what is wrong.
"""
