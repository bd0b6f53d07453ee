"""Messages to token ids, by the template that a checkpoint brings.

template.py renders and encodes, guard.py tells its own tokens from typed ones, load.py finds templates; renderer.py and
sandbox.py run them where they can do no harm. And back: forms.py reads off a template how its model writes calls of tools and
its reasoning, calls.py takes answers apart, with call_object.py and json_pieces.py for JSON that is still being written.
"""

from nanollm_jax.chat.load import load_chat_template
from nanollm_jax.chat.template import ChatTemplate, check_messages

__all__ = ["ChatTemplate", "check_messages", "load_chat_template"]
