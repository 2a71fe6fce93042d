"""What all stages share: flags, processes, checkpoints and figures."""
