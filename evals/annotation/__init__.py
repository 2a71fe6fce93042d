"""The loop with people in it: a query is written out, its labels come back, and the next query follows."""
