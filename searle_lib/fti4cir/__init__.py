"""FTI4CIR: a network that predicts a subject word and attribute words for each image.

Takes images, their captions and CLIP's patch tokens, and returns pseudo-words by image.
"""
