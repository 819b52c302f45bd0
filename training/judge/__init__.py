"""A judge that did not train the generator: a small detector, trained on renders alone, that says what a picture shows.

    render + what stands where  ->  examples  ->  train  ->  training/results/judge.safetensors
    picture  ->  network  ->  sight (things, letters, background)  ->  verdict (does that fit the scene?)

It sees every combination, those too that are held out from the generator, and never a generated picture.
`python -m training.judge` trains it and states its accuracy on fresh renders, which bounds what its verdicts are worth.
"""
