"""Texts that are nearly the same: words as numbers, MinHash sketches of them, and the pairs that they find"""
