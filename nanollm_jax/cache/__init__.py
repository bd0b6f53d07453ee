"""The cache: what layers remember of the tokens that were seen. Only this room knows how it is stored."""

from nanollm_jax.cache.cache import (
    KVCache as KVCache,
)
from nanollm_jax.cache.cache import (
    Layer as Layer,
)
from nanollm_jax.cache.cache import (
    advance as advance,
)
from nanollm_jax.cache.cache import (
    check_room as check_room,
)
from nanollm_jax.cache.cache import (
    dtype_of as dtype_of,
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
    recall as recall,
)
from nanollm_jax.cache.cache import (
    remember as remember,
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
from nanollm_jax.cache.cache import (
    steps_look_at_filled as steps_look_at_filled,
)
from nanollm_jax.cache.layers import Latents as Latents
from nanollm_jax.cache.layers import Plain as Plain
from nanollm_jax.cache.layers import Ring as Ring
from nanollm_jax.cache.layers import shapes as shapes
from nanollm_jax.cache.recurrent import Nothing as Nothing
from nanollm_jax.cache.recurrent import Recurrent as Recurrent
from nanollm_jax.cache.recurrent import Shared as Shared
from nanollm_jax.cache.rounded import Buffer as Buffer
