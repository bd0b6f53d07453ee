"""Looking inside: any named value of the model, collected or replaced; and the tools that are made of it."""

from nanollm_jax.glass.ablation import ablate as ablate
from nanollm_jax.glass.attribution import contributions as contributions
from nanollm_jax.glass.cache_view import cache_view as cache_view
from nanollm_jax.glass.lens import lens as lens
from nanollm_jax.glass.patching import patch as patch
from nanollm_jax.glass.saliency import saliency as saliency
from nanollm_jax.glass.sampling_lab import sampling_lab as sampling_lab
from nanollm_jax.glass.steering import steer as steer
from nanollm_jax.glass.story import for_report as for_report
from nanollm_jax.glass.story import story as story
from nanollm_jax.glass.tree import tree as tree
