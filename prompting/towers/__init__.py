"""CLIP's frozen towers, run with prompts: the fast and exact path. ``text.py`` draws how the text tower's rows lie."""
