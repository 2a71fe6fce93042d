"""From trained encoders to queries: features, scores, selection and metrics."""
