"""What the small model is worth, in numbers: held-out prompts in two languages, and a judge that did not train it.

    cases (scenes, captions, seeds)  ->  pictures (the product's own generator)  ->  verdicts  ->  scores against bars

`python -m training.evaluate` writes scores and picture grids to training/results and exits with 1 if a bar is missed.
"""
