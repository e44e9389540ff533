"""The frozen CLIP: images and texts to embeddings, texts with pseudo-words included.

Takes a CLIP by name or file. Gives embeddings of images by id, and text features with gradients for pseudo-words.
"""
