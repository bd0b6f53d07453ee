"""Messages to token ids, by the template that a checkpoint brings.

template.py renders and encodes, guard.py tells its own tokens from typed ones, load.py finds templates; renderer.py and
sandbox.py run them where they can do no harm.
"""

from nanollm_jax.chat.load import load_chat_template
from nanollm_jax.chat.template import ChatTemplate, check_messages

__all__ = ["ChatTemplate", "check_messages", "load_chat_template"]
