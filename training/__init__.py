"""How `zimage_ui/mini` was made, from nothing: rendered pictures, an autoencoder, a tokenizer, and a Z-Image model.

`python -m training` does all of it on one GPU; `python -m training.evaluate` says how well the result draws what a
prompt asks for. Nothing here is needed to run the program, and nothing of it is installed with it.
"""
