"""One page about finished runs, made of the files that they wrote."""
