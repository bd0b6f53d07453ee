"""Looking inside: any named value of the model, collected or replaced; and the tools that are made of it."""

from nanollm_jax.glass.lens import lens as lens
