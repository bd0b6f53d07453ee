"""What a model needs, what this machine can do, and how near a run comes to it."""
