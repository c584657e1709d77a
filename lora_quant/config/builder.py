"""What goes into `build_lora_graph`, and what it made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_quant.config.base_model import ConfigModel, PathField, problem, raise_problems
from lora_quant.config.lora_config import LoraConfig, read_lora_config
from lora_quant.config.names import PlainName
from lora_quant.config.output_files import UseCaseOutputConfig

__all__ = ["LoraBuilderInputConfig", "LoraBuilderOutputConfig", "UseCaseOutputConfig"]


class LoraBuilderInputConfig(ConfigModel):
    """The input of a build: a configuration, as a file or as an object, and how to build."""

    lora_config_path: PathField | None = Field(
        default=None, description="Path of lora_config.yaml; exactly one of this and the object."
    )
    lora_config_obj: LoraConfig | None = Field(
        default=None, description="The configuration itself; its paths are used as they are."
    )
    create_lora_graph: bool = Field(
        default=True,
        description="False: the given graph already holds its branches; only lists, weights and "
        "overrides are made.",
    )
    quant_updatable_mode: Literal["none", "adapter_only", "all"] = Field(
        default="adapter_only",
        description="Which tensors may change their encoding between use cases.",
    )
    alpha_tensor_name: PlainName = Field(
        description="Name of the graph input that carries the run-time strengths."
    )

    @model_validator(mode="after")
    def _check(self) -> LoraBuilderInputConfig:
        given = [
            name
            for name in ("lora_config_path", "lora_config_obj")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            got = "both" if given else "none"
            raise_problems(
                "LoraBuilderInputConfig",
                [
                    problem(
                        (),
                        "expected exactly one of lora_config_path and lora_config_obj, "
                        f"got {got} of them",
                        "give the path of lora_config.yaml, or a LoraConfig",
                        None,
                    )
                ],
            )
        return self

    def lora_config(self) -> LoraConfig:
        """The configuration: the object, or the file read."""
        if self.lora_config_obj is not None:
            return self.lora_config_obj
        assert self.lora_config_path is not None, "exactly one of the two is set"
        return read_lora_config(self.lora_config_path)


class LoraBuilderOutputConfig(ConfigModel):
    """What a build made. `use_case` is the content of the importer config, the rest is ours."""

    use_case: Annotated[list[UseCaseOutputConfig], Field(min_length=1)] = Field(
        description="Per use case: graph, weights and encodings, as the importer takes them."
    )
    base_encodings: PathField | None = Field(
        default=None,
        description="Encodings of the max-rank graph with every branch tensor; None if the input "
        "had no encodings.",
    )
    lora_tensor_names: PathField = Field(
        description="The list of LoRA weight names for the converter's --lora_weight_list."
    )
    importer_config: PathField = Field(description="lora_importer_config.yaml as it was written.")
    pack: PathField = Field(description="The manifest of everything that was written, pack.json.")
