"""Where DVC pushes what is to outlive a workspace: a folder, or a bucket.

DVC's small files, which lead to the content, are kept beside it where it is a folder. Of a bucket
they stay under `LLMOPS_HOME/dvc`, and are what is to be backed up, or committed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gateway.settings import Settings
from pipelines.data_plan import DataPlan

CONFIG = """\
[core]
    no_scm = true
    analytics = false
    check_update = false
    site_cache_dir = "{site}"
    remote = kept
['remote "kept"']
    url = "{url}"
"""
ENDPOINT = '    endpointurl = "{url}"\n'
HOME = "dvc"
URL_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class DvcRemote:
    """A remote.

    Attributes:
        url: a folder, or `s3://bucket/prefix`.
        home: folder of small files that a bucket does not keep.
        endpoint_url: of an S3 that is not Amazon's.
    """

    url: str
    home: Path
    endpoint_url: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.url

    @property
    def pins(self) -> Path:
        """Where copies of DVC's small files are kept."""
        if self.is_folder:
            return Path(self.url) / "pins"
        return self.home / "pins" / hashlib.sha256(self.url.encode()).hexdigest()[:URL_CHARACTERS]

    def configuration(self, dvc_dir: Path) -> str:
        """DVC's configuration of a workspace that pushes there; `dvc_dir` is its `.dvc`."""
        text = CONFIG.format(site=dvc_dir / "site", url=self.url)
        return text + ("" if self.endpoint_url is None else ENDPOINT.format(url=self.endpoint_url))


def remote_of(settings: Settings, plan: DataPlan) -> DvcRemote:
    """The remote that is configured; a folder of LLMOPS_HOME by default."""
    home = settings.home / HOME
    return DvcRemote(plan.remote or str(home), home, plan.endpoint_url)
