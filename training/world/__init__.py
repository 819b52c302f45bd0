"""The world that the small model knows: clean flat illustrations and what people say of them, in two languages.

A `Scene` says what is on a picture (`scene.py`, in the words of `vocabulary.py`), `layout.py` where everything goes,
`render.py` draws it and `captions.py` says it. All of it is decided by seeds: the same seed is the same picture.
"""
