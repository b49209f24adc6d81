"""The parent of all configuration objects: immutable, and a misspelt field is an error."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable settings; the line under a field is its unit and meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
