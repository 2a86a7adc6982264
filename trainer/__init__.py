"""What needs torch: weights now, training runs later. Never imports the gateway."""
