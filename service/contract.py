"""The contract that an ONNX expression model carries as metadata."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from service.errors import ModelContractError
from service.printable import printable

# One metadata entry of the ONNX file, a JSON document.
METADATA_KEY = "lan_fer_contract"
FORMAT_VERSION = 1

# Of what is wrong with a contract: enough to mend it, and no file of a megabyte in a log's line.
MAX_PROBLEM_CHARACTERS = 500

Point = tuple[float, float]


# Persian and emoji are written with the first two, French with the last.
JOINERS_AND_SPACE = str.maketrans("", "", "\u200c\u200d\u00a0")


def _printable(text: str) -> str:
    if not text.translate(JOINERS_AND_SPACE).isprintable():
        raise ValueError("must be printable characters")
    return text


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]


class ModelContract(BaseModel):
    """What a model expects and means. The service hard-codes none of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1]
    name: Name
    """How replies and metrics call the model."""
    labels: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Class names in the order of the logits."""
    input_size: int = Field(ge=16, le=1024)
    """Side of the square crop, pixels."""
    color_mode: Literal["rgb", "gray"]
    """"gray": the three channels are the crop's luminance, repeated."""
    mean: tuple[float, float, float]
    """Subtracted from RGB values in 0..255."""
    std: tuple[float, float, float]
    """Divides the difference."""
    template: Annotated[tuple[Point, ...], Field(min_length=5, max_length=5)]
    """Where eyes, nose and mouth corners go in the crop, input pixels."""
    temperature: float = Field(ge=0.01, le=100)
    """Logits are divided by it before the softmax, so that confidence means accuracy."""
    bias: tuple[float, ...]
    """Of the classifier: mean of a class's evidence plus its bias is its logit."""
    fusion: Literal["add", "concat", "mean", "none"]
    """How the classifier sees attention; "none": a network without, its attention is all zero."""
    backbone: str
    dataset: str
    protocol: str
    validation_accuracy: float = Field(ge=0, le=1)
    """Share of right answers on the validation split of `protocol`."""
    run_id: str
    licence: str
    """Of the weights, with what they were derived from."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelContract:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if len(self.bias) != len(self.labels):
            raise ValueError(f"bias has {len(self.bias)} values for {len(self.labels)} labels")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if len(set(self.template)) != len(self.template):
            raise ValueError("template points must differ from each other")
        least, most = -self.input_size, 2 * self.input_size
        if not all(least <= side <= most for point in self.template for side in point):
            raise ValueError(f"template points must be near the crop, {least} to {most}")
        return self


def int8_description(sha256: str) -> str:
    """What an int8 file says of itself: the SHA-256 (hex) of the float32 file it was made from."""
    return f"int8 of sha256:{sha256}"


def parse_contract(metadata: dict[str, str], source: str) -> ModelContract:
    """The contract in an ONNX file's metadata.

    Raises ModelContractError, one line that names `source` and what is missing or wrong.
    """
    if METADATA_KEY not in metadata:
        raise ModelContractError(
            f"{source}: no metadata entry {METADATA_KEY!r}; export the model with "
            "`python -m training export`, which writes its contract into the file"
        )
    try:
        return ModelContract.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'contract'}: {e['msg']}" for e in error.errors()
        )
        problems = printable(problems)
        if len(problems) > MAX_PROBLEM_CHARACTERS:
            problems = problems[:MAX_PROBLEM_CHARACTERS] + " ..."
        raise ModelContractError(f"{source}: contract refused ({problems})") from error
