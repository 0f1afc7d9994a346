"""What an embedding is kept under: tenant, model with its revision, dimensions, digest of the text.

The text is brought to Unicode's NFC and otherwise left alone: case, spaces and line ends may
matter to a model, composed or decomposed accents may not. It is the normalized text that is
embedded, so that the key stands for exactly what the model read.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote

DIGEST_BYTES = 32


def normalized(text: str) -> str:
    """The text in NFC (https://www.unicode.org/reports/tr15/)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass(frozen=True, slots=True)
class KeySpace:
    """The keys of one tenant, model and length.

    Attributes:
        revision: identifies the weights, or the server, behind the model's name: other weights
            under the same name never meet the old vectors.
    """

    tenant: str
    model: str
    revision: str
    dimensions: int

    @property
    def prefix(self) -> str:
        """What all its keys start with. Names are percent-encoded: no two spaces overlap."""
        tenant, model = quote(self.tenant, safe=""), quote(self.model, safe="")
        return f"{tenant}/{model}@{quote(self.revision, safe='')}/{self.dimensions}/"

    def keys(self, texts: list[str]) -> list[str]:
        """The keys of normalized texts, in their order."""
        prefix = self.prefix
        return [
            prefix + hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
            for text in texts
        ]
