"""Tables, figures, image sheets, and the HTML pages of a study.

Takes scores, rankings and executed notebooks. Gives what a reader looks at.
"""
