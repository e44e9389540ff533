"""SEARLE: phrases, concepts, pseudo-words by optimisation (OTI), and the network φ that predicts pseudo-words.

Takes a vocabulary and embeddings of images, and returns a pseudo-word for each image.
"""
