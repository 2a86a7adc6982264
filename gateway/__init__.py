"""The serving process: HTTP in, engines behind. Never imports torch, nor the trainer."""
