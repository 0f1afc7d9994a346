"""The `data` section of the configuration: where snapshots of data are kept."""

from pydantic import Field, model_validator

from gateway.section import Name, Section, Url


class LakeFS(Section):
    """A lakeFS repository.

    Attributes:
        url: the server's address, such as `https://lakefs.example.org`.
        repository: the repository's name; it is there.
        branch: what is merged into once a gate has passed; it is there.
        key_env, secret_env: environment variables with the access key and its secret.
    """

    url: Url
    repository: Name
    branch: Name = "main"
    key_env: str = "LAKEFS_ACCESS_KEY_ID"
    secret_env: str = "LAKEFS_SECRET_ACCESS_KEY"


class DataPlan(Section):
    """Where snapshots of data are kept: DVC's remote, or a lakeFS repository.

    Attributes:
        remote: of DVC: a folder or an `s3://` URL, with credentials from the environment (AWS_…);
            `dvc` in LLMOPS_HOME by default.
        endpoint_url: of an S3 that is not Amazon's.
    """

    remote: str | None = Field(None, min_length=1)
    endpoint_url: Url | None = None
    lakefs: LakeFS | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "DataPlan":
        if self.lakefs is not None and self.remote is not None:
            raise ValueError("give either remote or lakefs, not both")
        return self
