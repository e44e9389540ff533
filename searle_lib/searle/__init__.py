"""SEARLE: phrases, concepts, optimised pseudo-words (OTI), and the network φ that predicts them.

Takes a vocabulary and embeddings of images. Gives a pseudo-word per image.
"""
