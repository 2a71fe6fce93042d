"""Contrastive training: losses, objectives, optimizers and the loop."""
