"""Files of the authors and other releases: downloaded, read safely, and found in their folders.

Takes names, addresses and folders. Gives plain tensors and tables; nothing in a file is executed.
"""
