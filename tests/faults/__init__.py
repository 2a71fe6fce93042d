"""The fault campaign: kills, full disks and torn files at drawn moments, and what continuing makes of them."""
