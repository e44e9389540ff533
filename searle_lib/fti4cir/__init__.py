"""FTI4CIR: a subject word and attribute words per image, and the network that predicts them.

Takes images, their captions and CLIP's patch tokens. Gives pseudo-words per image.
"""
