"""Speed against the plain formulation, as ratios measured in one run."""
