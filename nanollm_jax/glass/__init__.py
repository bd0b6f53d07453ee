"""Looking inside: any named value of the model, collected or replaced."""
