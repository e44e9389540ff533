"""Files of the authors and other releases: downloaded, found in their folders, and read safely.

Takes names, addresses and folders. Returns plain tensors and tables. Nothing in a file is executed.
"""
