"""Files of weights in the layouts of other programs, read as a model's components."""
