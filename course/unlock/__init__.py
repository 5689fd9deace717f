"""Can a vector open what a model hides? What notebook 07 and ``data/organisms`` measure with."""
