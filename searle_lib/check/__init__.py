"""The check of a study before anything is computed: files, disk, memory, time.

Takes the parameters of a study. Returns findings with what to do about each problem, and estimates.
"""
