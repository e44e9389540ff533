"""What a study will need, told before anything is computed: files, disk, memory, time.

Takes the parameters of a study. Gives findings with a remedy each, and estimates.
"""
