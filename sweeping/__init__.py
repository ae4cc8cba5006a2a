"""Many runs of train.py: which ones a protocol needs, a queue of them, and the launchers that work it off.

Imports no torch: a sweep starts at once, and its memory is its children's.
"""
