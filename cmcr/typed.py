"""Shapes in types: `Float[Tensor, "batch dim"]`, checked when CMCR_CHECK_SHAPES=1.

    @typed
    def cosine(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]: ...

The tests set the variable, so every public tensor function is checked there; in use the
decorator gives the function back as it is.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

if os.environ.get("CMCR_CHECK_SHAPES") == "1":
    from beartype import beartype
    from jaxtyping import jaxtyped

    def typed(function: F) -> F:
        """Check the annotated shapes of `function` at every call."""
        checked: F = jaxtyped(typechecker=beartype)(function)
        return checked

else:

    def typed(function: F) -> F:
        """Give `function` back unchanged."""
        return function
