"""One room per concept. Arrays in, arrays out; every size comes from an array, never from a config.

Most are under jit by themselves: a model of many layers then traces and lowers each of them once, which halves the time of
both. XLA inlines them and sees the whole program as before.
"""
