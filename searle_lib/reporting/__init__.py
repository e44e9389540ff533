"""What people look at: pages made from executed notebooks, tables and pictures.

Takes executed notebooks and the records beside them; gives HTML that opens from disk with no network.
"""
