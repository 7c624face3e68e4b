"""Every option of the server, once: its flag, environment variable, default, unit and meaning.

`lacuna serve --help` is made of this class: the flag of `body_limit_mib` is `--body-limit-mib`, its variable
`LACUNA_BODY_LIMIT_MIB`. Nothing else reads the environment.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PREFIX = "LACUNA_"


class Settings(BaseModel):
    """Options of one server; per-model options are in the model's own `serving.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: Path = Field(Path("models"), description="Folder of models: NAME/VERSION/model.json. Only read.")
    model: tuple[str, ...] = Field(
        (), description="A model to load at the start; may be given several times. All of the repository by default."
    )
    model_control: Literal["none", "explicit"] = Field(
        "none", description="Whether clients may load and unload models over HTTP: explicit, or none."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="TCP port to listen on; 0 picks a free one.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to run; auto takes GPUs if there are any."
    )
    cpu_threads: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="Threads of the CPU backend; 0 leaves one core to HTTP."
    )
    api_key: str | None = Field(
        None,
        min_length=8,
        description="Wanted in `Authorization: Bearer KEY` of every request but health and metrics. None by default.",
    )
    body_limit_mib: Annotated[float, Field(gt=0, le=16384)] = Field(
        256.0, description="Largest request body, as sent and decompressed, in MiB."
    )
    drain_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        25.0, description="Longest wait, after SIGTERM, for requests under way, in seconds."
    )
    keep_alive_s: Annotated[int, Field(ge=1, le=3600)] = Field(
        75, description="How long an idle connection stays open, in seconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged."
    )
    log_format: Literal["json", "text"] = Field("json", description="One JSON object a line, or text for people.")
    access_log: bool = Field(False, description="Log a line for every request.")

    @property
    def body_limit_bytes(self) -> int:
        """The body limit in bytes."""
        return int(self.body_limit_mib * 2**20)
