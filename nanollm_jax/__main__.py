"""`python -m nanollm_jax` is `nanollm`."""

from nanollm_jax.cli import main

if __name__ == "__main__":
    main()
