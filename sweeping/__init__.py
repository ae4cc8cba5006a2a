"""Many runs of train.py. Imports no torch: a sweep starts at once, and its memory is its children's."""
