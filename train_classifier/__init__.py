"""The classifier that shows what a query was worth: trained on each cycle's labeled images."""
