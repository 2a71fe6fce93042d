"""The fault campaign: kills, full disks and torn files at random moments, and what continuing makes of them."""
