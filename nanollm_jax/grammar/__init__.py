"""Answers of a given form: which tokens may come next, so that an answer is JSON of a schema, or matches a grammar.

The work is done by llguidance, which reads schemas, regular expressions and Lark grammars. value.py says what is asked for,
schema.py refuses what would be passed over, words.py has the vocabulary as llguidance sees it, sandbox.py tries a grammar out
in a process with limits, and matcher.py follows one answer: start, mask, take.
"""

from nanollm_jax.grammar.matcher import Compiled, Matcher
from nanollm_jax.grammar.value import Grammar
from nanollm_jax.grammar.words import Words

__all__ = ["Compiled", "Grammar", "Matcher", "Words"]
