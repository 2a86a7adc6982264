"""Load and faults for a running Burnish. Speaks HTTP only."""
