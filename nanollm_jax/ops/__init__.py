"""One room per concept. Arrays in, arrays out; every size comes from an array, never from a config.

Most are under jit by themselves: a model of many layers traces and lowers each of them once, which halves what is left of
its start when compiled programs are kept. XLA inlines them and sees the whole program as before.
"""
