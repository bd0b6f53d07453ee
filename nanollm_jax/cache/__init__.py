"""The key/value cache: what attention remembers of the tokens that were seen. Only this room knows how it is stored."""

from nanollm_jax.cache.cache import (
    KVCache as KVCache,
)
from nanollm_jax.cache.cache import (
    advance as advance,
)
from nanollm_jax.cache.cache import (
    check_room as check_room,
)
from nanollm_jax.cache.cache import (
    extend as extend,
)
from nanollm_jax.cache.cache import (
    init_cache as init_cache,
)
from nanollm_jax.cache.cache import (
    put_back as put_back,
)
from nanollm_jax.cache.cache import (
    repeat as repeat,
)
from nanollm_jax.cache.cache import (
    resize as resize,
)
from nanollm_jax.cache.cache import (
    select as select,
)
from nanollm_jax.cache.layers import Latents as Latents
from nanollm_jax.cache.layers import Plain as Plain
from nanollm_jax.cache.layers import Ring as Ring
from nanollm_jax.cache.layers import shapes as shapes
from nanollm_jax.cache.rounded import Buffer as Buffer
