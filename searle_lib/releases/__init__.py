"""The authors' files, taken in and given out.

Takes folders and files in their form; gives plain data of ours, or says in one sentence why they cannot be used.
"""
