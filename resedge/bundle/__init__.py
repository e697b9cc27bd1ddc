"""The bundle: a folder whose manifest names every file in it by digest.

    manifest.json   reference/   onnx/   engines/   calibration/   golden/   verdicts/   device/

A bundle that is read is checked against its manifest; what the manifest does not name, lacks or names by
another digest is refused. `device/` is there once the bundle is signed.
"""

from __future__ import annotations

from resedge.bundle.manifest import AGENT as AGENT
from resedge.bundle.manifest import AGENT_SIGNATURE as AGENT_SIGNATURE
from resedge.bundle.manifest import GOLDEN as GOLDEN
from resedge.bundle.manifest import MANIFEST as MANIFEST
from resedge.bundle.manifest import SIGNATURE as SIGNATURE
from resedge.bundle.manifest import THRESHOLDS as THRESHOLDS
from resedge.bundle.manifest import Bundle as Bundle
from resedge.bundle.manifest import Manifest as Manifest
from resedge.bundle.manifest import ModelInfo as ModelInfo
from resedge.bundle.manifest import Signing as Signing
from resedge.bundle.manifest import Target as Target
from resedge.bundle.manifest import resolve as resolve
from resedge.bundle.manifest import unsigned as unsigned
from resedge.bundle.publishing import Published as Published
from resedge.bundle.publishing import check_place as check_place
from resedge.bundle.publishing import publish as publish
from resedge.bundle.reading import MAX_MANIFEST_BYTES as MAX_MANIFEST_BYTES
from resedge.bundle.reading import check as check
from resedge.bundle.reading import is_bundle as is_bundle
from resedge.bundle.reading import parse as parse
from resedge.bundle.reading import read as read
